import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.tasks import folder, retrieval, source

SIZES = {"train_size": 3, "validation_size": 2, "test_size": 1}
LINES = {
    "train": [b"1.0\ta\tb\tone paper\tanother", b"0.0\tc\td\tx\t\xc3\xa9", b"1\te\tf\t\tlast"],
    "validation": [b"0\ta\tb\tp\tq", b"1\ta\tb\tr\ts"],
    "test": [b"0\ta\tb\tlonger than ten\tshort"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    for split, lines in LINES.items():
        (tmp_path / retrieval.FILES[split]).write_bytes(b"\n".join(lines) + b"\r\n")
    return tmp_path


def build(**options):
    return source("retrieval", {"document": 10, **SIZES, **options}).build(0)


def read(split):
    """Return {(first text, second text): label}."""
    pairs = {}
    for row, length, label in zip(split.inputs, split.lengths, split.labels, strict=True):
        (middle,) = np.flatnonzero(row == 256)
        pairs[bytes(row[:middle].tolist()), bytes(row[middle + 1 : length].tolist())] = int(label)
        assert (row[length:] == 0).all()
    return pairs


def test_a_sequence_is_two_texts_joined_by_a_separator(here):
    task = build()
    assert read(task.train) == {(b"one paper", b"another"): 1, (b"x", b"\xc3\xa9"): 0, (b"", b"last"): 1}
    assert read(task.validation) == {(b"p", b"q"): 0, (b"r", b"s"): 1}
    assert (task.data.n, task.data.vocabulary, task.data.classes) == (21, 257, 2)
    assert task.train.tensor().max() == 256
    assert len(task.train.tensor()) == 3


def test_each_text_is_truncated_separately(here):
    assert read(build(document=5).test) == {(b"longe", b"short"): 0}


def test_sizes_select_the_first_lines(here):
    assert set(read(build(train_size=2).train)) == {(b"one paper", b"another"), (b"x", b"\xc3\xa9")}


def test_a_changed_file_is_read_again(here):
    first = build()
    (here / retrieval.FILES["test"]).write_bytes(b"1\ta\tb\tnew\ttexts\n")
    assert read(build().test) == {(b"new", b"texts"): 1}
    assert (build().train.inputs == first.train.inputs).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"1\ta\tb\tx\ty", b"1\ta\tb\tx"], "line 2 has 4 columns: must have 5 (label, id1, id2, text1, text2)"),
        ([b"2\ta\tb\tx\ty"], "line 1 has label b'2': must be 0 or 1"),
        ([b"label\tid1\tid2\ttext1\ttext2"], "line 1 has label b'label'"),
        ([b"1\ta\tb\tx\ty"], "holds 1 pairs, fewer than train_size=3"),
        ([b"1\ta\tb\tx\t" + b"y" * 99], "line 1 is longer than 60 bytes"),
    ],
)
def test_invalid_lines_are_refused_naming_file_and_line(here, lines, message, monkeypatch):
    monkeypatch.setattr(retrieval, "LONGEST", 60)
    (here / retrieval.FILES["train"]).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UsageError) as caught:
        build()
    assert str(caught.value).startswith(f"{here / retrieval.FILES['train']}: {message}")


def test_a_missing_file_is_reported_with_its_location(here):
    (here / retrieval.FILES["validation"]).unlink()
    with pytest.raises(
        UsageError, match=r"eval\.tsv: no such file, .*put your own copy .*--data DIR or ATTNPROBE_DATA"
    ):
        build()
