"""Lab and tables: runs are trained once, measures computed once, arrays match their labels."""

import dataclasses

import lab
import numpy as np
import pytest
import xarray as xr
from support import TINY
from tables import accuracies, effect, shares

from attnprobe.measures.proximity import proximity
from attnprobe.statistics.seeds import mean_interval, ratio_interval
from attnprobe.tasks import configure

KEPT = ("proximity_contrast", "grid_proximity_contrast")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab, "RUNS", tmp_path_factory.mktemp("runs"))
        config = configure("pairs", recipe="supervised", d_model=8, **TINY)
        ours = lab.Lab("quick", workers=1)
        yield ours, ours.train({"a": config, "b": dataclasses.replace(config, seed=1), "same": config})


def test_equal_configurations_share_one_run_and_count_once(trained):
    ours, runs = trained
    assert runs["a"].folder == runs["same"].folder != runs["b"].folder
    assert ours.cost["runs"] == 2 and ours.cost["steps"] == 24 and ours.cost["core_minutes"] > 0
    assert ours.train({"again": runs["a"].config})["again"].folder == runs["a"].folder


def test_a_measure_is_computed_once_and_saved_unchanged(trained):
    ours, runs = trained
    asked = {
        key: lab.Asked(runs[key], 12, "proximity", KEPT, {"sequences": 4, "window": window})
        for key, window in (("a", 2), ("b", 2), ("same", 3))
    }
    assert len({request.path for request in asked.values()}) == 3, "other options must give another file"
    found = ours.measure(asked)
    own = proximity(runs["a"].last, sequences=4)
    np.testing.assert_array_equal(found["a"]["proximity_contrast"], own["proximity_contrast"])
    assert set(found["a"].data_vars) == {"proximity_contrast"}, "absent variables must not be saved"
    one = dataclasses.replace(asked["a"], measure="gradients", keep=("snr",), options={"sequences": 8, "nulls": 0})
    masked = ours.measure({flag: dataclasses.replace(one, one_masked=flag) for flag in (False, True)})
    same = [
        np.array_equal(masked[True]["snr"].sel(loss=loss), masked[False]["snr"].sel(loss=loss))
        for loss in ("labels", "masked")
    ]
    assert same == [True, False], "the number of masked tokens changes masked losses only"
    before = {request.path: request.path.stat().st_mtime_ns for request in asked.values()}
    ours.measure(asked)
    assert before == {request.path: request.path.stat().st_mtime_ns for request in asked.values()}


def test_accuracies_are_stored_by_label(trained):
    _, runs = trained
    placed = {("x", 1): "a", ("x", 2): "b", ("y", 1): "b", ("y", 2): "b"}
    found = accuracies({key: runs[name] for key, name in placed.items()}, {"task": ["x", "y"], "seed": [1, 2]})
    a, b = (runs[name].metrics[-1]["test_accuracy"] for name in "ab")
    expected = [[a, b], [b, b]]
    np.testing.assert_array_equal(found["test_accuracy"], expected)
    assert found["test_accuracy"].dims == ("task", "seed")


def test_effects_and_shares_agree_with_intervals_over_seeds():
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.random((2, 3, 5)), dims=("task", "arm", "seed"), coords={"arm": ["low", "mid", "high"]})
    values.coords["task"] = ["x", "y"]
    variables = effect("gain", values.transpose("seed", "task", "arm"), "a gain")
    for place in np.ndindex(2, 3):
        expected = mean_interval(values.values[place])
        assert (float(variables["gain"][place]), *variables["gain_interval"].values[place]) == pytest.approx(expected)
    variables = shares(values, "low", "high")
    low, mid, high = values.values[1]
    assert (float(variables["share"][1, 1]), *variables["share_interval"].values[1, 1]) == ratio_interval(
        mid - low, high - low
    )
    np.testing.assert_allclose(variables["share"][:, [0, 2]], [[0, 1], [0, 1]], atol=1e-12)
