import numpy as np
import pytest
import torch
from archive_files import cifar

from attnprobe.errors import UsageError
from attnprobe.tasks import folder, image, source
from attnprobe.tasks.pixels import halved, permutation

FILE = image.ARCHIVE.file


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """An archive with four images per batch in a separate data folder: (train, test), each (labels, images)."""
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    monkeypatch.setattr(image, "RECORDS", 4)
    rng = np.random.default_rng(0)
    train, test = ((np.arange(count) % 10, rng.integers(256, size=(count, 3, 32, 32))) for count in (20, 4))
    cifar(tmp_path / FILE, train, test)
    return train, test


def options(**more):
    return {"train_size": 20, "test_size": 4, **more}


def test_images_and_labels_come_in_the_order_of_the_batches(small_archive):
    task = source("image-rgb", options(inputs="tokens")).build(0)
    for split, (labels, images) in zip((task.train, task.test), small_archive, strict=True):
        assert split.labels.tolist() == labels.tolist()
        assert (split.inputs.reshape(-1, 32, 32, 3) == images.transpose(0, 2, 3, 1)).all()
    assert (task.data.n, task.data.grid, task.data.vocabulary) == (3072, None, 256)


@pytest.mark.parametrize(
    ("colour", "grey"),
    # 0.299 R + 0.587 G + 0.114 B
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((10, 20, 30), 18), ((255,) * 3, 255), ((0,) * 3, 0)],
)
def test_grey_is_the_luma(colour, grey):
    images = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (1, 3, 32, 32))
    assert set(image.tokens(images, "grey").ravel()) == {grey}


def test_grey_matches_pillow_exactly():
    from PIL import Image

    images = np.random.default_rng(1).integers(256, size=(1, 3, 32, 32)).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(images[0].transpose(1, 2, 0)).convert("L"))
    assert (image.tokens(images, "grey")[0] == pillow.ravel()).all()


def test_pixels_are_read_row_by_row_and_halving_averages_blocks():
    columns = np.broadcast_to(np.arange(32, dtype=np.uint8), (1, 3, 32, 32))
    rows = columns.transpose(0, 1, 3, 2)
    assert (image.tokens(columns, "grey")[0].reshape(32, 32) == np.arange(32)).all()
    assert (image.tokens(rows, "grey")[0] == np.arange(32).repeat(32)).all()
    # the mean of columns 2i and 2i + 1 is 2i + 0.5, rounded up
    assert (image.tokens(columns, "grey-16")[0].reshape(16, 16) == np.arange(16) * 2 + 1).all()
    assert (image.tokens(rows, "grey-16")[0] == (np.arange(16) * 2 + 1).repeat(16)).all()


def test_halving_rounds_and_does_not_overflow():
    assert halved(np.full((1, 2, 2), 255, np.uint8)).tolist() == [[[255]]]
    assert halved(np.array([[[0, 0], [0, 1]]], np.uint8)).tolist() == [[[0]]]
    assert halved(np.array([[[0, 0], [1, 1]]], np.uint8)).tolist() == [[[1]]]


@pytest.mark.parametrize("name", ["image", "image-16", "image-rgb"])
def test_values_are_tokens_scaled_to_minus_one_to_one(small_archive, name):
    tokens, values = (source(name, options(inputs=inputs)).build(0) for inputs in ("tokens", "values"))
    assert values.train.tensor() == pytest.approx(tokens.train.tensor() / 127.5 - 1, abs=1e-6)
    assert tokens.train.tensor().dtype == torch.long
    assert (values.data.inputs, values.data.levels, values.data.vocabulary) == ("values", 0, 0)
    assert isinstance(values.train.inputs, np.memmap)
    assert values.train.inputs.dtype == np.uint8


def test_sizes_select_the_first_images_of_cached_arrays(small_archive, tmp_path, monkeypatch):
    full = source("image", options()).build(0)
    monkeypatch.setattr(image.archives, "members", None)  # the archive is not parsed again
    part = source("image", {"train_size": 7, "test_size": 2, "inputs": "tokens"}).build(0)
    assert (part.train.inputs == full.train.inputs[:7]).all()
    assert (len(part.train), len(part.test)) == (7, 2)
    assert len(list((tmp_path / "made").glob("cifar-*[!k]"))) == 1


def test_a_different_archive_gives_different_arrays(small_archive, tmp_path):
    first = source("image", options()).build(0)
    train, test = small_archive
    cifar(tmp_path / FILE, (train[0][::-1], train[1]), test)
    assert source("image", options()).build(0).train.labels.tolist() == first.train.labels[::-1].tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"test_batch.bin": bytes(4 * 3073 - 1)},
            r"member 'cifar-10-batches-bin/test_batch.bin' has 12291 bytes: must",
        ),
        ({"test_batch.bin": bytes([10]) + bytes(4 * 3073 - 1)}, r"test_batch.bin holds the label 10: must be 0 ... 9"),
    ],
)
def test_invalid_records_are_refused(small_archive, tmp_path, more, message):
    cifar(tmp_path / FILE, *small_archive, **more)
    with pytest.raises(UsageError, match=rf"{FILE}: .*{message}"):
        source("image").build(0)
    assert not [path for path in (tmp_path / "made").iterdir() if path.suffix != ".lock"]


def test_a_missing_batch_is_named(small_archive, tmp_path):
    from archive_files import pack

    pack(tmp_path / FILE, {f"cifar-10-batches-bin/data_batch_{i}.bin": bytes(4 * 3073) for i in range(1, 6)})
    with pytest.raises(UsageError, match="lacks cifar-10-batches-bin/test_batch.bin"):
        source("image").build(0)


def test_the_real_archive_is_balanced_and_in_random_order(real_archive):
    real_archive(FILE)
    task = source("image-16").build(0)
    assert (len(task.train), len(task.test)) == (50000, 10000)
    for split in task.splits.values():
        assert (np.bincount(split.labels) == len(split) / 10).all()
        assert len(set(split.labels[:100].tolist())) == 10
        # 1000 images in random order contain 100 +- 10 of each class
        assert np.abs(np.bincount(split.labels[:1000]) - 100).max() < 50
    image = task.train.inputs[0].reshape(16, 16).astype(float)
    assert (
        np.abs(np.diff(image, axis=0)).mean() < np.abs(image - image.mean()).mean()
    )  # neighbouring pixels are similar


@pytest.mark.parametrize(("name", "colours"), [("image-rgb", 3), ("image-16", 1)])
def test_pixels_are_permuted_with_their_colours(name, colours, small_archive):
    plain = source(name, options()).build(0).test.inputs
    moved = source(name, options(pixel_permuted=True)).build(0).test.inputs
    pixels, permuted = (np.asarray(x).reshape(len(x), -1, colours) for x in (plain, moved))
    assert (permuted == pixels[:, permutation(pixels.shape[1])]).all()
