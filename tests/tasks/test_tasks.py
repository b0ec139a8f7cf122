import itertools

import numpy as np
import pytest

from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.tasks import TASKS, Split, Task, configure, image, source, text
from attnprobe.tasks.bigrams import Bigrams
from attnprobe.tasks.pairs import Pairs, disjoint_matchings

SMALL = {"train_size": 1000, "test_size": 500}
OPTIONS = {
    "image": SMALL,
    "image-16": SMALL,
    "image-rgb": SMALL,
    "text": SMALL,
    "listops": {"min_length": 20, "max_length": 40, "n": 40, "train_size": 400, "validation_size": 20, "test_size": 20},
    "pathfinder": {"contour_length": 5, "distractors": 1, "train_size": 400, "validation_size": 20, "test_size": 20},
}
"""Parameters that make the larger tasks quick to build."""
REAL = {"digits", "mnist-5k", "image", "image-16", "image-rgb", "text"}
ARCHIVES = {**dict.fromkeys(("image", "image-16", "image-rgb"), image.ARCHIVE.file), "text": text.ARCHIVE.file}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_matches_its_specification(name, real_archive):
    if name in ARCHIVES:
        real_archive(ARCHIVES[name])
    elif name == "retrieval":
        pytest.skip("needs user files; test_retrieval.py writes small ones")
    kind = source(name, OPTIONS.get(name))
    task, again, other = kind.build(0), kind.build(0), kind.build(1)
    assert {name: len(split) for name, split in task.splits.items()} == kind.sizes
    assert task.data == kind.data
    assert task.fingerprint == again.fingerprint
    assert (task.fingerprint == other.fingerprint) == (name in REAL)  # real data are the same for every seed
    assert kind.licence
    assert kind.origin
    configure(name)  # the recommended settings are valid
    train = {bytes(row) for row in task.train.inputs}
    assert not train & {bytes(row) for row in task.test.inputs}, "a test sequence is in the training split"
    balance = np.bincount(task.train.labels, minlength=task.data.classes) / len(task.train)
    expected = np.full(task.data.classes, 1 / task.data.classes) if kind.balance is None else kind.balance
    assert balance == pytest.approx(expected, abs=0.08)


def test_pairs_contains_every_token_equally_often_in_every_sequence():
    task = Pairs(n=24, alphabet=6, classes=3).build(3)
    for inputs in (task.train.inputs, task.test.inputs):
        assert (np.sort(inputs, axis=1) == np.repeat(np.arange(6), 4)).all()


@pytest.mark.parametrize("alphabet", [4, 8, 10])
def test_matchings_are_perfect_and_share_no_pair(alphabet):
    matchings = disjoint_matchings(alphabet, alphabet - 1, np.random.default_rng(0))
    for matching in matchings:
        assert sorted(matching.ravel()) == list(range(alphabet))
    edges = [frozenset(pair.tolist()) for matching in matchings for pair in matching]
    assert len(set(edges)) == len(edges) == alphabet * (alphabet - 1) // 2


def test_unbroken_pairs_are_adjacent_and_half_the_sequences_are_rolled():
    pairs = Pairs(broken=0.0)
    task = pairs.build(0)
    edges = [set() for _ in range(4)]
    rolled = 0
    for inputs, label in zip(task.train.inputs, task.train.labels, strict=True):
        starts = []
        for shift in (0, 1):
            present = {frozenset(pair.tolist()) for pair in np.roll(inputs, -shift).reshape(-1, 2)}
            starts.append(present if len(present) == 4 else None)
        assert any(starts)
        rolled += starts[0] is None
        edges[label] |= starts[0] or starts[1]
    assert all(len(pairs) == 4 for pairs in edges), "each class has the pairs of one matching"
    assert all(not first & second for first, second in itertools.combinations(edges, 2))
    assert 0.4 < rolled / len(task.train) < 0.6


def test_the_share_of_broken_pairs_is_close_to_the_parameter():
    pairs = Pairs(broken=0.4, test_size=500)
    clean, broken = Pairs(broken=0.0, test_size=500).build(0), pairs.build(0)

    def unbroken_share(task):
        edges = {}
        for inputs, label in zip(clean.train.inputs, clean.train.labels, strict=True):
            for shift in (0, 1):
                present = {frozenset(pair.tolist()) for pair in np.roll(inputs, -shift).reshape(-1, 2)}
                if len(present) == 4:
                    edges[label] = present
        shares = []
        for inputs, label in zip(task.test.inputs, task.test.labels, strict=True):
            rows = (np.roll(inputs, -shift).reshape(-1, 2) for shift in (0, 1))
            shares.append(max(np.mean([frozenset(pair.tolist()) in edges[label] for pair in row]) for row in rows))
        return np.mean(shares)

    assert unbroken_share(clean) == 1
    # a broken pair still matches its class with probability about 1 / 7
    assert unbroken_share(broken) == pytest.approx(0.6 + 0.4 / 7, abs=0.04)


def test_bigrams_have_uniform_marginals():
    inputs = Bigrams(train_size=20000).build(0).train.inputs
    counts = np.stack([np.bincount(column, minlength=8) for column in inputs.T]) / len(inputs)
    assert counts == pytest.approx(np.full((32, 8), 1 / 8), abs=0.012)  # 5 standard errors


def test_bigram_rules_are_permutations_without_fixed_points_that_differ_everywhere():
    rules = Bigrams(alphabet=6, classes=5).rules(np.random.default_rng(0))
    square = np.concatenate([np.arange(6)[None], rules])
    assert (np.sort(square, axis=0) == np.arange(6)[:, None]).all()
    assert (np.sort(square, axis=1) == np.arange(6)).all()


@pytest.mark.parametrize(("strength", "n"), [(0.2, 12), (0.1, 32), (0.7, 4)])
def test_best_accuracy_of_bigrams_matches_the_bayes_classifier(strength, n):
    kind = Bigrams(strength=strength, n=n, test_size=40000)
    task, rules = kind.build(5), None
    from attnprobe.randomness import numpy_generator

    rules = kind.rules(numpy_generator(5, "bigrams rules"))
    before, after = task.test.inputs[:, :-1], task.test.inputs[:, 1:]
    follows = np.stack([(rule[before] == after).sum(1) for rule in rules], axis=1)
    best = follows == follows.max(1, keepdims=True)
    hit = best[np.arange(len(best)), task.test.labels] / best.sum(1)
    assert kind.best_accuracy == pytest.approx(hit.mean(), abs=4 * hit.std() / 200)


def test_best_accuracy_of_bigrams_at_extreme_parameters():
    # long sequences that rarely follow the rule: no overflow or NaN
    assert 0.25 < Bigrams(n=500, strength=0.002).best_accuracy < Bigrams(n=500, strength=0.02).best_accuracy < 1
    assert Bigrams().best_accuracy == pytest.approx(1, abs=1e-6)
    assert Bigrams(n=2, strength=1.0).best_accuracy == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pears", {}, "task='pears' is unknown; did you mean 'pairs'\\? valid: pairs, planted, bigrams, digits"),
        (["pairs"], {}, r"task=\['pairs'\] is unknown"),
        ("pairs", 3, "task_options=3: must map parameter names to values"),
        ("pairs", {"m": 3}, "no parameter 'm'; valid: n, alphabet, classes"),
        ("pairs", {"n": 33}, "divide n=33"),
        ("pairs", {"classes": 8}, "only 7 disjoint matchings"),
        ("bigrams", {"classes": 8}, "only 7 such permutations"),
        ("digits", {"test_size": 1797}, "test_size=1797"),
    ],
)
def test_unknown_tasks_and_parameters_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        source(name, options)


GOOD = Split(np.zeros((4, 3), dtype=np.int64), np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64)), "mine train: holds no sequences"),
        (Split(np.zeros((4, 2), dtype=np.int64), GOOD.labels), r"mine train inputs of shape \(4, 2\)"),
        (Split(np.zeros((4, 3)), GOOD.labels), "inputs of type float64"),
        (Split(np.full((4, 3), 5), GOOD.labels), r"ids 5 \.\.\. 5: must be 0 \.\.\. 4"),
        (Split(GOOD.inputs, np.array([0, 1, 2, 0])), r"labels 0 \.\.\. 2: must be 0 \.\.\. 1"),
        (Split(GOOD.inputs, np.array([0, 1])), r"labels of shape \(2,\)"),
        (Split(GOOD.inputs, GOOD.labels, np.array([1, 2, 3, 4])), "lengths"),
    ],
)
def test_invalid_arrays_are_refused_by_name(split, message):
    data = DataSpec(n=3, inputs="tokens", classes=2, vocabulary=5)
    with pytest.raises(UsageError, match=message):
        Task("mine", data, split, GOOD)


def test_levels_represent_values_from_minus_one_to_one():
    data = DataSpec(n=3, inputs="values", classes=2)
    split = Split(np.array([[0, 1, 2], [4, 3, 0]], dtype=np.uint8), np.array([0, 1]), levels=5)
    Task("mine", data, split, split)
    assert split.tensor().tolist() == [[-1.0, -0.5, 0.0], [1.0, 0.5, -1.0]]
    assert split.tensor([1], 2).tolist() == [[1.0, 0.5]]
    with pytest.raises(UsageError, match=r"hold levels 0 \.\.\. 4: must be 0 \.\.\. 3"):
        Task("mine", data, Split(split.inputs, split.labels, levels=4), split)
    with pytest.raises(UsageError, match="levels=5: must be 4, as in the specification"):
        Task("mine", DataSpec(n=3, inputs="values", classes=2, levels=4), split, split)
    with pytest.raises(UsageError, match="levels=5: must be 0 for tokens"):
        Task("mine", DataSpec(n=3, inputs="tokens", classes=2, vocabulary=5), split, split)
    for wrong in ({"inputs": "values", "levels": 1}, {"inputs": "tokens", "vocabulary": 4, "levels": 4}):
        with pytest.raises(UsageError, match="must be 0, or at least 2 for values"):
            DataSpec(n=3, classes=2, **wrong)


def test_the_fingerprint_depends_on_the_number_of_levels():
    data = DataSpec(n=3, inputs="values", classes=2)
    arrays = np.array([[0, 1, 2], [3, 3, 0]], dtype=np.uint8), np.array([0, 1])
    prints = {Task("mine", data, *[Split(*arrays, levels=levels)] * 2).fingerprint for levels in (4, 5)}
    assert len(prints) == 2


def test_values_that_float32_cannot_hold_are_refused():
    data = DataSpec(n=1, inputs="values", classes=2)
    bad = Split(np.array([[1e300], [0.0]]), np.array([0, 1]))
    with pytest.raises(UsageError, match="NaN or infinite"):
        Task("mine", data, bad, bad)


def test_a_held_out_split_is_the_end_of_the_training_split():
    task = Pairs(train_size=20, test_size=5).build(0)
    held_out = task.held_out(6)
    assert [len(split) for split in held_out.splits.values()] == [14, 6, 5]
    assert list(held_out.splits) == ["train", "validation", "test"]
    assert held_out.fingerprint != task.fingerprint
    assert task.held_out(0) is task
    with pytest.raises(UsageError, match="validation_size=2: task pairs already has a validation split"):
        held_out.held_out(2)


def test_values_must_be_finite():
    data = DataSpec(n=3, inputs="values", classes=2)
    bad = Split(np.full((4, 3), np.nan), GOOD.labels)
    with pytest.raises(UsageError, match="NaN or infinite"):
        Task("mine", data, bad, bad)


def test_a_shuffled_task_keeps_tokens_padding_and_labels():
    split = Split(np.arange(40).reshape(4, 10) + 1, np.array([0, 1, 0, 1]), np.array([10, 4, 1, 7]))
    task = Task("own", DataSpec(n=10, inputs="tokens", classes=2, vocabulary=41), split, split)
    for result in task.shuffled(3).splits.values():
        assert not np.array_equal(result.inputs, split.inputs)
        for shuffled, original, length in zip(result.inputs, split.inputs, split.lengths, strict=True):
            assert sorted(shuffled[:length]) == original[:length].tolist()
            assert np.array_equal(shuffled[length:], original[length:])
        assert np.array_equal(result.labels, split.labels) and np.array_equal(result.lengths, split.lengths)
    orders = [result.inputs[0] % 10 for result in task.shuffled(3).splits.values()]
    assert not np.array_equal(*orders), "each split has its own permutation"
    assert task.shuffled(3).fingerprint == task.shuffled(3).fingerprint != task.shuffled(4).fingerprint
