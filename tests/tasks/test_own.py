import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support import TINY

import attnprobe as ap
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.tasks import Split, Task, folder, own, source

pytestmark = pytest.mark.filterwarnings("ignore:.* sequences? ha(s|ve) the label")
"""Tiny data lack classes; the warnings have their own test."""

GOOD = {"tokens": [[0, 1, 2], [2, 1, 0], [1, 1, 1], [0, 0, 3]], "labels": [0, 1, 0, 1]}
SPLIT = ["train", "test", "validation", "train"]


def rows(task):
    """Return every sequence with its split and label, sorted."""
    return sorted(
        (name, *row.tolist(), int(label))
        for name, split in task.splits.items()
        for row, label in zip(split.inputs, split.labels, strict=True)
    )


def build(path, arrays, **options):
    np.savez(path, **arrays)
    return source(str(path), options).build(0)


def test_a_file_builds_the_task_of_its_arrays(here):
    task = build("mine.npz", {**GOOD, "split": SPLIT})
    assert task.name == "mine"
    assert task.data == DataSpec(n=3, inputs="tokens", classes=2, vocabulary=4)
    assert rows(task) == sorted(
        (split, *tokens, label) for split, tokens, label in zip(SPLIT, GOOD["tokens"], GOOD["labels"], strict=True)
    )
    kind = source("./mine.npz")
    assert kind.sizes == {"train": 2, "validation": 1, "test": 1}
    assert kind.balance == (0.5, 0.5)
    assert kind.data == task.data


def test_without_a_split_a_fixed_share_is_for_testing(here):
    arrays = {"values": np.arange(40.0).reshape(20, 2), "labels": np.repeat([0, 1], 10)}
    task, again = build("mine.npz", arrays), build("again.npz", arrays)
    assert task.fingerprint == again.fingerprint
    assert (len(task.train), len(task.test)) == (16, 4)
    assert sorted(row[1] for row in rows(task)) == list(range(0, 40, 2))
    assert len(build("mine.npz", arrays, test_share=0.5).test) == 10
    assert len(build("mine.npz", arrays, test_share=0.001).test) == 1
    assert len(build("mine.npz", arrays, test_share=0.999).train) == 1


def test_training_sequences_that_are_sorted_by_class_are_shuffled_with_their_labels(here):
    labels = np.repeat([0, 1], 50)
    tokens = np.stack([labels * 100 + np.arange(100), np.arange(100)], axis=1)
    task = build("mine.npz", {"tokens": tokens, "labels": labels, "split": ["train", "test"] * 50})
    assert 5 < task.train.labels[:25].sum() < 20
    assert (task.train.inputs[:, 0] // 100 == task.train.labels).all()
    assert task.test.labels.tolist() == [0] * 25 + [1] * 25


def test_optional_arrays_set_grid_classes_vocabulary_and_levels(here):
    arrays = {"values": np.zeros((4, 6), np.float32), "labels": GOOD["labels"], "grid": [2, 3], "classes": 5}
    task = build("mine.npz", arrays)
    assert (task.data.grid, task.data.classes) == ((2, 3), 5)
    assert build("mine.npz", {**GOOD, "vocabulary": 9}).data.vocabulary == 9
    levels = build("mine.npz", {"values": GOOD["tokens"], "labels": GOOD["labels"], "levels": 5})
    assert levels.train.tensor().min() >= -1
    assert levels.data.levels == 0


def test_a_file_is_looked_for_in_the_working_directory_and_then_in_the_data_folder(here):
    np.savez(here / "data" / "mine.npz", **GOOD)
    assert source("mine.npz").data.vocabulary == 4
    np.savez(here / "mine.npz", **GOOD, vocabulary=9)
    assert source("mine.npz").data.vocabulary == 9
    with pytest.raises(UsageError) as caught:
        source("none.npz").build(0)
    assert f"none.npz: no such file; tried none.npz, {here / 'data' / 'none.npz'}; --data DIR" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "must hold labels, and one of tokens, values and images; holds labels"),
        ({"labels": None}, "must hold labels, and one of tokens, values and images; holds tokens"),
        (
            {"values": np.zeros((4, 3))},
            "must hold labels, and one of tokens, values and images; holds tokens, labels, split, values",
        ),
        (
            {"length": [1, 1, 1, 1]},
            "unknown array length; did you mean 'lengths'? valid: tokens, values, images, labels, lengths",
        ),
        ({"tokens": np.array([[1], [1, 2]], dtype=object)}, "tokens holds Python objects: must hold numbers"),
        ({"tokens": np.zeros((4, 3))}, "tokens of type float64: must be ids"),
        ({"tokens": np.zeros(4, int)}, "tokens of shape (4,): must be [sequence, token]"),
        ({"tokens": np.zeros((0, 3), int)}, "tokens of shape (0, 3)"),
        ({"tokens": -np.ones((4, 3), int)}, "tokens hold -1: must be 0 or more"),
        ({"tokens": None, "values": np.zeros((4, 3), bool)}, "values of type bool: must be real numbers"),
        ({"tokens": None, "values": np.full((4, 3), np.inf)}, "values hold inf in row 0, token 0: NaN is allowed only"),
        ({"tokens": None, "values": np.zeros((4, 3), int), "levels": 1}, "levels=1: must be 2 or more"),
        ({"labels": [0, 1, 0]}, "labels of shape (3,): must be [4]"),
        ({"labels": [0.5, 1.0, 0.0, 1.0]}, "labels hold real numbers (0.5): must be classes"),
        ({"labels": [0, -1, 0, 1]}, "1 sequence without a label, first in row 1: unlabelled='drop' leaves them out"),
        ({"labels": [0, 3, 0, 2], "classes": 3}, "labels hold 3: must be 0 ... classes - 1 = 2"),
        ({"labels": [0, 0, 0, 0]}, "labels hold 1 class: must be 2"),
        ({"lengths": [1, 2, 3, 4]}, "lengths hold 1 ... 4: must be 0 ... 3"),
        ({"lengths": [0, 2, 3, 3]}, "1 sequence without tokens, first in row 0: empty='drop' leaves them out"),
        ({"lengths": [1, 2, 3]}, "lengths of shape (3,): must be [4]"),
        ({"split": ["train"] * 4}, "split has no test sequences; it has train"),
        ({"split": ["test"] * 4}, "split has no train sequences; it has test"),
        ({"split": ["train", "test", "eval", "train"]}, "split holds eval; valid: train, validation, test"),
        ({"split": [0, 1, 0, 1]}, "split of type int64 and shape (4,): must be strings of shape [4]"),
        ({"split": ["train", "test"]}, "and shape (2,): must be strings of shape [4]"),
        ({"grid": [2, 2]}, "n=3: grid 2 x 2 has 4 tokens"),
        ({"grid": [3]}, "grid of shape (1,): must be [2]"),
        ({"grid": [1, 3], "lengths": [1, 2, 3, 3]}, "lengths: not allowed for images on a grid"),
        ({"vocabulary": 2}, "hold ids 0 ... 2: must be 0 ... 1"),
        ({"vocabulary": [2, 3]}, "vocabulary of shape (2,): must be [1]"),
    ],
)
def test_invalid_arrays_are_refused_naming_file_and_array(here, change, message):
    arrays = {name: array for name, array in {**GOOD, "split": ["train", "test"] * 2, **change}.items()}
    np.savez("mine.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UsageError) as caught:
        source("mine.npz").build(0)
    assert str(caught.value).startswith("mine.npz: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_share_together_with_a_split_is_refused(here):
    with pytest.raises(UsageError, match=r"test_share=0\.3: the sequences already have a split"):
        build("mine.npz", {**GOOD, "split": SPLIT}, test_share=0.3)
    with pytest.raises(UsageError, match=r"no parameter 'file'; valid: n, inputs"):
        source("mine.npz", {"file": "x.npz"})


class Trap:
    def __reduce__(self):
        return print, ("the file was executed",)


def npz(member, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(member, content)
    return buffer.getvalue()


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def unnamed_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an .npz file"),
        (b"something else", "not an .npz file"),
        (pickle.dumps(Trap()), "not an .npz file"),
        (npz("tokens.npy", b"x")[:30], "not an .npz file"),
        (unnamed_array(), "holds a single unnamed array"),
        (npz("tokens.npy", pickle.dumps(Trap())), "tokens is not an array"),
        (npz("tokens.npy", header((2**50,))), "tokens claims shape"),
        (npz("tokens.npy", header((4,)) + bytes(9)), "tokens claims shape"),
    ],
    ids=range(8),  # the bytes of a zip file contain its creation time
)
def test_files_that_are_not_arrays_are_refused(here, content, message, capsys):
    (here / "mine.npz").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        source("mine.npz").build(0)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.npz: ")
    assert capsys.readouterr().out == ""


def test_other_byte_orders_are_read(here):
    arrays = {"values": np.ones((4, 2), ">f4"), "labels": np.array(GOOD["labels"], ">i8")}
    task = build("mine.npz", arrays, standardise="none")
    assert task.train.tensor().sum() == 2 * len(task.train)


RNG = np.random.default_rng(0)
TOKENS = Split(RNG.integers(5, size=(6, 4)), np.array([0, 1, 0, 1, 0, 1]))
LEVELS = Split(RNG.integers(9, size=(6, 4)).astype(np.uint8), TOKENS.labels, levels=9)
TASKS = {
    "tokens": Task("a b/c", DataSpec(n=4, inputs="tokens", classes=3, vocabulary=7), TOKENS, TOKENS[:2]),
    "validation": Task("v", DataSpec(n=4, inputs="tokens", classes=2, vocabulary=5), TOKENS, TOKENS[:3], TOKENS[3:]),
    "lengths": Task(
        "l",
        DataSpec(n=4, inputs="tokens", classes=2, vocabulary=5),
        *(replace(TOKENS, lengths=np.array([1, 2, 3, 4, 1, 1])),) * 2,
    ),
    "values": Task(
        "g", DataSpec(n=4, inputs="values", classes=2, grid=(2, 2)), *(replace(TOKENS, inputs=RNG.random((6, 4))),) * 2
    ),
    "levels": Task("g", DataSpec(n=4, inputs="values", classes=2), LEVELS, LEVELS),
    "predicted levels": Task("g", DataSpec(n=4, inputs="values", classes=2, levels=9), LEVELS, LEVELS),
}


@pytest.mark.parametrize("kind", TASKS)
def test_saved_tasks_round_trip(here, kind):
    task = TASKS[kind]
    task.save("saved.npz")
    again = source("saved.npz").build(0)
    assert again.data == task.data
    assert again.fingerprint == task.fingerprint
    assert list(again.splits) == list(task.splits)
    for name, split in task.splits.items():
        assert again.splits[name].levels == split.levels
        real = np.arange(split.inputs.shape[1]) < (np.inf if split.lengths is None else split.lengths[:, None])
        assert (np.asarray(again.splits[name].inputs) == split.inputs * real).all()
        assert again.splits[name].inputs.dtype == split.inputs.dtype
    assert [path.name for path in here.iterdir()].count("saved.npz.part") == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [("saved.zip", "must end in .npz"), ("none/saved.npz", "cannot be written"), ("", "must end in")],
)
def test_saving_to_an_invalid_path_is_refused(here, path, message):
    with pytest.raises(UsageError, match=message):
        TASKS["tokens"].save(path)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_is_stored_in_the_data_folder_under_a_hash_of_its_content(here, kind):
    task = TASKS[kind]
    name = ap.configure(task).task
    assert ap.configure(task).task == name
    path = here / "data" / name
    assert name.startswith("own/")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert source(name).build(0).fingerprint == task.fingerprint
    other = replace(task, train=replace(task.train, labels=1 - task.train.labels))
    assert ap.configure(other).task != name
    wider = replace(task, data=replace(task.data, classes=task.data.classes + 1))
    assert ap.configure(wider).task != name, "the arrays are the same but the tasks differ"


def test_an_unwritable_data_folder_is_reported(here, monkeypatch):
    (here / "file").write_text("")
    monkeypatch.setenv(folder.VARIABLE, str(here / "file"))
    with pytest.raises(UsageError, match=r"file.own: cannot be created .*--data DIR or ATTNPROBE_DATA"):
        ap.configure(TASKS["tokens"])


def test_a_checkpoint_reloads_the_data_of_a_stored_task(here, monkeypatch):
    task = Task.from_arrays("mine", tokens=RNG.integers(5, size=(40, 6)), labels=np.arange(40) % 2)
    settings = {**TINY, "task_options": {}, "d_model": 8, "recipe": "supervised", "steps": 2}
    run = ap.train(ap.configure(task, **settings), here / "run", progress=False)
    monkeypatch.chdir("/")
    checkpoint = ap.load(run.checkpoint_paths[-1])
    assert checkpoint.task.fingerprint == task.fingerprint == checkpoint.fingerprint
    assert checkpoint.title.startswith("mine, supervised")
    (here / "data" / checkpoint.config.task).unlink()
    with pytest.raises(UsageError) as caught:
        ap.load(run.checkpoint_paths[-1]).tokens(2)
    assert f"tried {checkpoint.config.task}, {here / 'data' / checkpoint.config.task}" in str(caught.value)


def test_arrays_in_memory_give_the_same_task_as_a_file(here):
    arrays = {**GOOD, "split": SPLIT, "lengths": [1, 2, 3, 3]}
    assert Task.from_arrays(**arrays).fingerprint == build("mine.npz", arrays).fingerprint
    with pytest.raises(UsageError, match="reviews: labels of shape"):
        Task.from_arrays("reviews", tokens=GOOD["tokens"], labels=[1])


TABLE = pd.DataFrame({"text": ["Zoë", "ab", "c", "abcdef"], "label": ["no", "yes", "no", "yes"], "part": SPLIT})


def table(frame=TABLE, **named):
    return Task.from_table(frame, **{"split": "part", **named})


def test_text_becomes_bytes_and_labels_numbers_in_sorted_order():
    task = table(name="mine")
    assert task.name == "mine"
    label_of_text = {
        bytes(row[:length].astype(np.uint8)): int(label)
        for split in task.splits.values()
        for row, length, label in zip(split.inputs, split.lengths, split.labels, strict=True)
    }
    assert label_of_text == {"Zoë".encode(): 0, b"ab": 1, b"c": 0, b"abcdef": 1}
    assert task.data == DataSpec(n=6, inputs="tokens", classes=2, vocabulary=256, class_names=("no", "yes"))
    assert bytes(task.test.inputs[0].astype(np.uint8)) == b"ab\0\0\0\0"


def test_text_is_truncated():
    task = table(n=2)
    assert task.data.n == 2
    assert task.validation.lengths.tolist() == [1]
    assert sorted(bytes(row) for row in task.train.inputs) == [b"Zo", b"ab"]
    assert table(n=1).train.lengths is None  # all have the same length


@pytest.mark.parametrize(
    ("cells", "inputs", "vocabulary", "kind"),
    [
        ([[3, 1], [0, 7], [1, 1], [2, 2]], "tokens", 8, np.integer),
        ([np.array([3, 1]), np.array([0, 7]), np.array([1, 1]), np.array([2, 2])], "tokens", 8, np.integer),
        ([[0.5, 1], [1, 2], [1.5, 1], [2, 2]], "values", 0, np.floating),
        ([b"ab", b"\xff\x00", b"cd", b"ef"], "tokens", 256, np.uint8),
    ],
)
def test_lists_become_ids_or_values(cells, inputs, vocabulary, kind):
    task = table(TABLE.assign(text=cells))
    assert (task.data.inputs, task.data.vocabulary, task.data.n) == (inputs, vocabulary, 2)
    assert np.issubdtype(task.train.inputs.dtype, kind)
    assert task.test.inputs[0].tolist() == list(cells[1])
    assert task.train.lengths is None


def test_labels_may_be_of_any_sortable_type():
    assert table(TABLE.assign(label=[5.0, 1, 5.0, 3]), n=1).train.labels.tolist() in ([2, 1], [1, 2])
    assert table(TABLE.assign(label=[True, False, False, True])).data.classes == 2


def test_a_table_without_a_split_is_split():
    task = Task.from_table(TABLE, test_share=0.5)
    assert list(task.splits) == ["train", "test"]
    assert (len(task.train), len(task.test)) == (2, 2)


def test_a_mapping_of_tables_defines_the_splits():
    halves = {"train": TABLE[:2], "test": TABLE[2:]}
    task = Task.from_table(halves)
    assert sorted(task.train.lengths) == [2, 4]
    assert sorted(task.test.lengths) == [1, 6]
    assert len(Task.from_table({"train": TABLE}, test_share=0.25).test) == 1


def test_hugging_face_datasets_are_tables():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_pandas(TABLE)
    assert table(dataset).fingerprint == table().fingerprint
    split = datasets.DatasetDict({"train": dataset, "test": dataset})
    assert Task.from_table(split).fingerprint == Task.from_table({"train": TABLE, "test": TABLE}).fingerprint
    ids = datasets.Dataset.from_dict({"ids": [[1, 2], [3]], "label": [0, 1]})
    task = Task.from_table(ids, inputs="ids", test_share=0.5)
    assert sorted(task.train.lengths.tolist() + task.test.lengths.tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("frame", "named", "message"),
    [
        (TABLE, {"inputs": "txt"}, "table own: has no column 'txt'; columns: text, label, part"),
        (TABLE, {"split": "fold"}, "has no column 'fold'"),
        (TABLE, {"n": 0}, "n=0: input should be greater than 0"),
        (TABLE[:0], {}, "has no rows"),
        (3, {}, "is of type int: must be a DataFrame or have to_pandas()"),
        (TABLE.assign(text=["a", None, "b", "c"]), {}, "1 sequence without tokens, first in row 1: empty='drop'"),
        (TABLE.assign(text=["a", "", "b", ""]), {}, "2 sequences without tokens, first in row 1: empty='drop'"),
        (TABLE.assign(text=[1, 2, 3, 4]), {}, "column 'text', row 0 holds int"),
        (TABLE.assign(text=[[1], [[1]], [2], [3]]), {}, "column 'text' mixes numbers in row 0, channels in row 1"),
        (TABLE.assign(text=[[1], [[1], [1, 2]], [2], [3]]), {}, "column 'text', row 1 holds list"),
        (TABLE.assign(text=[[1], "a", [2], [3]]), {}, "column 'text' mixes numbers in row 0, text in row 1"),
        (TABLE.assign(text=[[1], [-1], [2], [3]]), {}, "tokens hold -1"),
        (TABLE.assign(label=[0, None, 1, 0]), {}, "1 sequence without a label, first in row 1: unlabelled='drop'"),
        (TABLE.assign(label=[0, "a", 1, 0]), {}, "labels in column 'label' hold int, str: must be of one type"),
        (TABLE.assign(label=[[0], [1], [1], [0]]), {}, "labels in column 'label', row 0 holds list: must be one label"),
        (TABLE.assign(part=["train", "eval", "test", "train"]), {}, "split holds eval; valid: train, validation, test"),
        ({"train": TABLE, "dev": TABLE}, {"split": None}, "split has no test sequences; it has train, validation"),
        ({}, {"split": None}, "has splits none"),
        (
            {"train": TABLE},
            {},
            "has splits and split='part': must map names among train, validation, test, unlabelled",
        ),
        ({"train": TABLE, "validation": TABLE}, {"split": None}, "split has no test sequences"),
    ],
)
def test_invalid_tables_are_refused_in_one_line(frame, named, message):
    with pytest.raises(UsageError) as caught:
        table(frame, **named)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_facts_are_counted(here):
    from attnprobe.tasks.facts import facts

    np.savez("mine.npz", **GOOD, split=SPLIT, lengths=[1, 2, 3, 3])
    kind = source("mine.npz")
    result = facts(kind, kind.build(0))
    assert (result["n"], result["vocabulary"], result["majority"], result["best"]) == (3, 4, 1.0, None)
    assert result["fingerprint"] == kind.build(0).fingerprint
    assert result["splits"][0] == {
        "split": "train",
        "sequences": 2,
        "length_min": 1,
        "length_median": 2.0,
        "length_max": 3,
        "class_0": 0.5,
        "class_1": 0.5,
    }
    assert own.Own.licence == result["licence"] == "your own"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"tokens": [[0, 1], ["a"]], "labels": [0, 1]},
            "tokens, row 1 holds list: must be text, a list of ids or numbers",
        ),
        ({"tokens": [[0], [1]], "labels": [0, 300_000_000], "classes": 3}, "labels hold 300000000: must be 0 ... "),
        ({"tokens": [[0], [1]], "labels": [0, 1], "vocabulary": 2**40}, "vocabulary of 1099511627776: must be at most"),
        ({"tokens": [[0]] * 4, "labels": [0, 1] * 2, "test_share": 2.0}, "test_share=2.0: input should be less than 1"),
        ({"tokens": [[0]] * 4, "labels": [0, 1] * 2, "test_share": float("nan")}, "test_share=nan: input should be"),
        ({"tokens": [[0]] * 2, "labels": [0, 1], "split": [b"\xff", b"test"]}, "split holds bytes that are not text"),
    ],
)
def test_mistakes_in_arrays_are_refused_in_one_line(arrays, message):
    with pytest.raises(UsageError, match=message):
        Task.from_arrays("mine", **arrays)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": pd.array(["a", pd.NA, "b"], dtype="string")}, "1 sequence without a label, first in row 1"),
        ({"label": pd.array([0, None, 1], dtype="Int64")}, "1 sequence without a label, first in row 1"),
        ({"label": [[0], [1], [2]]}, "'label', row 0 holds list: must be one label"),
        (
            {"text": pd.Series(["fine", "not \ud800", ""], dtype=object)},
            "'text', row 1 holds text that is not valid Unicode",
        ),
    ],
)
def test_mistakes_in_tables_are_refused_in_one_line(columns, message):
    with pytest.raises(UsageError, match=message):
        Task.from_table(pd.DataFrame({"text": ["ab", "cd", "ef"], "label": [0, 1, 1]} | columns))


def test_duplicate_columns_are_refused():
    frame = pd.DataFrame([["ab", "cd", 0], ["ef", "gh", 1]], columns=["text", "text", "label"])
    with pytest.raises(UsageError, match="has 2 columns 'text'"):
        Task.from_table(frame)


def test_tasks_with_equal_numbers_but_different_array_names_have_separate_files():
    numbers = np.array([[0, 1], [1, 0]] * 4)
    tokens = Task.from_arrays("mine", tokens=numbers, labels=[0, 1] * 4)
    levels = Task.from_arrays("mine", values=numbers, labels=[0, 1] * 4, levels=2)
    assert ap.configure(tokens).task != ap.configure(levels).task


def test_a_run_on_a_file_is_measured_from_any_folder_and_resumed_after_the_file_changed(here, monkeypatch):
    arrays = {"values": RNG.normal(size=(40, 6)), "labels": np.arange(40) % 2}
    fingerprint = build("mine.npz", arrays).fingerprint
    settings = {**TINY, "task_options": {}, "d_model": 8, "recipe": "supervised", "steps": 2}
    config = ap.configure("./mine.npz", **settings)
    run = ap.train(config, here / "run", progress=False, minutes=0.0)
    assert config.task.startswith("own/mine-") and ap.configure(config.task).task == config.task
    np.savez(here / "mine.npz", **{**arrays, "labels": 1 - arrays["labels"]})
    assert ap.resume(run.folder, progress=False).last.fingerprint == fingerprint
    monkeypatch.chdir("/")
    assert ap.load(run.checkpoint_paths[-1]).task.fingerprint == fingerprint
    assert ap.proximity(ap.load(run.checkpoint_paths[-1]), sequences=4, nulls=1).sizes["layer"] == 1
    np.savez(here / "data" / config.task, **{**arrays, "labels": 1 - arrays["labels"]})
    with pytest.raises(UsageError, match=rf"task mine-\w+ no longer generates this run's data .*{fingerprint}"):
        _ = ap.load(run.checkpoint_paths[-1]).task


def test_large_files_and_files_in_the_data_folder_are_not_copied(here, monkeypatch):
    np.savez(here / "mine.npz", **GOOD)
    np.savez(here / "data" / "its.npz", **GOOD)
    assert ap.configure("its.npz", recipe="supervised").task == "its.npz"
    monkeypatch.setattr(own, "MOST_COPIED", 10)
    assert ap.configure("mine.npz", recipe="supervised").task == "mine.npz"
    assert not (here / "data" / "own").exists()
