import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pairs import Pairs, disjoint_matchings
from attnprobe.tasks.planted import Planted


def edges(kind, seed):
    """Return the set of pairs of each matching, by class."""
    matchings = disjoint_matchings(kind.alphabet, kind.classes, numpy_generator(seed, "planted matchings"))
    return [{frozenset(pair) for pair in matching.tolist()} for matching in matchings]


def pairs_at(inputs, distance, roll):
    """Return the pairs of a sequence that was rolled by ``roll``, token by token."""
    unrolled = [int(inputs[(i + roll) % len(inputs)]) for i in range(len(inputs))]
    firsts = (i for i in range(len(inputs)) if i // distance % 2 == 0)
    return [frozenset((unrolled[i], unrolled[i + distance])) for i in firsts]


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_pairs_of_the_class_occur_only_at_the_distance(distance):
    kind = Planted(distance=distance, broken=0.0, train_size=300, test_size=1)
    train, matchings = kind.build(1).train, edges(kind, 1)
    rolls = []
    for inputs, label in zip(train.inputs, train.labels, strict=True):
        fits = [
            (matching, roll)
            for matching in range(4)
            for roll in range(2 * distance)
            if set(pairs_at(inputs, distance, roll)) <= matchings[matching]
        ]
        assert [matching for matching, _ in fits] == [label]
        rolls.append(fits[0][1])
    share = np.bincount(rolls, minlength=2 * distance) / len(rolls)
    assert share == pytest.approx(np.full(2 * distance, 0.5 / distance), abs=4 * np.sqrt(0.25 / len(rolls)))


def test_only_the_planted_distance_predicts_the_class():
    kind = Planted(broken=0.0, train_size=4000, test_size=1)
    train, matchings = kind.build(0).train, edges(kind, 0)
    of_class = np.zeros((4, 8, 8), dtype=bool)
    for label, matching in enumerate(matchings):
        for a, b in map(tuple, matching):
            of_class[label, a, b] = of_class[label, b, a] = True
    for offset in range(1, 12):
        left, right = train.inputs[:, :-offset], train.inputs[:, offset:]
        met = of_class[train.labels[:, None], left, right].mean()
        # 5 of the 46 tokens of other pairs have the partner's id; half the positions have their partner at offset 3
        expected = 5 / 46 + (0.5 * 41 / 46 if offset == 3 else 0)
        assert met == pytest.approx(expected, abs=0.005)


def test_every_token_occurs_equally_often_in_every_sequence():
    inputs = Planted(n=24, distance=2, alphabet=6, classes=3).build(3).train.inputs
    assert (np.sort(inputs, axis=1) == np.repeat(np.arange(6), 4)).all()


def test_distance_one_equals_pairs():
    sizes = {"n": 8, "alphabet": 4, "classes": 3, "broken": 0.5, "test_size": 1, "train_size": 60000}
    shares = []
    for kind in (Planted(distance=1, **sizes), Pairs(**sizes)):
        train = kind.build(0).train
        same = train.inputs[:, :, None] == train.inputs[:, None]  # ids are permuted between draws
        words = np.packbits(same.reshape(len(same), -1), axis=1)
        shares.append({bytes(word): 0 for word in words})
        for word in words:
            shares[-1][bytes(word)] += 1 / len(words)
    assert len(shares[0]) > 100
    for word in shares[0] | shares[1]:
        first, second = (share.get(word, 0) for share in shares)
        assert abs(first - second) < 5 * np.sqrt((first + second) / 60000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": 5}, r"planted: n=48: must be a multiple of 2 \* distance=10"),
        ({"n": 36}, "planted: alphabet=8 must be even and divide n=36"),
        ({"classes": 8}, "planted: classes=8: alphabet=8 has only 7 disjoint matchings"),
        ({"distance": 0}, "distance=0"),
    ],
)
def test_invalid_parameters_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Planted(**options)
