"""Tests of the shared driver of the measures."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import checkpoint, own
from torch import nn

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.measures import driver
from attnprobe.measures.driver import Number, chunks, measure
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import Probe, Shape, read
from attnprobe.scores import Heads, Scores
from attnprobe.statistics import pattern_statistics
from attnprobe.tasks import Split, Task


def test_chunks_contain_each_row_once_without_padding(monkeypatch):
    lengths = np.array([3, 7, 3, 5, 7, 3])
    inputs = np.arange(42).reshape(6, 7)
    model = Transformer(ModelConfig(d_model=8), DataSpec(n=7, inputs="tokens", classes=2, vocabulary=5))
    monkeypatch.setattr(driver, "ELEMENTS", 2 * 3 * 8 * 2)  # two sequences of three tokens per chunk
    seen, sizes = {}, []
    for indices, batch in chunks(Split(inputs, np.zeros(6), lengths), np.array([0, 1, 2, 4, 5]), own(model)):
        sizes.append(batch.inputs.shape)
        for index, row in zip(indices, batch.inputs, strict=True):
            seen[int(index)] = row.tolist()
    assert sizes == [(2, 3), (1, 3), (1, 7), (1, 7)]
    assert {index: len(row) for index, row in seen.items()} == {0: 3, 1: 7, 2: 3, 3: 7, 4: 3}
    assert seen[3] == inputs[4].tolist()


@measure(Number("norm_of_queries", "mean squared length of a query", range=(0.0, float("inf"))))
def lengths(heads: Heads, *, power: float = 2.0) -> dict[str, torch.Tensor]:
    """Measure the length of the queries.

    Args:
        heads: Inputs of the attention of one layer.
        power: Exponent of the length.
    """
    return {"norm_of_queries": heads.scores.q.double().norm(dim=-1).pow(power).mean(-1)}


def test_a_decorated_function_has_intervals_nulls_and_its_own_keywords():
    ckpt = checkpoint(n_layers=2)
    result = lengths(ckpt, sequences=10, nulls=3, power=1.0, level=0.5)
    _, cache = ckpt.model.run_with_cache(ckpt.tokens(10))
    for layer in range(2):
        expected = cache[f"blocks.{layer}.attn.hook_q"].double().norm(dim=-1).mean(1)  # [sequence, head]
        assert result["norm_of_queries"].sel(layer=layer).values == pytest.approx(expected.mean(0).numpy())
        low, high = result["norm_of_queries_interval"].sel(layer=layer).values.T
        half = 0.7027 * expected.std(0).numpy() / 10**0.5  # t(0.75, 9)
        assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert result["norm_of_queries_null"].sizes["draw"] == 3
    permuted = result["norm_of_queries_null"].sel(null="permuted")
    assert permuted.values == pytest.approx(
        np.tile(result["norm_of_queries"], (3, 1, 1))
    )  # it does not depend on the order
    interval = result["norm_of_queries_interval"].attrs
    assert (interval["ci_kind"], interval["ci_prob"]) == ("t", 0.5)
    assert result["norm_of_queries"].attrs["valid_min"] == 0
    assert result.attrs["smallest_p"] == 0.25 and result.attrs["power"] == 1.0


def test_nulls_0_gives_no_null_variables():
    result = lengths(checkpoint(), sequences=4, nulls=0)
    assert "norm_of_queries_null" not in result and "draw" not in result.dims
    assert result.attrs["smallest_p"] == 1


def test_every_condition_uses_all_sequences_and_permuted_draws_share_the_passes_of_the_network():
    request = driver.checked_request("proximity", checkpoint(), None, 5, 2, 0.95, 0)
    passes = []

    def prepare(network):
        def compute(sample, targets):
            passes.append([target.condition.draw for target in targets])
            for target in targets:
                target.add(("row",), 0, np.asarray(sample.rows, float))

        return compute

    tallies, draws = driver.over_sequences(request, prepare)
    assert passes == [[None, 0, 1], [None], [None]]  # measured network with its permuted draws, two initial networks
    for tally in (tallies.measured, *tallies.nulls["permuted"], *tallies.nulls["initial"]):
        (rows,) = tally.layers(("row",))
        assert rows.count == 5 and rows.mean == 2


class Noise(nn.Module):
    """Network whose scores are products of random token vectors and do not depend on position."""

    shape = Shape(layers=1, heads=1, n=6, d_model=4)

    def __init__(self, seed):
        super().__init__()
        vectors = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed))
        self.vectors, self.attend = nn.Parameter(vectors), Heads.attend

    @contextmanager
    def attending(self, attend):
        self.attend = attend
        yield

    def predictions(self, batch, objective, mask=None):
        q, k = self.vectors[:, batch.inputs][:, :, None]
        self.attend(Heads(0, Scores(q, k), k))

    def untrained(self, seed):
        return Noise(seed)


def test_measured_value_and_draws_are_exchangeable_without_structure():
    """With 4 draws, the measured value exceeds all of them in one fifth of the cases.

    It would be one tenth if each draw used a different quarter of the sequences.
    """
    rng, cases, above = np.random.default_rng(0), 300, {"permuted": 0, "initial": 0}

    def prepare(network):
        def compute(sample, targets):
            def add_distance(heads):
                for target in targets:
                    scores = replace(heads.scores, order=target.order)
                    target.add(("distance",), 0, pattern_statistics(scores).mean_distance)

            read(network, sample.batch, "labels", add_distance)

        return compute

    for case in range(cases):
        split = Split(rng.integers(6, size=(8, 6)), np.zeros(8, dtype=int))
        task = Task("noise", DataSpec(n=6, inputs="tokens", classes=2, vocabulary=6), split, split)
        probe = Probe(Noise(10**6 + case), lambda task=task: task)
        tallies, _ = driver.over_sequences(driver.checked_request("noise", probe, None, 8, 4, 0.95, case), prepare)
        measured, *draws = (
            tally.layers(("distance",))[0].mean.item()
            for tally in (tallies.measured, *tallies.nulls["permuted"], *tallies.nulls["initial"])
        )
        above["permuted"] += measured > max(draws[:4])
        above["initial"] += measured > max(draws[4:])
    for kind, count in above.items():
        assert count / cases == pytest.approx(1 / 5, abs=3 * (0.2 * 0.8 / cases) ** 0.5), kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nulls": -1}, "nulls=-1: must be from 0 .none. to"),
        ({"level": 1.0}, "level=1.0: must be between 0 and 1"),
        ({"sequences": 1}, "sequences=1: must be at least 2 for an interval"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        lengths(checkpoint(), **arguments)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda heads: {"x": heads.scores.q[:, :, 0, 0], "y": heads.v}, "<lambda>: returned x, y; must be x"),
        (lambda heads: {"x": heads.v}, r"x of shape \(4, 2, 12, 8\): must be a tensor over .*'head'.* = \(4, 2\)"),
        (lambda heads: {"x": 3.0}, "x of type float: must be a tensor"),
        (lambda heads, back=1: {}, "<lambda>: keyword back must be keyword-only"),
        (lambda heads, *, back=1: {}, "<lambda>: keyword back needs a default and a type"),
    ],
)
def test_functions_that_do_not_match_their_description_are_refused(compute, message):
    with pytest.raises(UsageError, match=message):
        measure(Number("x", "a number"))(compute)(checkpoint(), sequences=4, nulls=0)


def test_reserved_keywords_and_unknown_axes_are_refused():
    def compute(heads, *, out: int = 1):
        return {}

    with pytest.raises(UsageError, match="compute: keyword out is reserved"):
        measure(Number("x", "a number"))(compute)
    with pytest.raises(UsageError, match="axes key; valid in addition to layer and head: offset"):
        measure(Number("x", "a number", axes=("key",)))
    with pytest.raises(UsageError, match="needs a description of each value"):
        measure()


def test_unsupported_types_are_refused():
    with pytest.raises(UsageError, match="a list cannot be measured; valid: Checkpoint, Module, Probe"):
        lengths([1, 2])
