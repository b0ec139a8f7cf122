import itertools
import random
from collections import Counter
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.tasks.chunks import in_order
from attnprobe.tasks.listops import WORDS, ListOps

SMALL = ListOps(min_length=20, max_length=60, n=64, max_depth=4, train_size=500, validation_size=30, test_size=30)
OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}


@pytest.fixture(scope="module")
def task():
    return SMALL.build(0)


def read(words):
    """Return value, depth, operators and argument counts of the first expression in an iterator of words."""
    word = next(words)
    if word in "0123456789":
        return int(word), 1, [], []
    values, depths, operators, arguments = [], [], [word], []
    words = iter(words)
    for following in words:
        if following == "]":
            return OPERATORS[word](values), 1 + max(depths), operators, [*arguments, len(values)]
        value, depth, inner, counts = read(itertools.chain([following], words))
        values.append(value)
        depths.append(depth)
        operators += inner
        arguments += counts
    raise AssertionError("an operator is not closed")


def words_of(split):
    """Yield the words of each sequence without padding; check that tokens after its length are padding."""
    for inputs, length in zip(split.inputs, split.lengths, strict=True):
        assert not inputs[length:].any()
        yield [WORDS[token] for token in inputs[:length]]


def test_every_label_is_the_value_of_its_expression(task):
    for split in task.splits.values():
        for words, label in zip(words_of(split), split.labels, strict=True):
            rest = iter(words)
            value, depth, operators, arguments = read(rest)
            assert list(rest) == []
            assert value == label
            assert depth <= 4
            assert 20 < len(words) < 60
            assert all(2 <= count <= 10 for count in arguments)
            leaves = sum(word in "0123456789" for word in words)
            assert len(words) == leaves + 2 * len(operators)


def test_reference_sequences_have_the_right_lengths_and_labels():
    chunk = ListOps().chunk(0, 0)
    depths = []
    assert chunk["inputs"].shape[1] == 2048
    assert 0.07 < len(chunk["labels"]) / 8192 < 0.092  # the share of the reference's draws that are accepted
    for inputs, length, label in zip(chunk["inputs"], chunk["lengths"], chunk["labels"], strict=True):
        rest = iter([WORDS[token] for token in inputs[:length]])
        value, depth, _, _ = read(rest)
        assert (value, list(rest)) == (label, [])
        assert not inputs[length:].any()
        depths.append(depth)
    assert chunk["lengths"].min() > 500
    assert chunk["lengths"].max() < 2000
    assert max(depths) == 10


def tree(rng, depth, max_depth):
    """Draw one tree as words (slow reference)."""
    if depth == max_depth or rng.random() > 0.25:
        return [rng.choice("0123456789")]
    inner = [word for _ in range(rng.randint(2, 10)) for word in tree(rng, depth + 1, max_depth)]
    return [rng.choice(list(OPERATORS)), *inner, "]"]


def test_the_distribution_matches_trees_drawn_one_by_one():
    rng, slow = random.Random(0), []
    draws = 0
    while len(slow) < 4000:
        draws += 1
        words = tree(rng, 1, 4)
        if 20 < len(words) < 60:
            slow.append(words)
    chunks = [SMALL.chunk(0, number) for number in range(16)]
    accepted = sum(len(chunk["labels"]) for chunk in chunks)
    share = len(slow) / draws
    error = np.sqrt(share * (1 / draws + 1 / (16 * 8192)))
    assert accepted / (16 * 8192) == pytest.approx(share, abs=4.5 * error)
    fast = [
        [WORDS[token] for token in inputs[:length]]
        for chunk in chunks
        for inputs, length in zip(chunk["inputs"], chunk["lengths"], strict=True)
    ]
    statistics = {
        "length": len,
        "value": lambda words: read(iter(words))[0],
        "depth": lambda words: read(iter(words))[1],
        "widest": lambda words: max(read(iter(words))[3]),
        "operators": lambda words: words.count("]"),
        "root minimum": lambda words: words[0] == "[MIN",
        "root sum": lambda words: words[0] == "[SM",
        "medians": lambda words: words.count("[MED"),
        "sevens": lambda words: words.count("7"),
        "first is digit": lambda words: words[1] in "0123456789",
        "last is digit": lambda words: words[-2] in "0123456789",
    }
    for name, statistic in statistics.items():
        expected, drawn = (np.array([statistic(words) for words in sample], dtype=float) for sample in (slow, fast))
        for power in (1, 2):
            a, b = expected**power, drawn**power
            error = np.sqrt(a.var() / len(a) + b.var() / len(b))
            assert abs(a.mean() - b.mean()) < 4.5 * error, (name, power)
    values = [np.bincount([read(iter(words))[0] for words in sample], minlength=10) for sample in (slow, fast)]
    expected, drawn = (count / count.sum() for count in values)
    assert (abs(expected - drawn) < 4.5 * np.sqrt(expected / len(slow) + expected / len(fast))).all()


def test_no_sequence_occurs_twice_in_any_split():
    kind = ListOps(min_length=3, max_length=5, n=4, train_size=200, validation_size=50, test_size=50)  # only 400 exist
    task = kind.build(0)
    counts = Counter(bytes(row) for split in task.splits.values() for row in split.inputs)
    assert max(counts.values()) == 1
    with pytest.raises(UsageError, match="cannot draw 500 different sequences of 4 ... 4 tokens: hardly more than 400"):
        replace(kind, train_size=400).build(0)


def test_results_do_not_depend_on_the_number_of_threads():
    def first(threads):
        chunks = in_order(lambda number: SMALL.chunk(3, number), threads)
        result = [next(chunks) for _ in range(4)]
        chunks.close()
        return result

    for single, double, quintuple in zip(first(1), first(2), first(5), strict=True):
        for name in single:
            np.testing.assert_array_equal(single[name], double[name])
            np.testing.assert_array_equal(single[name], quintuple[name])


def test_class_shares_match_the_labels():
    labels = np.concatenate([ListOps().chunk(1, number)["labels"] for number in range(3)])
    shares = np.array(ListOps().balance)
    assert shares.sum() == pytest.approx(1, abs=0.001)
    assert (abs(np.bincount(labels, minlength=10) / len(labels) - shares) < 5 * np.sqrt(shares / len(labels))).all()
    assert SMALL.balance != ListOps().balance
    assert sum(SMALL.balance) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1000}, "up to 1999 tokens do not fit n=1000"),
        ({"max_length": 501}, "longer than min_length=500 and shorter than max_length=501"),
        ({"max_depth": 3}, "max_depth=3 and max_args=10 allow 122"),
        ({"max_args": 1}, "max_args=1"),
    ],
)
def test_impossible_lengths_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ListOps(**options)
