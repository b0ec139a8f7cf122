import numpy as np
import pytest

from attnprobe.errors import UsageError
from attnprobe.randomness import numpy_generator
from attnprobe.tasks.pairs import Pairs, disjoint_matchings
from attnprobe.tasks.planted import Planted


def edges(kind, seed):
    """[class]: the pairs of each matching."""
    matchings = disjoint_matchings(kind.alphabet, kind.classes, numpy_generator(seed, "planted matchings"))
    return [{frozenset(pair) for pair in matching.tolist()} for matching in matchings]


def pairs_at(inputs, distance, roll):
    """The pairs that a sequence of this roll consists of, token by token."""
    unrolled = [int(inputs[(i + roll) % len(inputs)]) for i in range(len(inputs))]
    firsts = (i for i in range(len(inputs)) if i // distance % 2 == 0)
    return [frozenset((unrolled[i], unrolled[i + distance])) for i in firsts]


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_a_pair_of_the_class_stands_the_distance_apart_and_nowhere_else(distance):
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


def test_only_the_planted_distance_tells_the_class():
    kind = Planted(broken=0.0, train_size=4000, test_size=1)
    train, matchings = kind.build(0).train, edges(kind, 0)
    of_class = np.zeros((4, 8, 8), dtype=bool)
    for label, matching in enumerate(matchings):
        for a, b in map(tuple, matching):
            of_class[label, a, b] = of_class[label, b, a] = True
    for offset in range(1, 12):
        left, right = train.inputs[:, :-offset], train.inputs[:, offset:]
        met = of_class[train.labels[:, None], left, right].mean()
        # of the 46 tokens of other pairs 5 are the partner's id; half the places have their own partner at distance 3
        expected = 5 / 46 + (0.5 * 41 / 46 if offset == 3 else 0)
        assert met == pytest.approx(expected, abs=0.005)


def test_every_token_occurs_equally_often_in_every_sequence():
    inputs = Planted(n=24, distance=2, alphabet=6, classes=3).build(3).train.inputs
    assert (np.sort(inputs, axis=1) == np.repeat(np.arange(6), 4)).all()


def test_at_distance_one_it_is_pairs():
    sizes = {"n": 8, "alphabet": 4, "classes": 3, "broken": 0.5, "test_size": 1, "train_size": 60000}
    shares = []
    for kind in (Planted(distance=1, **sizes), Pairs(**sizes)):
        train = kind.build(0).train
        same = train.inputs[:, :, None] == train.inputs[:, None]  # names of the ids differ from draw to draw
        words = np.packbits(same.reshape(len(same), -1), axis=1)
        shares.append({bytes(word): 0 for word in words})
        for word in words:
            shares[-1][bytes(word)] += 1 / len(words)
    assert len(shares[0]) > 100
    for word in shares[0] | shares[1]:
        one, other = (share.get(word, 0) for share in shares)
        assert abs(one - other) < 5 * np.sqrt((one + other) / 60000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distance": 5}, "blocks of 2 distance=10 tokens must fill n=48"),
        ({"n": 36}, "planted: alphabet=8 must be even and divide n=36"),
        ({"classes": 8}, "planted: 8 ids have only 7 disjoint matchings"),
        ({"distance": 0}, "distance=0"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        Planted(**options)
