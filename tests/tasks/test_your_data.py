"""What is read from each source of data with each trait, or the line that refuses it."""

import json
import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.tasks import Task, source
from attnprobe.tasks.labels import NONE
from attnprobe.tasks.sequences import Sequences, concatenated

pytestmark = pytest.mark.filterwarnings("ignore:.* sequences? ha(s|ve) the label")
"""Tiny data lack classes; the warnings have their own test."""


# --- sources: how data of every trait lie in them


def frame_of(data):
    columns = {"text": pd.Series(data.inputs, dtype=object), "label": pd.Series(data.labels, dtype=object)}
    return pd.DataFrame(columns | ({"split": data.split} if data.split else {}))


def from_arrays(data):
    kind = "values" if data.real else "tokens"
    split = {"split": data.split} if data.split else {}
    return Task.from_arrays(**{kind: data.inputs}, labels=data.labels, **split, **data.options)


def from_npz(data):
    longest = max(len(row) for row in data.inputs)
    padded = np.zeros((len(data.inputs), longest, *np.shape(data.inputs[0])[1:]), float if data.real else int)
    for row, values in zip(padded, data.inputs, strict=True):
        row[: len(values)] = values
    labels = data.labels
    if any(label is None for label in labels):  # an .npz file holds no objects
        texts = any(isinstance(label, str) for label in labels)
        labels = ["" if label is None else label for label in labels] if texts else np.array(labels, float)
    arrays = {"values" if data.real else "tokens": padded, "labels": labels}
    arrays["lengths"] = [len(row) for row in data.inputs]
    np.savez("mine.npz", **arrays, **({"split": data.split} if data.split else {}))
    return source("mine.npz", data.options).build(0)


def from_frame(data):
    return Task.from_table(frame_of(data), **data.options)


def from_hugging_face(data):
    datasets = pytest.importorskip("datasets")
    columns = {name: frame_of(data)[name].tolist() for name in frame_of(data)}
    return Task.from_table(datasets.Dataset.from_dict(columns), **data.options)


def from_csv(data, separator=",", name="mine.csv"):
    frame_of(data).to_csv(name, sep=separator, index=False)
    return source(name, data.options).build(0)


def from_tsv(data):
    return from_csv(data, "\t", "mine.tsv")


def from_jsonl(data):
    rows = frame_of(data).to_dict("records")
    with open("mine.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return source("mine.jsonl", data.options).build(0)


def from_parquet(data):
    pytest.importorskip("pyarrow")
    frame = frame_of(data)
    if all(isinstance(label, int | float | None) for label in data.labels):
        frame["label"] = pd.array(data.labels, dtype="Float64")
    frame.to_parquet("mine.parquet")
    return source("mine.parquet", data.options).build(0)


SOURCES = {
    "arrays": from_arrays,
    "npz": from_npz,
    "DataFrame": from_frame,
    "Hugging Face": from_hugging_face,
    "csv": from_csv,
    "tsv": from_tsv,
    "jsonl": from_jsonl,
    "parquet": from_parquet,
}
TABLES = ("DataFrame", "Hugging Face", "csv", "tsv", "jsonl", "parquet")


# --- traits


@dataclass
class Data:
    inputs: list
    labels: list
    split: list | None = None
    options: dict = field(default_factory=dict)
    real: bool = False
    only: tuple[str, ...] = tuple(SOURCES)
    """Sources that can hold such data."""
    read: list | None = None
    """(sequence, label, split) of all rows, sorted, without split if it is drawn; None if the rows as they are."""
    refused: str | None = None
    warns: str | None = None


IDS = [[1, 2, 3], [2, 1], [3, 3, 1, 2], [1]] * 3
ROWS = len(IDS)
SPLIT = ["train", "train", "test", "test"] * 3
YES = ["yes", "no"] * (ROWS // 2)
WAVES = [[float(np.sin(t + row)) * 1e4 + 1e3 for t in range(6)] for row in range(ROWS)]
CHANNELS = [[[t + row, 10.0 * row - t**2] for t in range(3)] for row in range(ROWS)]
NAN = float("nan")


def but(values, *changes):
    values = list(values)
    for index, value in changes:
        values[index] = value
    return values


def kept(rows, inputs=IDS, labels=YES, split=SPLIT):
    return [(inputs[row], labels[row], split[row]) for row in range(ROWS) if row in rows]


TRAITS = {
    "text labels": Data(IDS, YES, SPLIT),
    "labels from 1": Data(IDS, [1, 2] * 6, SPLIT),
    "labels that skip": Data(IDS, [3, 7] * 6, SPLIT),
    "labels as whole floats": Data(IDS, [3.0, 7.0] * 6, SPLIT, read=kept(range(12), labels=[3, 7] * 6)),
    "missing label": Data(
        IDS, but(YES, (1, None)), SPLIT, refused="1 sequence without a label, first in row 1: unlabelled='drop'"
    ),
    "missing label, drop": Data(
        IDS, but(YES, (1, None), (2, None)), SPLIT, {"unlabelled": "drop"}, read=kept({0, *range(3, 12)})
    ),
    "missing label, pretrain": Data(
        IDS,
        but(YES, (1, None), (2, None)),
        SPLIT,
        {"unlabelled": "pretrain"},
        read=[*kept({0, *range(3, 12)}), (IDS[1], None, "unlabelled")],
    ),
    "negative label": Data(IDS, [0, -1, 1] * 4, SPLIT, refused="4 sequences without a label, first in row 1"),
    "negative label, drop": Data(
        IDS,
        [0, -1, 1] * 4,
        SPLIT,
        {"unlabelled": "drop"},
        read=kept({0, 2, 3, 5, 6, 8, 9, 11}, labels=[0, -1, 1] * 4),
    ),
    "real labels": Data(IDS, [0.5, 1.25, 3.0] * 4, SPLIT, refused="hold real numbers (0.5): must be classes"),
    "all labels differ": Data(IDS, list(range(100, 112)), SPLIT, refused="are all different (100, 101, ...)"),
    "one class": Data(IDS, ["yes"] * 12, SPLIT, refused="hold 1 class: must be 2 ..."),
    "class without training sequences": Data(
        IDS, but(YES, (2, "rare")), SPLIT, warns="no training sequence has the label rare"
    ),
    "labels that differ in case": Data(
        IDS, ["yes", "Yes", "no", "maybe"] * 3, SPLIT, warns="the labels 'Yes', 'yes' differ in case or Unicode form"
    ),
    "labels that differ in Unicode form": Data(
        IDS, ["yes", "caf\u00e9", "yes", "cafe\u0301"] * 3, SPLIT, warns="differ in case or Unicode form only: 2"
    ),
    "one class in test": Data(
        IDS, ["a", "b", "a", "a"] * 3, SPLIT, warns="all test sequences have the label a"
    ),
    "empty rows": Data(
        but(IDS, (1, []), (4, [])), YES, SPLIT, refused="2 sequences without tokens, first in row 1: empty='drop'"
    ),
    "empty rows, drop": Data(
        but(IDS, (1, []), (4, [])), YES, SPLIT, {"empty": "drop"}, read=kept(set(range(12)) - {1, 4})
    ),
    "cut": Data(IDS, YES, SPLIT, {"n": 2}, read=[(row[:2], *rest) for row, *rest in kept(range(12))]),
    "long tail": Data(
        but(IDS, (3, [1] * 5000)), YES, SPLIT, refused="row 3 has 5,000 tokens, but 99 % of the sequences have"
    ),
    "long tail, cut": Data(
        but(IDS, (3, [1] * 5000)), YES, SPLIT, {"n": 5}, read=kept(range(12), inputs=but(IDS, (3, [1] * 5)))
    ),
    "id gaps": Data([[id_ * 1000 for id_ in row] for row in IDS], YES, SPLIT),
    "negative ids": Data(but(IDS, (1, [1, -2])), YES, SPLIT, refused="tokens hold -2: must be 0 or more"),
    "unknown split": Data(IDS, YES, but(SPLIT, (0, "fold 1")), refused="split holds fold 1; valid: train, validation"),
    "short split names": Data(
        IDS,
        YES,
        but(SPLIT, (0, "val"), (1, "dev")),
        read=kept(range(12), split=but(SPLIT, (0, "validation"), (1, "validation"))),
    ),
    "no test sequences": Data(IDS, YES, ["train"] * 12, refused="split has no test sequences; it has train"),
    "raw scale": Data(WAVES, YES, SPLIT, real=True),
    "channels": Data(CHANNELS, YES, SPLIT, real=True, only=("arrays", "npz", "DataFrame", "Hugging Face", "jsonl")),
    "NaN as padding": Data(
        but(WAVES, (2, [1.0, 2.0, NAN, NAN])),
        YES,
        SPLIT,
        real=True,
        only=("arrays", "DataFrame", "Hugging Face"),
        read=kept(range(12), inputs=but(WAVES, (2, [1.0, 2.0]))),
    ),
    "NaN elsewhere": Data(
        but(WAVES, (2, [1.0, NAN, 2.0])), YES, SPLIT, real=True, refused="values hold nan in row 2, token 1",
        only=("arrays", "npz", "DataFrame", "Hugging Face"),
    ),
    "infinite": Data(
        but(WAVES, (2, [1.0, float("inf"), 2.0])), YES, SPLIT, real=True, refused="values hold inf in row 2, token 1",
        only=("arrays", "npz", "DataFrame", "Hugging Face"),
    ),
    "text": Data(["ab", "c", "Zoë", "d e"] * 3, YES, SPLIT, only=TABLES),
    "numbers as text": Data(["007", "12", "NA", "null"] * 3, YES, SPLIT, only=TABLES),
    "words": Data(["to be", "or not", "to", "be or"] * 3, YES, SPLIT, {"tokens": "words"}, only=TABLES),
    "unknown words": Data(
        ["to be", "or not", "to question", "be or"] * 3,
        YES,
        SPLIT,
        {"tokens": "words"},
        only=TABLES,
        read=kept(range(12), inputs=["to be", "or not", "to <unk>", "be or"] * 3),
    ),
    "column that is absent": Data(
        ["a", "b"] * 6, YES, SPLIT, {"inputs": "txt"}, only=TABLES, refused="'txt'"
    ),
}  # fmt: skip


def content(task):
    """Return (sequence, label, split) of all rows, as the user knows them."""
    names, symbols = task.data.class_names or range(task.data.classes), task.data.symbols
    found = []
    for name, split in task.all_splits.items():
        lengths = np.full(len(split), task.data.n) if split.lengths is None else split.lengths
        for row, length in enumerate(lengths):
            sequence = split.inputs[row, :length].tolist()
            if symbols:
                sequence = [symbols[number] for number in sequence]
                words = any(not symbol.isdigit() for symbol in symbols)
                sequence = " ".join(sequence) if words else [int(symbol) for symbol in sequence]
            elif task.data.vocabulary == 256:
                sequence = bytes(sequence).decode()
            label = int(split.labels[row])
            found.append((sequence, None if label == NONE else str(names[label]), name))
    return sorted(found, key=repr)


CASES = [(kind, trait) for trait, data in TRAITS.items() for kind in SOURCES if kind in data.only]


@pytest.mark.parametrize(("kind", "trait"), CASES, ids=[f"{trait}-{kind}" for kind, trait in CASES])
def test_every_trait_is_read_alike_from_every_source_or_refused_in_one_line(here, kind, trait):
    data = TRAITS[trait]
    if data.refused:
        with pytest.raises(UsageError) as caught:
            SOURCES[kind](data)
        assert data.refused in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = SOURCES[kind](data)
    messages = [str(warning.message) for warning in caught]
    assert messages == [] if data.warns is None else any(data.warns in message for message in messages)
    rows = data.read or [(data.inputs[row], data.labels[row], data.split[row]) for row in range(ROWS)]
    expected = [(row, None if label is None else str(label), split) for row, label, split in rows]
    assert content(task) == sorted(expected, key=repr)
    assert content(saved(task)) == content(task)
    assert saved(task).fingerprint == task.fingerprint


def saved(task):
    task.save("again.npz")
    return source("again.npz").build(0)


# --- what networks see


@pytest.mark.parametrize("inputs", [WAVES, CHANNELS], ids=["values", "channels"])
@pytest.mark.parametrize(("factor", "shift"), [(1, 0), (1e4, 0), (1, 1e6), (1e-6, 1)])
def test_networks_see_values_of_mean_0_and_variance_1_whatever_their_unit(inputs, factor, shift):
    values = np.array(inputs) * factor + shift
    task = Task.from_arrays(values=values, labels=YES, split=SPLIT)
    seen = task.train.tensor().double().flatten(0, 1)
    assert np.allclose(seen.mean(0), 0, atol=1e-6)
    assert np.allclose(seen.std(0, correction=0), 1, atol=1e-6)
    original = Task.from_arrays(values=inputs, labels=YES, split=SPLIT)
    assert np.allclose(original.test.tensor(), task.test.tensor(), atol=1e-5), "units change nothing"
    raw = Task.from_arrays(values=values, labels=YES, split=SPLIT, standardise="none")
    assert (raw.data.mean, raw.data.std) == ((), ())
    assert np.allclose(np.asarray(raw.test.inputs), raw.test.tensor(), rtol=1e-6)


def test_only_the_training_split_and_only_its_tokens_set_the_scale():
    values = [[1.0, 3.0], [5.0], [1e9, 1e9, 1e9]] * 4
    task = Task.from_arrays(values=values, labels=[0, 1, 0] * 4, split=["train", "train", "test"] * 4)
    assert task.data.mean == (3.0,)
    assert task.data.std == pytest.approx((np.sqrt(8 / 3),))
    padding = task.train.tensor()[:, 1:]
    assert (padding[task.train.lengths == 1] == 0).all()


def test_constant_channels_are_stated_and_only_centred():
    values = np.stack([np.array(WAVES), np.full((ROWS, 6), 7.0)], axis=2)
    task = Task.from_arrays(values=values, labels=YES, split=SPLIT)
    assert (task.test.tensor()[..., 1] == 0).all()
    assert "constant in the training split: channel 1" in task.notes


def test_the_drawn_split_has_the_shares_of_the_classes():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2, 3], [100, 50, 20, 1]))
    task = Task.from_arrays(tokens=rng.integers(5, size=(171, 4)), labels=labels)
    counts = np.bincount(task.test.labels, minlength=4)
    assert abs(counts - np.array([20, 10, 4, 0])).max() <= 1
    assert counts.sum() == 34
    assert counts[3] == 0, "a single sequence is needed for training"
    assert "split drawn by class: 137 train, 34 test (test_share 0.2)" in task.notes


def test_sequences_are_padded_only_when_they_are_read():
    rows = [[1] * 3] * 500 + [[1] * 10**6]
    task = Task.from_arrays(tokens=rows, labels=[0, 1] * 250 + [1], n=10**6)
    assert task.train.inputs.shape == (len(task.train), 10**6)
    assert task.train.inputs.flat.nbytes < 10**7, "not 501 x 1,000,000 numbers"
    assert task.train.tensor(np.array([0]), 3).tolist() == [[1, 1, 1]]
    with pytest.raises(UsageError, match=r"row 500 has 1,000,000 tokens, but 99 % .* n=3 cuts longer ones, n=1000000"):
        Task.from_arrays(tokens=rows, labels=[0, 1] * 250 + [1])


def test_large_files_are_memory_mapped_and_read_alike(here, monkeypatch):
    from attnprobe.tasks import arrays

    values = np.random.default_rng(0).normal(size=(40, 6, 2))
    np.savez("mine.npz", values=values, labels=np.arange(40) % 2)
    in_memory = source("mine.npz").build(0)
    monkeypatch.setattr(arrays, "MAPPED", 1)
    mapped = source("mine.npz").build(0)
    assert isinstance(in_memory.train.inputs.flat, np.ndarray) and not isinstance(
        in_memory.train.inputs.flat, np.memmap
    )
    base = mapped.train.inputs.flat
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.mode == "r"
    assert mapped.fingerprint == in_memory.fingerprint
    np.savez_compressed("mine.npz", values=values, labels=np.arange(40) % 2)
    assert source("mine.npz").build(0).fingerprint == in_memory.fingerprint


def test_a_task_does_not_change_with_the_users_array():
    values = np.random.default_rng(0).normal(size=(40, 6))
    task = Task.from_arrays(values=values, labels=np.arange(40) % 2)
    before = task.test.tensor().clone()
    values *= 7
    assert (task.test.tensor() == before).all()


# --- images


IMAGES = np.random.default_rng(0).integers(256, size=(12, 4, 6, 3), dtype=np.uint8)


def patch(image, row, column, side):
    """Return the channels of a patch of an image, slowly."""
    return [
        value
        for y in range(row * side, (row + 1) * side)
        for x in range(column * side, (column + 1) * side)
        for value in np.atleast_1d(image[y, x]).tolist()
    ]


@pytest.mark.parametrize(
    ("images", "side"),
    [(IMAGES[..., 0], 1), (IMAGES[..., 0], 2), (IMAGES, 1), (IMAGES, 2), (IMAGES.transpose(0, 3, 1, 2), 2)],
    ids=["grey", "grey patches", "colour", "colour patches", "colours first"],
)
def test_images_become_patches_on_a_grid(images, side):
    task = Task.from_arrays(images=images, labels=YES, split=SPLIT, patch=side)
    pixels = images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images
    expected = [
        [patch(image, row, column, side) for row in range(4 // side) for column in range(6 // side)]
        for image in pixels[np.array(SPLIT) == "test"]
    ]
    found = np.asarray(task.test.inputs).reshape(6, -1, task.data.channels)
    assert (found == np.array(expected)).all()
    assert task.data.grid == (4 // side, 6 // side)
    assert task.data.channels == side**2 * (3 if images.ndim == 4 else 1)
    assert np.allclose(task.test.tensor().numpy().reshape(found.shape), found / 127.5 - 1, atol=1e-6)
    real = Task.from_arrays(images=images / 7.0, labels=YES, split=SPLIT, patch=side)
    assert len(real.data.mean) == real.data.channels


def image_rows(images):
    return [[tuple(np.atleast_1d(pixel).tolist()) for pixel in image.reshape(24, -1)] for image in images]


@pytest.mark.parametrize("colours", [1, 3])
def test_images_are_read_alike_from_arrays_tables_data_sets_and_folders(here, colours):
    images = IMAGES if colours == 3 else IMAGES[..., 0]
    split, labels = ["train", "test"] * 6, ["cat", "cat", "dog", "dog"] * 3
    for row, image in enumerate(images):
        path = here / "pictures" / split[row] / labels[row] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    files = sorted((here / "pictures").rglob("*.png"), key=lambda path: int(path.stem))
    columns = {"label": labels, "split": split}
    tasks = {
        "arrays": Task.from_arrays(images=images, labels=labels, split=split),
        "Pillow": Task.from_table(pd.DataFrame({"text": [Image.open(file) for file in files], **columns})),
        "folder": source(str(here / "pictures")).build(0),
        "arrays in a table": Task.from_table(pd.DataFrame({"text": list(images), **columns})),
    }
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "split": datasets.Value("string"),
        }
    )
    data = {"image": [str(file) for file in files], **columns}
    dataset = datasets.Dataset.from_dict(data, features=features).map(lambda row: row)
    tasks["Hugging Face"] = Task.from_table(dataset, inputs="image")
    expected = content(tasks["arrays"])
    for name, task in tasks.items():
        assert content(task) == expected, name
        assert task.data.grid == (4, 6), name


def test_arrays_of_hugging_face_data_sets_are_channels_or_patches(here):
    datasets = pytest.importorskip("datasets")
    values = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32)
    features = datasets.Features({"x": datasets.Array2D((4, 6), "float32"), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"x": values, "label": [0, 1] * 4}, features=features)
    channels = Task.from_table(dataset, inputs="x", test_share=0.5)
    assert (channels.data.n, channels.data.channels, channels.data.grid) == (4, 6, None)
    images = Task.from_table(dataset, inputs="x", test_share=0.5, patch=2)
    assert (images.data.n, images.data.channels, images.data.grid) == (6, 4, (2, 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES, "patch": 4}, "patch=4: must divide the 4 rows and 6 columns of images"),
        ({"images": IMAGES[:, :3, :3]}, "the second or the last axis must be 1 or 3 colours"),
        ({"images": IMAGES[..., :2]}, "the second or the last axis must be 1 or 3 colours"),
        ({"images": IMAGES[0]}, "labels of shape (12,): must be [4]"),
        ({"images": IMAGES[0, 0]}, "images of shape (6, 3) and type uint8: must be numbers [image, row, column]"),
        ({"images": np.full((12, 2, 2), np.nan)}, "images hold NaN or infinite numbers"),
        ({"images": IMAGES, "n": 3}, "n=3: cuts sequences, not images"),
        ({"tokens": IDS, "patch": 2}, "patch=2: needs images, or the grid of patches"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_tokens_are_refused(arrays, message):
    with pytest.raises(UsageError) as caught:
        Task.from_arrays(**arrays, labels=YES)
    assert message in str(caught.value)


# --- texts


def test_pairs_of_texts_are_joined_by_a_separator_and_both_are_cut():
    frame = pd.DataFrame({"a": ["one", "two", "x", "abcdefgh"], "b": ["1", "22", "abcdefgh", "x"], "label": [0, 1] * 2})
    task = Task.from_table(frame, inputs="a", pair="b", split=None, test_share=0.5)
    assert task.data.vocabulary == 257
    joined = sorted(tuple(task.all_splits[name].inputs[row, : split.lengths[row]].tolist())
                    for name, split in task.all_splits.items() for row in range(len(split)))  # fmt: skip
    assert joined == sorted((*a.encode(), 256, *b.encode()) for a, b in zip(frame["a"], frame["b"], strict=True))
    cut = Task.from_table(frame, inputs="a", pair="b", n=6, test_share=0.5)
    rows = {
        bytes(i for i in row if i < 256) for split in cut.splits.values() for row in np.asarray(split.inputs).tolist()
    }
    assert rows == {b"one1\0", b"two22"[:5], b"xabcd", b"abcdx"} or rows == {b"one1\0", b"two22", b"xabcd", b"abcdx"}
    with pytest.raises(UsageError, match="no column 'c'"):
        Task.from_table(frame, inputs="a", pair="c")


def test_columns_that_match_a_pattern_are_the_tokens():
    frame = pd.DataFrame({f"t{i}": np.arange(6) * i for i in range(3)} | {"label": [0, 1] * 3})
    task = Task.from_table(frame, inputs="t*", test_share=0.5)
    assert content(task) == sorted(
        [([0, row, 2 * row], str(row % 2), part) for part in ("train", "test") for row in range(6)
         if ([0, row, 2 * row], str(row % 2), part) in content(task)], key=repr)  # fmt: skip
    assert len(content(task)) == 6
    with pytest.raises(UsageError, match=r"has no columns 'x\*'; columns: t0, t1, t2, label"):
        Task.from_table(frame, inputs="x*")


# --- sequences


def test_sequences_read_like_the_padded_array():
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 9, size=length) for length in (3, 1, 5, 2)]
    ragged, padded = Sequences.of_rows(rows), np.zeros((4, 5), int)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
    for key in (
        slice(None),
        2,
        slice(1, 3),
        np.array([3, 0]),
        (slice(None), slice(None, 2)),
        (2, slice(None, 3)),
        (1, 0),
    ):
        assert (ragged[key] == padded[key]).all()
    assert (np.asarray(ragged.select([2, 0])) == padded[[2, 0]]).all()
    assert (np.concatenate(list(ragged.chunks())) == np.concatenate(rows)).all()
    both = concatenated([ragged.select([1]), Sequences.of_array(padded[:1])])
    assert np.asarray(both).tolist() == [padded[1].tolist(), padded[0].tolist()]
    shared = concatenated([ragged.select([1]), ragged.select([3, 0])])
    assert shared.flat is ragged.flat
    assert (np.asarray(shared) == padded[[1, 3, 0]]).all()


def test_facts_of_many_classes_are_abridged_and_class_names_cannot_hide_other_facts(here, capsys):
    from attnprobe.cli import main

    labels = [f"split {number}" for number in range(15)] * 4 + ["sequences"] * 4
    np.savez("mine.npz", tokens=np.zeros((64, 2), int), labels=labels)
    main(["tasks", "mine.npz"])
    output = capsys.readouterr().out
    assert "smallest class largest class" in output
    assert "class_names  sequences, split 0," in output
    main(["tasks", "mine.npz", "--json"])
    train = json.loads(capsys.readouterr().out)["splits"][0]
    assert train["sequences"] == 51
    assert train["class_sequences"] == pytest.approx(3 / 51)


# --- as people write them


def table_file(name, content):
    with open(name, "w") as file:
        file.write(content)
    return name


def read_file(name, content, **options):
    return source(table_file(name, content), options).build(0)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["[1, 2]", "[]", "[3]"], [[1, 2], [3]]),
        (["[np.float64(2.5), np.float64(1.0)]", "[np.float64(0.5)]", "[1.5]"], [[2.5, 1.0], [0.5], [1.5]]),
        (["(1, 2, 3)", "(4,)", "(5, 6)"], [[1, 2, 3], [4], [5, 6]]),
        (["[5 8]", "[ 1  2]", "[3]"], [[5, 8], [1, 2], [3]]),
        (["70 80 82", "1 2 3", "4"], [[70, 80, 82], [1, 2, 3], [4]]),
        (["0.1,0.2", "-1e-3, 3", "4,5"], [[0.1, 0.2], [-0.001, 3], [4, 5]]),
        (["[[1, 2], [3, 4]]", "[[5, 6]]", "[[7.0, 8]]"], [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], [[7.0, 8.0]]]),
        (["12", "007", "1 2"], None),
        (["[MAX 1 2 ]", "[MIN 3 ]", "[1]x"], None),
        (["call 555 1234", "1 2", "3 4"], None),
    ],
)
def test_texts_of_lists_of_numbers_are_these_numbers_and_not_bytes(cells, numbers):
    frame = pd.DataFrame({"text": cells * 4, "label": [0, 1, 0] * 4, "split": ["train", "train", "test"] * 4})
    options = {"empty": "drop", "standardise": "none"}
    task = Task.from_table(frame, **options)
    found = {repr(row) for row, _, _ in content(task)}
    as_bytes = {repr(cell) for cell in cells}
    real = any(isinstance(number, float) for row in numbers or () for number in row)
    assert found == (
        as_bytes if numbers is None else {repr([float(x) for x in row] if real else row) for row in numbers}
    )
    assert ("texts are lists of numbers" in task.notes) == (numbers is not None)
    assert {repr(row) for row, _, _ in content(Task.from_table(frame, kind="text", **options))} == as_bytes


def test_numbers_may_be_declared_as_ids_or_real_values():
    readings = [[100, -3, 5], [7, 8]] * 4
    frame = pd.DataFrame({"text": readings, "label": [0, 1] * 4})
    with pytest.raises(UsageError, match="tokens hold -3: must be 0 or more"):
        Task.from_table(frame)
    task = Task.from_table(frame, kind="values")
    assert (task.data.inputs, task.data.channels, len(task.data.mean)) == ("values", 1, 1)
    assert Task.from_arrays(values=readings, labels=[0, 1] * 4).data == task.data
    ids = pd.DataFrame({"a": [1, 2, 3, 4], "b": [5.0, 6.0, np.nan, 7.0], "label": [0, 1, 0, 1]})
    ids = pd.concat([ids] * 2)
    assert Task.from_table(ids, inputs="[ab]").data.inputs == "values"
    task = Task.from_table(ids, inputs="[ab]", kind="tokens")
    assert sorted(row for row, _, _ in content(task)) == sorted([[1, 5], [2, 6], [3], [4, 7]] * 2)
    with pytest.raises(UsageError, match="kind='tokens': .* holds 0.5, which is no id"):
        Task.from_table(ids.assign(a=0.5), inputs="[ab]", kind="tokens")
    with pytest.raises(UsageError, match="kind='images': column 'text' holds text"):
        Task.from_table(pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}), kind="images")


def test_pixels_in_columns_or_lists_are_images_on_a_grid():
    pixels = np.random.default_rng(0).integers(256, size=(8, 24))
    labels, split = [0, 1] * 4, ["train", "test"] * 4
    columns = pd.DataFrame(pixels, columns=[f"pixel{i}" for i in range(24)]).assign(label=labels, split=split)
    images = Task.from_arrays(images=pixels.reshape(8, 4, 6).astype(np.uint8), labels=labels, split=split, patch=2)
    patched = Task.from_table(columns, inputs="pixel*", grid=(4, 6), patch=2)
    assert patched.fingerprint == images.fingerprint
    assert patched.data == images.data
    lists = pd.DataFrame({"text": pixels.tolist(), "label": labels, "split": split})
    plain = Task.from_table(lists, grid=(4, 6))
    assert (plain.data.grid, plain.data.inputs, plain.data.n) == ((4, 6), "tokens", 24)
    for wrong, message in (
        ({"grid": (5, 5)}, r"grid=\(5, 5\): has 25 pixels, but sequences have 24 ... 24 tokens"),
        ({"patch": 2}, "patch=2: needs images; column 'text' holds numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            Task.from_table(lists, **wrong)


def test_names_of_classes_keep_their_order():
    tokens = [[1], [2], [3], [4]] * 3
    task = Task.from_arrays(tokens=tokens, labels=["cat", "dog", "dog", "cat"] * 3, class_names=["dog", "cat"])
    assert task.data.class_names == ("dog", "cat")
    assert {(row[0], label) for row, label, _ in content(task)} == {(1, "cat"), (2, "dog"), (3, "dog"), (4, "cat")}
    with pytest.raises(UsageError, match="labels hold 'bird': must be one of class_names, dog, cat"):
        Task.from_arrays(tokens=tokens, labels=["bird", "dog", "dog", "cat"] * 3, class_names=["dog", "cat"])


def test_class_names_may_differ_in_order_between_splits(here):
    datasets = pytest.importorskip("datasets")

    def part(names, labels):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)

    both = datasets.DatasetDict({"train": part(["neg", "pos"], [0, 1]), "dev": part(["pos", "neg"], [1, 0])})
    both["test"] = part(["pos", "neg"], [1, 0])
    task = Task.from_table(both)
    assert set(content(task)) == {
        (text, label, name) for name in ("train", "validation", "test") for text, label in (("a", "neg"), ("b", "pos"))
    }


def test_rows_of_the_split_unlabelled_are_kept_without_their_labels():
    split = ["train", "train", "test", "test", "unlabelled", "unsupervised"] * 2
    task = Task.from_arrays(tokens=[[i] for i in range(12)], labels=[0, 1] * 6, split=split)
    assert {name: len(part) for name, part in task.all_splits.items()} == {"train": 4, "test": 4, "unlabelled": 4}
    assert "4 labels of the split unlabelled are not used" in task.notes


@pytest.mark.parametrize("recipe", ["spt", "supervised"])
def test_unlabelled_sequences_are_seen_by_self_pretraining_only(here, recipe):
    tokens = np.random.default_rng(0).integers(5, size=(60, 6))
    labels = [0, 1, None] * 20
    task = Task.from_arrays(tokens=tokens, labels=labels, unlabelled="pretrain")
    settings = {"steps": 6, "evaluations": 1, "checkpoints": 1, "d_model": 8, "batch_size": 60}
    pretrain = {"pretrain_steps": 3} if recipe == "spt" else {}
    ap.train(ap.configure(task, recipe=recipe, **settings, **pretrain), here / recipe, progress=False)
    assert len(task.for_pretraining.train) == len(task.train) + 20
    without = Task.from_arrays(tokens=tokens, labels=labels, unlabelled="drop")
    assert without.train.labels.tolist() == task.train.labels.tolist()


def test_univariate_series_have_no_channel_axis(here):
    series = [[[1.0], [2.0]], [[3.0]], [[4.0], [5.0], [6.0]]] * 4
    task = Task.from_arrays(values=series, labels=[0, 1, 0] * 4)
    assert (task.data.channels, task.train.inputs.ndim) == (1, 2)
    lines = "".join(f"{i}.5,2,{i}:{'ab'[i % 2]}\n" for i in range(10))
    task = read_file("x.ts", f"@problemName x\n@classLabel true a b\n@data\n{lines}")
    assert (task.data.n, task.data.channels) == (3, 1)


def test_ids_are_exact_or_refused():
    big = 2**62 + np.arange(20) * 3
    tokens = np.random.default_rng(0).permutation(big).reshape(10, 2)
    for given in (tokens, tokens.astype(np.uint64), tokens.tolist(), [row.astype(np.uint64) for row in tokens]):
        task = Task.from_arrays(tokens=given, labels=[0, 1] * 5)
        assert task.data.symbols == tuple(map(str, big.tolist()))
    for given in ([[2**63, 3], [1]], np.array([[2**63, 3]] * 2, np.uint64), [[2**64], [1, 2]]):
        with pytest.raises(UsageError, match="must be below 2|must be text, a list of ids"):
            Task.from_arrays(tokens=given, labels=[0, 1])


def test_labels_that_look_alike_stay_apart(here):
    rows = "".join(f"t{i},{label}\n" for i, label in enumerate(["01", "1", "1e1", "10"] * 3))
    assert read_file("a.csv", "text,label\n" + rows).data.class_names == ("01", "1", "10", "1e1")
    padded = "".join(f"t{i},{label}\n" for i, label in enumerate([" 2", "10 ", " 2", "9"] * 3))
    assert read_file("b.csv", "text,label\n" + padded).data.class_names == ("2", "9", "10")
    spaces = pd.DataFrame({"text": list("abcdef"), "label": ["cat", "cat ", "dog"] * 2})
    assert Task.from_table(spaces).data.class_names == ("cat", "dog")
    huge = Task.from_table(pd.DataFrame({"text": list("abcdef"), "label": [2**64, 2**65] * 3}))
    assert huge.data.class_names == (str(2**64), str(2**65))


def test_folders_named_like_missing_values_are_classes(here):
    for label in ("None", "NA"):
        (here / "texts" / label).mkdir(parents=True)
        for i in range(4):
            (here / "texts" / label / f"{i}.txt").write_text(f"{label} {i}")
    task = source("texts").build(0)
    assert task.data.class_names == ("NA", "None")
    assert {row.split()[0] == label for row, label, _ in content(task)} == {True}


def test_files_with_other_delimiters_and_quotes(here):
    rows = [("a, b", 0), ("c", 1)] * 5
    semicolons = "text; label\n" + "".join(f"{text};{label}\n" for text, label in rows)
    assert len(content(read_file("a.csv", semicolons))) == 10
    quotes = ['"so it begins', "plain", 'and ends"', "plain"] * 4
    text = "text\tlabel\n" + "".join(f"{cell}\t{i % 2}\n" for i, cell in enumerate(quotes))
    assert sorted(row for row, _, _ in content(read_file("b.tsv", text))) == sorted(quotes)
    with pytest.raises(UsageError, match="has no column 'label': the first line must hold the names of the columns"):
        read_file("c.csv", "0.5,1,2\n3,4,5\n")


def test_a_pattern_leaves_out_index_and_split_and_says_what_it_takes(here):
    frame = pd.DataFrame(np.arange(40).reshape(20, 2), columns=["x0", "x1"])
    frame["label"], frame["fold"] = [0, 1] * 10, ["train", "test"] * 10
    frame.to_csv("mine.csv")
    task = source("mine.csv", {"inputs": "*", "split": "fold"}).build(0)
    assert task.data.n == 2
    assert "tokens are 2 columns: 'x0', 'x1'" in task.notes


@pytest.mark.parametrize("options", [{}, {"grid": (1, 2)}, {"empty": "drop"}])
def test_sequences_that_are_all_empty_are_refused_in_one_line(options):
    frame = pd.DataFrame({"text": ["[]", "[ ]", "()", "[]"], "label": [0, 1, 0, 1]})
    with pytest.raises(UsageError, match="4 sequences without tokens|sequences have no tokens|no sequences are left"):
        Task.from_table(frame, **options)
