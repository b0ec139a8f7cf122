import materialised
import numpy as np
import pytest
import torch

from attnprobe.errors import UsageError
from attnprobe.geometry import geometry
from attnprobe.statistics import Scores, gradient_statistics
from attnprobe.statistics.directions import (
    SUBSPACES,
    dimensions,
    energy_shares,
    own_pair,
    proximity_profiles,
    unit,
    without_own_pair,
)

SHAPES = [((5,), False), ((6,), True), ((3, 4), False), ((2, 3), True)]


def dense(f, shape, causal, absent=()):
    """Return the row-centred array of a function of the offset, and the mask of visible pairs."""
    n = int(np.prod(shape))
    x, visible = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.bool)
    for i, j, o in materialised.pairs(shape, causal):
        if not {i, j} & set(absent):
            x[i, j], visible[i, j] = f[o], True
    return (x - x.sum(1, keepdim=True) / visible.sum(1, keepdim=True).clamp(min=1)) * visible, visible


@pytest.mark.parametrize(("shape", "causal"), SHAPES)
def test_directions_have_length_1_and_are_orthogonal_to_offset_0(shape, causal):
    geom = geometry(shape, causal)
    zero, _ = dense(unit(own_pair(geom), geom), shape, causal)
    assert zero.square().sum() == pytest.approx(1)
    for f in proximity_profiles(geom, 1.5).values():
        d, _ = dense(unit(without_own_pair(f, geom), geom), shape, causal)
        assert float(d.square().sum()) == pytest.approx(1)
        assert float((d * zero).sum()) == pytest.approx(0, abs=1e-12)


def test_proximity_profiles_match_their_names():
    offset = torch.arange(-5, 6.0).double()
    profiles = proximity_profiles(geometry((6,)), 2)
    around = torch.tensor([1.0, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1]).double()
    torch.testing.assert_close(profiles["circulant linear"], -around)
    torch.testing.assert_close(profiles["toeplitz linear"], -offset.abs())
    torch.testing.assert_close(profiles["toeplitz band"], (offset.abs() <= 2).double())
    torch.testing.assert_close(profiles["circulant exponential"], (-around / 2).exp())
    assert not any(name.startswith("circulant") for name in proximity_profiles(geometry((6,), causal=True), 2))
    grid = proximity_profiles(geometry((3, 4)), 1)["circulant linear"].reshape(5, 7)
    assert float(grid[0, 0]) == pytest.approx(
        -(2**0.5)
    )  # modulo (3, 4), two up and three left is one down and one right


@pytest.mark.parametrize("shape", [(4,), (5,), (3, 4)])
def test_circulant_directions_have_equal_column_sums_and_others_do_not(shape):
    for name, f in proximity_profiles(geometry(shape), 1).items():
        columns = dense(f, shape, False)[0].sum(0)
        if name.startswith("circulant"):
            assert columns.numpy() == pytest.approx(np.zeros(len(columns)), abs=1e-12)
        elif name.endswith("linear"):
            assert float(columns.abs().max()) > 0.1


def test_a_direction_that_is_constant_in_each_row_is_nan():
    geom = geometry((4,))
    assert torch.isnan(unit(torch.ones(7, dtype=torch.float64), geom)).all()


def bases(shape, causal, absent=()):
    """Return orthonormal bases of the subspaces, [pair, dimension], computed by numpy from dense arrays."""
    geom = geometry(shape, causal, absent=absent)
    n = geom.n
    visible = dense(geom.count, shape, causal, absent)[1]
    profiles = torch.eye(len(geom.count)).double()
    rows = np.stack([dense(f, shape, causal, absent)[0][visible].numpy() for f in profiles], 1)
    columns = []
    for key in range(n):
        x = torch.zeros(n, n, dtype=torch.float64)
        x[:, key] = 1
        x = x * visible
        means = x.sum(1, keepdim=True) / visible.sum(1, keepdim=True).clamp(min=1)
        columns.append(((x - means) * visible)[visible].numpy())
    wrapped = {}
    for i, j, _ in materialised.pairs(shape, False):
        here, there = np.unravel_index(i, shape), np.unravel_index(j, shape)
        wrapped.setdefault(tuple((np.array(there) - here) % shape), torch.zeros(n, n, dtype=torch.float64))[i, j] = 1
    around = np.stack([(x - x.mean(1, keepdim=True))[visible].numpy() for x in wrapped.values()], 1)
    spans = {"circulant": around, "toeplitz": rows, "column": np.stack(columns, 1)}
    spans["both"] = np.concatenate([rows, spans["column"]], 1)
    orthonormal = {}
    for name, x in spans.items():
        left, values, _ = np.linalg.svd(x, full_matrices=False)
        orthonormal[name] = left[:, values > 1e-9]
    return orthonormal, visible


@pytest.mark.parametrize(
    ("shape", "causal", "absent"),
    [
        *((shape, causal, ()) for shape, causal in SHAPES),
        ((9,), False, (0, 4)),
        ((9,), True, (4, 6)),
        ((7,), False, (1, 3, 5)),  # more functions are functions of key and offset
        ((3, 4), False, (1, 6)),
        ((3, 4), True, (5,)),
    ],
)
def test_energy_shares_are_projections_onto_the_subspaces(shape, causal, absent):
    generator = torch.Generator().manual_seed(1)
    n = int(np.prod(shape))
    q, k, v, dz = torch.randn(4, 2, 3, n, 4, generator=generator, dtype=torch.float64)
    real = None if not absent else ~torch.isin(torch.arange(n), torch.tensor(absent)).expand(2, -1)
    scores = Scores(q, k, causal=causal, real=real, grid=shape if len(shape) == 2 else None)
    shares = energy_shares(gradient_statistics(scores, v, dz))
    spans, visible = bases(shape, causal, absent)
    values = materialised.score_gradient(scores, v, dz)[..., visible].numpy()
    total = np.square(values).sum(-1)
    expected = {name: np.square(values @ span).sum(-1) / total for name, span in spans.items()}
    expected["rest"] = 1 - expected.pop("both")
    sizes = dimensions(geometry(shape, causal, absent=absent))
    undefined = {"circulant"} if causal or absent else set()
    for number, name in enumerate(SUBSPACES):
        if name in undefined:
            assert shares[..., number].isnan().all() and np.isnan(sizes[name])
            continue
        assert shares[..., number].numpy() == pytest.approx(expected[name], abs=1e-10), name
    dims = len(values[0, 0]) - n + len(absent)
    spans["rest"] = np.empty((0, dims - spans["both"].shape[1]))
    known = {"rest"} - ({"rest"} if absent and (len(shape) == 2 or absent == (1, 3, 5)) else set())
    for name in {"toeplitz", "column"} | known | ({"circulant"} - undefined):
        assert sizes[name] == pytest.approx(spans[name].shape[1] / dims), name
    assert known or np.isnan(sizes["rest"])


def test_gradients_of_different_tokens_are_rejected():
    q = torch.randn(2, 1, 5, 3)
    scores = Scores(q, q, real=torch.arange(5) < torch.tensor([[5], [3]]))
    with pytest.raises(UsageError, match="different real tokens"):
        energy_shares(gradient_statistics(scores, q, q))
