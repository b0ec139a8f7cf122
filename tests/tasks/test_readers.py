import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnprobe.errors import UsageError
from attnprobe.tasks import readers, source
from attnprobe.tasks.table import columns_of

TEXTS = "text,label\nab,0\ncd,1\n"


def write(folder, files):
    """Write {relative path: text, bytes, image or list of objects, one per line}."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(f"{json.dumps(line)}\n" for line in content)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def image(mode="L", size=(3, 2), value=0):
    """Return an image of 2 rows and 3 columns."""
    return Image.new(mode, size, value)


def rows(table):
    """Return (sequence, label) or (sequence, label, split) of each row."""
    frame = table.frame
    names = columns_of(frame, table.inputs, table.labels)
    sequences = [frame[names[0]] if names == [table.inputs] else frame[names].to_numpy().tolist()]
    columns = [*sequences, frame[table.labels], *([frame["split"]] if "split" in frame else [])]
    return [tuple(map(plain, row)) for row in zip(*columns, strict=True)]


def plain(cell):
    """Return a cell as plain values, None if it is missing."""
    if isinstance(cell, np.ndarray | list):
        cells = [plain(part) for part in cell]
        return cells[: max((i + 1 for i, part in enumerate(cells) if part is not None), default=0)]
    return None if isinstance(cell, float) and np.isnan(cell) else cell


def saved(write, *arguments, **named):
    """Return the bytes that a function writes to a file."""
    file = io.BytesIO()
    write(file, *arguments, **named)
    return file.getvalue()


NAN = float("nan")
MISSING_NUMBERS = [([1.0, NAN, 3.0], "a"), ([NAN, NAN, 4.5], "b")]
BROKEN = saved(image(size=(50, 50)).save, "PNG")[:60]
ANIMATION = saved(image().save, "GIF", save_all=True, append_images=[image(value=9)])
PICKLED = saved(np.save, np.array([["a"], None], dtype=object))


@pytest.mark.parametrize(
    ("file", "content", "named", "expected"),
    [
        ("a.csv", TEXTS, {}, [("ab", 0), ("cd", 1)]),
        ("A.CSV", TEXTS, {}, [("ab", 0), ("cd", 1)]),
        ("a.csv", b"\xef\xbb\xbf" + TEXTS.encode(), {}, [("ab", 0), ("cd", 1)]),
        ("a.csv", 'id,label,text\r\n1,x,"a, ""b""\nc"\r\n\r\n2,y,d\r\n', {}, [('a, "b"\nc', "x"), ("d", "y")]),
        ("a.tsv", 'text\tlabel\n"a\tb"\tx\nsay "hi", é\ty\n', {}, [("a\tb", "x"), ('say "hi", é', "y")]),
        ("a.csv", "text,label\nNA,1\nnull,2\n007,3\n", {}, [("NA", 1), ("null", 2), ("007", 3)]),
        ("a.csv", "text,label\na,1\nb,NaN\nc,\n", {}, [("a", 1), ("b", None), ("c", None)]),
        ("a.csv", "text,label\na, 1\nb,2.5e1\nc,NA\n", {}, [("a", 1.0), ("b", 25.0), ("c", None)]),
        ("a.csv", "text,label\na,1\nb,x\nc,null\n", {}, [("a", "1"), ("b", "x"), ("c", None)]),
        ("a.csv", "text,label\na,1_0\nb,inf\n", {}, [("a", "1_0"), ("b", "inf")]),
        ("a.csv", f"text,label\na,{'9' * 30}\nb,1\n", {}, [("a", 1e30), ("b", 1)]),
        ("a.csv", "text,label\na,\nb,\n", {}, [("a", None), ("b", None)]),
        ("a.csv", f"text,label\n{'x' * 200_000},1\n", {}, [("x" * 200_000, 1)]),
        ("a.csv", "s,t,label\na,b,c\n", {"inputs": "t", "labels": "s"}, [("b", "a")]),
        ("a.csv", 'text,label\n"[1, 2]",0\n"[3]",1\n', {}, [("[1, 2]", 0), ("[3]", 1)]),
        ("a.csv", 'text,label\n"[1, 2]",0\nmore,1\n', {}, [("[1, 2]", 0), ("more", 1)]),
        ("a.csv", "x1,x0,label\n1,2,a\n3,4,b\n", {"inputs": "x*"}, [([1, 2], "a"), ([3, 4], "b")]),
        (
            "a.csv",
            "x0,x1,x2,label\n1,2,3,a\n4,5,,b\n6,,,c\n",
            {"inputs": "x?"},
            [([1, 2, 3], "a"), ([4, 5], "b"), ([6], "c")],
        ),
        (
            "a.csv",
            "label,split,1,2\nx,train,1.5,2\ny,test,3,4\n",
            {"inputs": "*"},
            [([1.5, 2.0], "x", "train"), ([3.0, 4.0], "y", "test")],
        ),
        ("a.csv", "x0,x1,x2,label\n1,,3,a\nnull,NA,4.5,b\n", {"inputs": "x*"}, MISSING_NUMBERS),
        ("a.csv", 'text,label\r\n"a\r\nb",1\r\n', {}, [("a\r\nb", 1)]),
        ("a.jsonl", [{"a": 1, "b": None, "c": 2, "label": 1}], {"inputs": "[abc]"}, [([1.0, NAN, 2.0], 1)]),
        ("a.csv", "x1,x*,label\n1,ab,2\n", {"inputs": "x*"}, [("ab", 2)]),
        (
            "a.csv",
            "text,label,split\na,1,train\nb,2,dev\nc,3,test\n",
            {},
            [("a", 1, "train"), ("b", 2, "dev"), ("c", 3, "test")],
        ),
        ("a.csv", "text,label,split\na,1,train\nb,2,train\n", {}, [("a", 1, "train"), ("b", 2, "train")]),
        (
            "a.jsonl",
            [{"text": "é\n", "label": "1"}, {"label": None, "text": "NA"}, {"text": "b"}],
            {},
            [("é\n", "1"), ("NA", None), ("b", None)],
        ),
        ("a.jsonl", '\ufeff{"text": [1, 2], "label": 1}\n\n{"text": [3], "label": 0.5}', {}, [([1, 2], 1), ([3], 0.5)]),
        ("a.jsonl", [{"text": [1], "label": 1}, {"text": [0.5], "label": True}], {}, [([1.0], 1), ([0.5], True)]),
        (
            "a.jsonl",
            [{"a": 1, "b": 2.5, "label": 1}, {"a": 3, "label": 0}],
            {"inputs": "[ab]"},
            [([1.0, 2.5], 1), ([3.0], 0)],
        ),
        ("a.tsv", "Source\tTarget\n( ( [MAX 1 ) 2 ) ]\t2\n3\t3\n", {}, [("[MAX 1 2 ]", 2), ("3", 3)]),
        ("a.tsv", "Source\tTarget\n3\t3\n[MIN ( 4 ) ]\t4\n", {}, [("3", 3), ("[MIN 4 ]", 4)]),
        ("a.csv", "text,label\n[MIN 1 ],0\n[MAX 2 ],1\n", {}, [("[MIN 1 ]", 0), ("[MAX 2 ]", 1)]),
        ("a.tsv", "Source\tTarget\n(a)\t2\n", {"inputs": "Source", "labels": "Target"}, [("(a)", 2)]),
        ("a.tsv", "Source\tTarget\ttext\tlabel\n3\t3\ta\tb\n", {}, [("a", "b")]),
    ],
)
def test_a_table_file_is_read(tmp_path, file, content, named, expected):
    write(tmp_path, {file: content})
    table = readers.read(tmp_path / file, **named)
    assert rows(table) == [tuple(map(plain, row)) for row in expected]


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"text": ["NA", "é"], "label": ["x", None], "more": [{"a": 1}, None]}, {}, [("NA", "x"), ("é", None)]),
        ({"text": [[1, 2], [3]], "label": [2, 3]}, {}, [([1, 2], 2), ([3], 3)]),
        ({"text": [[1, 2], [0.5]], "label": [2.0, NAN]}, {}, [([1.0, 2.0], 2.0), ([0.5], None)]),
        (
            {"text": [b"\xff", b"b"], "label": [2, 3], "split": ["test", "train"]},
            {},
            [(b"\xff", 2, "test"), (b"b", 3, "train")],
        ),
        ({"x1": [2, 4], "x2": [0.5, None], "label": [2, 3]}, {"inputs": "x*"}, [([2.0, 0.5], 2), ([4.0], 3)]),
        ({"a.b": ["x", "y"], "c": [2, 3]}, {"inputs": "a.b", "labels": "c"}, [("x", 2), ("y", 3)]),
    ],
)
def test_a_parquet_file_is_read(tmp_path, columns, named, expected):
    pytest.importorskip("pyarrow")
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    assert rows(readers.read(tmp_path / "a.parquet", **named)) == expected


SPLITS = {"train": [("ab", 0), ("cd", 1)], "validation": [("ef", 1)], "test": [("gh", 0)]}
SPLIT_ROWS = [(*row, split) for split, held in SPLITS.items() for row in held]


def csv(rows):
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "val.csv", "test.csv"),
        ("basic_train.csv", "basic_valid.csv", "basic_test.csv"),
        ("My_TRAIN.csv", "My-dev.CSV", "My.test.csv"),
        ("train-00000-of-00001.csv", "validation-00000-of-00001.csv", "test-00000-of-00001.csv"),
    ],
)
def test_a_folder_holds_a_table_per_split(tmp_path, names):
    write(tmp_path, {name: csv(held) for name, held in zip(names, SPLITS.values(), strict=True)})
    write(tmp_path, {"README.md": "# Train", ".hidden_train.csv": "", "other/x.csv": ""})
    table = readers.read(tmp_path)
    assert rows(table) == SPLIT_ROWS
    assert (table.inputs, table.labels, table.words) == ("text", "label", False)


def test_the_files_of_splits_are_read_as_one_table(tmp_path):
    one = {"train-00000-of-00002.csv": csv([("[1]", 7)]), "train-00001-of-00002.csv": csv([("[2]", "NA")])}
    write(tmp_path, one)
    assert rows(readers.read(tmp_path)) == [("[1]", 7), ("[2]", None)]
    write(tmp_path, {"test.csv": "split,label,text\ntest,x,[0.5]\n"})
    assert rows(readers.read(tmp_path)) == [("[1]", "7", "train"), ("[2]", None, "train"), ("[0.5]", "x", "test")]


def test_listops_of_the_long_range_arena(tmp_path):
    for split, expression in {"train": "( ( ( [MAX 1 ) [SM 2 3 ] ) ] )", "val": "( [MED 4 ] )", "test": "5"}.items():
        write(tmp_path, {f"basic_{split}.tsv": f"Source\tTarget\n{expression}\t{len(split)}\n"})
    table = readers.read(tmp_path)
    assert table.words
    assert rows(table) == [
        ("[MAX 1 [SM 2 3 ] ]", 5, "train"),
        ("[MED 4 ]", 3, "validation"),
        ("5", 4, "test"),
    ]
    assert (table.inputs, table.labels) == ("Source", "Target")
    assert readers.read(tmp_path, "Source", "Target").words


def pathfinder(folder, metadata):
    write(folder, {f"imgs/{part}/sample_{i}.png": image(value=10 * part + i) for part in (0, 1) for i in (0, 1)})
    write(folder, {f"metadata/{name}.npy": content for name, content in metadata.items()})


FIELDS = [["imgs/0", "sample_1.png", "1", "0", "1.8"], ["imgs/0", "sample_0.png", "0", "1", "1.8"]]


@pytest.mark.parametrize("form", ["official", "fields", "lines", "bytes"])
def test_pathfinder_of_the_long_range_arena(tmp_path, form):
    pathfinder(tmp_path, {"0": "".join(f"{' '.join(line)}\n" for line in FIELDS), "1": "imgs/1 sample_1.png 1 1 1.8\n"})
    if form != "official":
        array = {"fields": FIELDS, "lines": list(map(" ".join, FIELDS)), "bytes": np.array(FIELDS, "S")}[form]
        np.save(tmp_path / "metadata/0.npy", array)
    table = readers.read(tmp_path)
    assert [(cell[0][0], label) for cell, label in rows(table)] == [(1, 0), (0, 1), (11, 1)]
    assert (table.inputs, table.labels) == ("image", "label")
    assert table.frame["image"][0].shape == (2, 3)
    assert table.frame["image"][0].dtype == np.uint8


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "pixel"),
    [
        ("L", 7, "png", 7),
        ("1", 1, "png", 255),
        ("L", 7, "bmp", 7),
        ("L", 7, "tif", 7),
        ("L", 7, "JPEG", 7),
        ("LA", (7, 1), "png", 7),
        ("RGB", (1, 2, 3), "png", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 0), "png", [1, 2, 3]),
        ("P", 0, "png", [0, 0, 0]),
        ("P", 0, "gif", [0, 0, 0]),
    ],
)
def test_images_are_grey_or_rgb(tmp_path, mode, value, suffix, pixel):
    write(tmp_path, {f"{label}/a.{suffix}": image(mode, value=value) for label in ("cat", "dog")})
    table = readers.read(tmp_path)
    assert table.frame["label"].tolist() == ["cat", "dog"]
    first = table.frame["image"][0]
    assert (first.dtype, first.shape[:2], first[0, 0].tolist()) == (np.uint8, (2, 3), pixel)


def test_a_palette_with_transparency_gives_colours(tmp_path):
    cell = image("P")
    cell.putpalette([9, 8, 7] * 256)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cell.save(tmp_path / name / "x.png", transparency=bytes([0] * 256))
    assert readers.read(tmp_path).frame["image"][1][1, 2].tolist() == [9, 8, 7]


def test_class_folders_may_be_in_folders_of_splits(tmp_path):
    files = [
        ("test", "b", "1", 6),
        ("train", "b", "1", 4),
        ("train", "a", "9", 3),
        ("train", "a", "10", 2),
        ("Val", "a", "0", 5),
    ]
    write(tmp_path, {f"{split}/{label}/{name}.png": image(value=value) for split, label, name, value in files})
    write(tmp_path, {"train/a/.hidden": "", "train/b/Thumbs.db": "", "notes.txt": "", ".cache/x/y.png": ""})
    table = readers.read(tmp_path)
    assert [(cell[0][0], *row) for cell, *row in rows(table)] == [
        (2, "a", "train"),
        (3, "a", "train"),
        (4, "b", "train"),
        (5, "a", "validation"),
        (6, "b", "test"),
    ]
    assert rows(readers.read(tmp_path, "image", "label")) == rows(table)


def test_reviews_are_bytes_and_unsup_has_no_label(tmp_path):
    texts = {"train/neg/0_1.txt": b"Awful \xe9", "train/pos/0_9.txt": b"Yes\r\n", "train/unsup/0_0.txt": b"Well"}
    texts |= {"test/neg/10_2.txt": b"no", "test/neg/9_2.txt": b"bad", "test/pos/0_7.txt": "très".encode()}
    write(tmp_path, texts | {"imdbEr.txt": "0.1\n", "README": "", "train/urls_neg.txt": "", "train/unsupBow.feat": ""})
    assert rows(readers.read(tmp_path)) == [
        (b"Awful \xe9", "neg", "train"),
        (b"Yes\r\n", "pos", "train"),
        (b"Well", None, "train"),
        (b"no", "neg", "test"),
        (b"bad", "neg", "test"),
        ("très".encode(), "pos", "test"),
    ]


def test_class_folders_without_test_files_are_not_split(tmp_path):
    write(tmp_path, {"train/001/x.txt": "a", "train/NA/x.txt": "b"})
    assert rows(readers.read(tmp_path)) == [(b"a", "001"), (b"b", "NA")]


MANY = ",".join(f"x{i}" for i in range(30))


@pytest.mark.parametrize(
    ("files", "named", "message"),
    [
        ({}, {}, "a.csv: no such file; tried"),
        ({"a.csv": ""}, {}, "a.csv: is empty"),
        ({"a.csv": "text,label\n"}, {}, "a.csv: has no rows"),
        ({"a.csv": "Text,label\na,1\n"}, {}, "a.csv: has no column 'text'; columns: Text, label"),
        ({"a.csv": TEXTS}, {"labels": "y"}, "a.csv: has no column 'y'; columns: text, label"),
        (
            {"a.csv": TEXTS},
            {"inputs": "label"},
            "column 'label' cannot hold both sequences and labels; columns: text, label",
        ),
        ({"a.csv": "text,text,label\na,b,1\n"}, {}, "a.csv: has 2 columns 'text'; columns: text, text, label"),
        ({"a.csv": f"{MANY}\n" + MANY}, {}, ", x19 ... (30 columns)"),
        ({"a.csv": TEXTS}, {"inputs": "pixel*"}, "a.csv: has no columns 'pixel*'; columns: text, label"),
        ({"a.csv": "text,label\na,1,2\n"}, {}, "a.csv: line 2 has 3 fields: must have 2"),
        ({"a.csv": 'text,label\n"a\nb",1\nc\n'}, {}, "a.csv: line 4 has 1 fields: must have 2"),
        ({"a.csv": 'text,label\na,1\n"b"c,1\n'}, {}, "a.csv: line 3 cannot be read (',' expected after '\"')"),
        ({"a.csv": 'text,label\n"a,1\n'}, {}, "a.csv: line 2 cannot be read (unexpected end of data)"),
        ({"a.csv": "text,label\né,1\n".encode("latin-1")}, {}, "a.csv: not UTF-8 text (holds b'\\xe9')"),
        ({"a.csv": "text,label\n,1\na,2"}, {}, "a.csv: 1 sequence without tokens, first in row 0"),
        (
            {"a.csv": "text,label,split\na,1,fold\nb,2,test"},
            {},
            "split holds fold; valid: train, validation, test",
        ),
        (
            {"a.csv": "x1,x2,label\n1,2,3\n1,b,3\n"},
            {"inputs": "x*"},
            "a.csv: column 'x2', row 1 holds 'b': must be a number",
        ),
        ({"a.csv": "x1,x2,label\n,NA,3\n1,2,4"}, {"inputs": "x*"}, "1 sequence without tokens, first in row 0"),
        (
            {"a.csv": "text,label\n[1],0\n[1; 2],0\n"},
            {},
            "column 'text', row 1 holds '[1; 2]': not a list such as [1, 2]",
        ),
        (
            {"a.csv": 'text,label\n[1],0\n"[[1], [2]]",1\n'},
            {},
            "column 'text', row 1 holds '[[1], [2]]': not a list such as [1, 2]",
        ),
        ({"a.csv": 'text,label\n[1],0\n"[1, None]",0\n'}, {}, "column 'text', row 1 holds '[1, None]': not a list"),
        ({"a.csv": f"text,label\n[1],0\n{'[' * 99999}],1\n"}, {}, "column 'text', row 1 holds '[[[[["),
        ({"a.csv": "text,label\n[],0\n[1],1"}, {}, "1 sequence without tokens, first in row 0"),
        (
            {"a.csv": "Source,Target\na,b\n"},
            {},
            "has no column 'label'; columns: Source, Target",
        ),
        (
            {"a.jsonl": '{"text": "a", "label": 1}\n{"text"\n'},
            {},
            "a.jsonl: line 2 is not JSON (Expecting ':' delimiter)",
        ),
        ({"a.jsonl": "[" * 100_000}, {}, "a.jsonl: line 1 is not JSON ("),
        ({"a.jsonl": "[1]\n"}, {}, "a.jsonl: line 1 holds [1]: must be one JSON object"),
        ({"a.jsonl": [{"text": "a"}]}, {}, "a.jsonl: has no column 'label'; columns: text"),
        (
            {"a.jsonl": [{"text": "a", "label": 1}, {"label": 2}]},
            {},
            "1 sequence without tokens, first in row 1",
        ),
        (
            {"a.jsonl": [{"text": 5, "label": 1}]},
            {},
            "column 'text', row 0 holds int: must be text, a list of ids or numbers, or an image",
        ),
        ({"a.jsonl": [{"text": [True], "label": 1}]}, {}, "row 0 holds list: must be text, a list of ids"),
        (
            {"a.jsonl": [{"text": "a", "label": [1]}]},
            {},
            "labels in column 'label', row 0 holds list: must be one label",
        ),
        ({"a.parquet": "PAR1"}, {}, "a.parquet: not a complete .parquet file ("),
        ({"a.json": "{}"}, {}, "a.json: must be a folder or end in .csv, .tsv, .jsonl, .parquet, .ts"),
    ],
)
def test_invalid_table_files_are_refused_in_one_line(tmp_path, files, named, message):
    if "a.parquet" in files:
        pytest.importorskip("pyarrow")
    write(tmp_path, files)
    with pytest.raises(UsageError) as caught:
        source(str(tmp_path / next(iter(files), "a.csv")), named).build(0)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_a_parquet_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    write(tmp_path, {"a.parquet": ""})
    with pytest.raises(UsageError, match="a.parquet: reading .parquet files needs pyarrow: pip install pyarrow"):
        readers.read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("files", "named", "message"),
    [
        (
            {"data.csv": TEXTS},
            {},
            ": must hold one folder per class, one per split with one per class in it, or one table",
        ),
        (
            {"train.csv": TEXTS, "more.csv": TEXTS},
            {},
            "more.csv: the name must end in a split, as of other files here (train,",
        ),
        ({"train.csv": TEXTS, "contest.csv": TEXTS}, {}, "contest.csv: the name must end in a split"),
        ({"train.csv": TEXTS, "test.tsv": TEXTS}, {}, ": holds .csv, .tsv files: must hold tables of one format"),
        (
            {"val.csv": TEXTS, "dev.csv": TEXTS},
            {},
            ": the split validation must be one file, or all its parts -I-of-N; holds dev.csv, val.csv",
        ),
        ({"test-00000-of-00002.csv": TEXTS}, {}, "or all its parts -I-of-N; holds test-00000-of-00002.csv"),
        ({"train.csv": TEXTS, "test.csv": "text,y\na,1\n"}, {}, "test.csv: has no column 'label'; columns: text, y"),
        (
            {"train.csv": "text,label\n[1],0\n", "test.csv": "text,label\n[1; 2],0\n"},
            {},
            "column 'text', row 1 holds '[1; 2]': not a list such as [1, 2]",
        ),
        ({"test.csv": "text,label,split\na,1,train\n"}, {}, "test.csv: its column 'split' holds train, not test"),
        ({"a/x.txt": "a", "b/x.txt": "b"}, {"inputs": "image"}, ": has no column 'image'; columns: text, label"),
        ({"a/x.png": image(), "b/x.png": image()}, {"labels": "y"}, ": has no column 'y'; columns: image, label"),
        ({"a/x.png": image(), "b/x.txt": "b"}, {}, "b/x.txt: the files of the classes must all be images (.bmp, .gif,"),
        ({"a/x.txt": "a", "a/x.py": "b"}, {}, "a/x.py: the files of the classes must all be images (.bmp"),
        (
            {"a/x.txt": "a", "b/c/x.txt": "b"},
            {},
            "b: holds c, which is not a file: a class folder must hold only files",
        ),
        ({"a/x.txt": "a", "b/.keep": ""}, {}, "b: holds no files of its class"),
        ({"a/x.txt": "a", "b/x.txt": ""}, {}, "1 sequence without tokens, first in row 1"),
        ({"train/x.txt": "a"}, {}, "train: must hold one folder per class"),
        (
            {"train/a/x.txt": "a", "cat/x.txt": "a"},
            {},
            ": has folders of splits (train) and others (cat): must have one kind",
        ),
        ({"val/a/x.txt": "a", "dev/a/x.txt": "a"}, {}, ": both dev and val are folders of the split validation"),
        (
            {"a/x.png": image(), "b/x.png": image(), "b/y.png": image(size=(5, 4))},
            {},
            "b/y.png: has 4 x 5 pixels (grey), but ",
        ),
        (
            {"a/x.png": image(), "b/x.png": image("RGB")},
            {},
            "x.png has 2 x 3 pixels (grey): all images must have the same size and colours",
        ),
        ({"a/x.png": image(), "b/x.png": b""}, {}, "b/x.png: not an image that can be read (UnidentifiedImageError)"),
        ({"a/x.png": BROKEN}, {}, "a/x.png: not an image that can be read ("),
        (
            {"a/x.png": saved(image().save, "PCX")},
            {},
            "a/x.png: not an image that can be read (",
        ),
        (
            {"a/x.png": image("I;16")},
            {},
            "a/x.png: is an image of mode I;16: must be grey or RGB with 8 bits per colour",
        ),
        ({"a/x.gif": ANIMATION}, {}, "a/x.gif: has several frames: must be one image"),
        (
            {"metadata/0.npy": "imgs/0 x.png 1\n"},
            {},
            "0.npy: line 1 is 'imgs/0 x.png 1': must be FOLDER NAME NUMBER LABEL ...",
        ),
        ({"metadata/0.npy": "imgs/0 x.png 1 2\n"}, {}, "0.npy: line 1 is 'imgs/0 x.png 1 2': must be FOLDER"),
        ({"metadata/0.npy": "imgs/0 y.png 1 1\n"}, {}, "imgs/0/y.png: no such image, or an empty file; "),
        ({"metadata/0.npy": "imgs/0 x.png 1 1\n"}, {}, "metadata/0.npy lists it in line 1"),
        ({"metadata/0.npy": b"\xff\n"}, {}, "0.npy: neither text nor an array of strings [image, field] ("),
        (
            {"metadata/0.npy": PICKLED},
            {},
            "0.npy: neither text nor an array of strings [image, field] (Object arrays cannot be loaded",
        ),
        ({"metadata/0.npy": saved(np.save, np.array("imgs/0"))}, {}, "an array of strings [image, field] (shape ())"),
        ({"metadata/0.npy": "\n\nimgs/0 x.png\n"}, {}, "0.npy: line 3 is 'imgs/0 x.png'"),
        ({"metadata/0.npy": ""}, {}, "metadata: lists no images"),
        ({"metadata/0.txt": ""}, {}, "metadata: holds no .npy files"),
    ],
)
def test_folders_of_another_layout_are_refused_in_one_line(tmp_path, files, named, message):
    write(tmp_path, files)
    if (tmp_path / "metadata").exists():
        write(tmp_path, {"imgs/0/x.png": b""})
    with pytest.raises(UsageError) as caught:
        source(str(tmp_path), named).build(0)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


SERIES = "# comment\n@problemName X\n@timeStamps false\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n7,8:9,?:b\n"


def test_time_series_are_tokens_with_channels(tmp_path):
    write(tmp_path / "X", {"X_TRAIN.ts": SERIES, "X_TEST.ts": SERIES, "X_eq_TRAIN.ts": "", "X_eq_TEST.ts": ""})
    found = rows(readers.read(tmp_path / "X"))
    series = [([[1, 4], [2, 5], [3, 6]], "a"), ([[7, 9], [8]], "b")]
    assert found == [(*row, split) for split in ("train", "test") for row in series]
    write(tmp_path, {"x.ts": SERIES.replace("?", "0") + "7,8:9,0:b\n1,2:3,4:a\n"})
    task = source(str(tmp_path / "x.ts")).build(0)
    assert (task.data.n, task.data.channels, task.data.class_names) == (3, 2, ("a", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SERIES.replace("true a b", "false"), "line 4 is '@classlabel false': must be @classlabel true"),
        (SERIES.replace("Stamps false", "Stamps true"), "line 3 is '@timestamps true': must be @timestamps false"),
        (SERIES.replace("7,8", "7,x"), "line 7: could not convert string to float: 'x'"),
        (SERIES.replace("7,8", "7"), "line 7 has channels of [1, 2] values: must have the same number in all"),
        (SERIES.split("1,2")[0], "holds no series after a line @data"),
        (SERIES, "values hold nan in row 1, token 1: NaN is allowed only as padding"),
    ],
)
def test_invalid_time_series_are_refused_in_one_line(tmp_path, content, message):
    write(tmp_path, {"x.ts": content})
    with pytest.raises(UsageError) as caught:
        source(str(tmp_path / "x.ts")).build(0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
