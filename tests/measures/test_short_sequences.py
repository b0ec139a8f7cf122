"""Sequences of one or two tokens: undefined statistics are NaN and listed in ``left_out``."""

import numpy as np
import pytest

import attnprobe as ap
from attnprobe.config import DataSpec, ModelConfig, TrainConfig
from attnprobe.model.transformer import Transformer
from attnprobe.networks.base import Probe
from attnprobe.networks.transformer import TransformerNetwork
from attnprobe.tables import MEASURES
from attnprobe.tasks import Split, Task

ARCHITECTURES = [{}, {"causal": True, "position": "rotary"}, {"position": "alibi", "norm_placement": "post"}]


def probe(n, grid, settings):
    integers = np.random.default_rng(0).integers
    data = DataSpec(n=n, inputs="tokens", classes=2, vocabulary=5, grid=grid)
    task = Task("short", data, *(Split(integers(0, 5, (8, n)), integers(0, 2, 8)) for _ in range(2)))
    config = ModelConfig(d_model=8, init_std=0.5, **settings)
    return Probe(
        TransformerNetwork(Transformer(config, data).eval(), TrainConfig(model=config), lambda: task), lambda: task
    )


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("settings", ARCHITECTURES)
def test_measures_of_short_sequences_list_undefined_statistics(n, image, settings):
    short = probe(n, (1, n) if image else None, settings)
    results = {name: getattr(ap, name)(short, nulls=1) for name in MEASURES}
    for result in results.values():
        ap.figures.draw(result)
    for name in ("proximity", "positions"):
        assert results[name].proximity_contrast.isnull().all()
        assert "no key is farther than 1" in results[name].attrs["left_out"]
    assert ("no key is farther than 0" in results["gradients"].attrs["left_out"]) == (n == 1)
    assert results["interventions"].loss_change.notnull().any()
    proximity = results["proximity"]
    assert (proximity.decay_reason == "fewer than two distances").all()
    if n == 1:
        assert (proximity.entropy == 0).all() and (proximity.mean_distance == 0).all()
        assert (proximity.pattern_by_offset == 1).all()
    elif not settings.get("causal"):
        # A row of two keys has one degree of freedom, which is explained by the offset.
        np.testing.assert_allclose(proximity.toeplitz_share, 1)


@pytest.mark.parametrize("name", ["proximity", "positions"])
def test_windows_without_far_keys_are_refused(name):
    with pytest.raises(ap.UsageError, match="window=2: must be at least 1 and below 2, the largest distance"):
        getattr(ap, name)(probe(3, None, {}), nulls=0)
    with pytest.raises(ap.UsageError, match=r"window=0: must be at least 1"):
        getattr(ap, name)(probe(2, None, {}), window=0, nulls=0)
