"""Limits are named with their values, and leave room for data that are large but real."""

import functools
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from faults import corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnprobe.errors import UsageError
from attnprobe.tasks import archives, arrays, readers, source, table_files

pytestmark = pytest.mark.filterwarnings("ignore:.* sequences? ha(s|ve) the label")


FAST = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(FAST, max_examples=25)
VALID = {
    "npz": corpus.packed(corpus.VALID),
    "csv": b"text,label\na,x\nb,y\nc,x\nd,y\n",
    "jsonl": b'{"text": "a", "label": 1}\n{"text": [1], "label": 0}\n',
    "ts": b"@data\n1,2:a\n3,4:b\n",
    "toml": b"n_layers = 2\n[a]\nsteps = 3\n",
    "yaml": b"a: &a {n_layers: 2}\nb:\n  <<: *a\n",
    "tsv": b"text\tlabel\na\tx\nb\ty\nc\tx\nd\ty\n",
    "sweep": b"out = 'x'\n[base]\nsteps = 9\npretrain_steps = 3\n[grid]\nseed = [1, 2]\nrecipe = ['spt']\n",
    "run": b'{"config": {"steps": 9, "pretrain_steps": 3, "model": {"n_layers": 2}}}',
}


@functools.cache
def held():
    """Return the files of the corpus that need no network."""
    return {key: write for part in corpus.PARTS[:5] for key, write in part().items()}


def refusal(kind, name, folder):
    """Return the message with which a file of the corpus is refused."""
    with pytest.raises(UsageError) as error:
        corpus.OPEN[kind](held()[f"{kind}/{name}"](folder))
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("tar.gz", "skipped claims 10^13", "member 'other' claims 10,000,000,000,000 bytes: at most 67,108,864"),
        ("tar.gz", "bomb", "claims 134,217,216 bytes: at most 67,108,864"),
        ("npz", "bomb", "more than 200 times its"),
        ("npz", "objects", "tokens holds Python objects"),
        ("npz", "torch pickle", "unknown array"),
        ("npz", "vocabulary of 10000000", "vocabulary of 10000000: must be at most 262144"),
        ("npz", "classes of 10000000", "classes of 10000000: must be at most 65536"),
        ("csv", "10^6 columns", "has 1,000,001 columns: must have at most 131,072"),
        ("jsonl", "other names in each line", "has 60,000 columns, of which lines hold 20.0"),
        ("jsonl", "link", "refers to the image '/etc/passwd': must hold it"),
        ("parquet", "one value repeated", "claims 2,000,000 values in a column"),
        ("toml", "nested", "is nested too deeply; must have at most 10 levels"),
        ("toml", "dotted key", "line 1 has 29,999 dots: must have at most 1,000"),
        ("toml", "10^7 layers", "n_layers=10000000: input should be less than or equal to 1000"),
        ("toml", "hexadecimal", "holds a whole number of 40000 bits"),
        ("toml", "wide", "must be at most 1e+11"),
        ("yaml", "laughs", "holds more than 100,000 values, with its aliases replaced"),
        ("yaml", "merged laughs", "holds more than 100,000 values, with its aliases replaced"),
        ("yaml", "alias of itself", "holds an alias within what it stands for"),
        ("sweep", "40^5 cells", "grid has 40 x 40 x 40 x 40 x 40 cells: must have at most 10,000"),
    ],
)
def test_a_limit_is_named(tmp_path, kind, name, message):
    assert message in refusal(kind, name, tmp_path)


def test_a_stream_that_unpacks_too_far_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**12)
    path = corpus.archives()["tar.gz/valid"](tmp_path)
    assert list(archives.members(path, lambda _: range(1, 9))) == [("data/a", b"1")]
    monkeypatch.setattr(archives, "SMALL", 2**9)
    monkeypatch.setattr(archives, "RATIO", 1)
    with pytest.raises(UsageError, match="unpacks to more than 512 bytes"):
        list(archives.members(path, lambda _: range(1, 9)))


def test_an_uncompressed_array_of_50_gigabytes_is_mapped(tmp_path):
    size = 50 * 2**30
    text = corpus.header((size // 8,))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", text)
    content = path.read_bytes()
    with path.open("r+b") as file:  # a sparse file: the directory at its end says that the array has its full size
        start = 30 + len("x.npy") + len(text)
        file.truncate(start)
        file.seek(start + size)
        directory = zipfile.ZipInfo("x.npy")
        directory.header_offset = directory.CRC = 0
        directory.file_size = directory.compress_size = len(text) + size
        with zipfile.ZipFile(io.BytesIO(), "w") as archive:
            archive.filelist, archive.start_dir, archive.fp = [directory], start + size, file
            archive._write_end_record()
            archive.fp = None
    assert content[:4] == b"PK\x03\x04"
    assert arrays.read_arrays(path)["x"].shape == (size // 8,)


def test_a_vocabulary_of_subwords_may_be_declared(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=[[1, 2], [0, 1]] * 2, labels=[0, 1] * 2, vocabulary=50_000)
    assert source(str(tmp_path / "a.npz")).data.vocabulary == 50_000


def test_a_table_of_a_million_rows_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a,1\nb,0\n" * 500_000)
    assert len(table_files.read_table(tmp_path / "a.csv")) == 10**6


def test_long_digits_are_matched_in_linear_time():
    assert readers.FLOAT.fullmatch("1" * 10**6 + "x") is None


def test_series_of_one_channel_are_read(tmp_path):
    (tmp_path / "a.ts").write_text("@data\n1,2:a\n3,4:b\n5,6:a\n7,8:b\n")
    assert source(str(tmp_path / "a.ts")).data.channels == 1


@pytest.mark.parametrize("kind", VALID)
@FAST
@given(at=st.integers(0, 10**6), count=st.integers(0, 4), new=st.binary(max_size=4))
def test_changed_bytes_are_read_or_refused(tmp_path, kind, at, count, new):
    content = VALID[kind]
    at %= len(content)
    changed = content[:at] + new + content[at + count :]
    if kind == "run":
        path = corpus.run_with("config.json", changed, tmp_path)
    else:
        path = corpus.written("a.toml" if kind == "sweep" else f"a.{kind}", changed, tmp_path)
    is_read_or_refused(kind, path)


def is_read_or_refused(kind, path):
    try:
        corpus.OPEN[kind](path)
    except UsageError as error:
        assert str(error).isprintable()


def with_checksums(content):
    """Return a zip archive with the checksums of its members, so that changes of their bytes reach their reader."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            places = [(member.header_offset, member.CRC, member.compress_size) for member in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError):
        return content
    for offset, former, size in places:
        begin = offset + 30 + sum(struct.unpack("<2H", content[offset + 26 : offset + 30].ljust(4, b"\0")))
        crc = zlib.crc32(content[begin : begin + size])
        content = content.replace(struct.pack("<I", former), struct.pack("<I", crc))
    return content


@pytest.mark.parametrize("kind", ["checkpoint", "nc"])
@FEW
@given(at=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=4))
def test_changed_bytes_of_binary_files_are_read_or_refused(tmp_path, kind, at, new):
    """Checkpoints have the checksums of the changed bytes, so that they reach torch and its pickles."""
    content = corpus.intact() if kind == "checkpoint" else corpus.measured()
    at %= len(content) - 4
    changed = content[:at] + new + content[at + len(new) :]
    changed = with_checksums(changed) if kind == "checkpoint" else changed
    is_read_or_refused(kind, corpus.written("a", changed, tmp_path))


@FEW
@given(
    values=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    name=st.sampled_from(["config", "data", "metrics", "optimiser", "step", "objective", "fingerprint", "provenance"]),
)
def test_any_entry_of_a_checkpoint_is_read_or_refused(tmp_path, name, values):
    content = corpus.checkpoint(corpus.entry(name, values))
    is_read_or_refused("checkpoint", corpus.written("a.pt", content, tmp_path))
