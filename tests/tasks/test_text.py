import tarfile

import numpy as np
import pytest
from archive_files import imdb

from attnprobe.errors import UsageError
from attnprobe.tasks import folder, source, text

FILE = text.ARCHIVE.file
REVIEWS = {
    ("test", "neg"): [b"bad", b"worse"],
    ("test", "pos"): [b"good", b"better"],
    ("train", "neg"): [b"Awful \xe9", b"No."],
    ("train", "pos"): ["Très bien".encode(), b"Yes<br />"],
}


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    monkeypatch.setattr(text, "REVIEWS", 2)
    imdb(tmp_path / FILE, REVIEWS)
    return tmp_path


def build(**options):
    return source("text", {"n": 12, "train_size": 4, "test_size": 4, **options}).build(0)


def extracted(path):
    """Write the reviews as the archive's folder."""
    for (split, label), texts in REVIEWS.items():
        folder = path / "aclImdb" / split / label
        folder.mkdir(parents=True)
        for i, content in enumerate(texts):
            (folder / f"{i}_7.txt").write_bytes(content)


def read(split):
    """Return {bytes of the sequence without padding: label}."""
    rows = zip(split.inputs, split.lengths, split.labels, strict=True)
    return {bytes(row[:length]): int(label) for row, length, label in rows}


def test_tokens_are_the_raw_bytes_of_the_reviews(small_archive):
    task = build()
    for split in ("train", "test"):
        expected = {review: label == "pos" for (part, label), all in REVIEWS.items() if part == split for review in all}
        assert read(task.splits[split]) == expected
    assert task.train.inputs.dtype == np.uint8
    padding = np.arange(12) >= task.train.lengths[:, None]
    assert (task.train.inputs[padding] == 0).all()


def test_longer_reviews_are_truncated(small_archive):
    task = build(n=4)
    assert read(task.train) == {b"Awfu": 0, b"No.": 0, "Très".encode()[:4]: 1, b"Yes<": 1}
    assert sorted(task.train.lengths) == [3, 4, 4, 4]
    assert task.data.n == 4


def test_sizes_select_the_first_reviews_of_a_fixed_order(small_archive):
    full, part = build(), build(train_size=3, test_size=1)
    assert (part.train.inputs == full.train.inputs[:3]).all()
    assert (part.train.lengths == full.train.lengths[:3]).all()
    assert len(part.test) == 1
    assert source("text", {"n": 12, "train_size": 4, "test_size": 4}).build(1).fingerprint == full.fingerprint


def test_the_order_of_the_archive_does_not_matter(small_archive, tmp_path, monkeypatch):
    first = build()
    imdb(tmp_path / FILE, dict(reversed(REVIEWS.items())))
    assert build().fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"aclImdb/train/pos/9_9.txt": b"more"}, "holds 3 reviews in aclImdb/train/pos: must hold 2"),
        ({"aclImdb/test/neg/1_7.txt": b""}, "member 'aclImdb/test/neg/1_7.txt' has 0 bytes: must have 1 ... 1048576"),
        ({"aclImdb/test/neg/1_7.txt": b"x" * (2**20 + 1)}, "has 1048577 bytes"),
        ({"aclImdb/../../x.txt": b"x"}, "points outside the archive"),
    ],
)
def test_archives_with_an_unofficial_layout_are_refused(small_archive, tmp_path, more, message):
    imdb(tmp_path / FILE, REVIEWS, **more)
    with pytest.raises(UsageError) as caught:
        build()
    assert message in str(caught.value)
    assert FILE in str(caught.value)


def test_the_extracted_folder_gives_the_same_task_and_replaces_a_missing_archive(small_archive, tmp_path):
    expected = build().fingerprint
    extracted(tmp_path)
    (tmp_path / "aclImdb/imdbEr.txt").write_text("0.1")
    (tmp_path / "aclImdb/train/neg/notes.txt").write_text("not a review")
    changed = tmp_path / "aclImdb/train/neg/0_7.txt"
    changed.write_bytes(b"Awful!!")
    assert build().fingerprint == expected, "the archive is preferred"
    (tmp_path / FILE).unlink()
    assert b"Awful!!" in read(build().train)
    changed.write_bytes(REVIEWS["train", "neg"][0])
    assert build().fingerprint == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aclImdb/train/pos/1_7.txt": None}, "aclImdb: holds 1 reviews in aclImdb/train/pos: must hold 2"),
        ({"aclImdb/train/pos/1_7.txt": b""}, "aclImdb/train/pos/1_7.txt: has 0 bytes: must have 1 ... 1048576"),
        ({"aclImdb/test/neg/9_9.txt": b"more"}, "aclImdb: holds 3 reviews in aclImdb/test/neg: must hold 2"),
    ],
)
def test_folders_with_an_unofficial_layout_are_refused(small_archive, tmp_path, change, message):
    extracted(tmp_path)
    (tmp_path / FILE).unlink()
    for name, content in change.items():
        (tmp_path / name).unlink(missing_ok=True) if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        build()
    assert message in str(caught.value)


def test_the_real_archive_is_balanced_and_shuffled(real_archive):
    real_archive(FILE)
    task = source("text", {"n": 512}).build(0)
    for split in task.splits.values():
        assert np.bincount(split.labels).tolist() == [12500, 12500]
        assert 30 < split.labels[:100].sum() < 70
        assert split.lengths.min() >= 10
        assert split.inputs.max() < 256
    labels = read(task.train)
    with tarfile.open(text.ARCHIVE.find()) as archive:
        first = next(member for member in archive if member.name.startswith("aclImdb/train/neg/") and member.isreg())
        assert labels[archive.extractfile(first).read()[:512]] == 0
