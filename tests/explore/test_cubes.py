"""Cubes: what a page shows of a result."""

import itertools

import numpy as np
import pytest

from attnprobe import gradients, positions, proximity
from attnprobe.explore import cubes as module
from attnprobe.explore.cubes import NEAR, POINTS, cubes
from attnprobe.results import dataset, over_steps, variable


@pytest.fixture(scope="module")
def result(spt_run):
    return over_steps([proximity(checkpoint, sequences=4, nulls=2) for checkpoint in spt_run.checkpoints[-2:]])


def values_of(cube):
    return np.array(cube.columns["value"], float).reshape([len(values) for values in cube.axes.values()])


def test_a_cube_holds_the_values_intervals_and_ranges_of_nulls_of_the_result(result):
    by_label = {cube.label: cube for cube in cubes(result)}
    cube, array = by_label["near_mass, within 2"], result["near_mass"].sel(window=2)
    assert cube.axes == {axis: result[axis].values.tolist() for axis in ("step", "layer", "head")}
    np.testing.assert_allclose(values_of(cube), array, rtol=1e-4)
    low = result["near_mass_interval"].sel(window=2, bound="lower")
    np.testing.assert_allclose(cube.columns["low"], low.values.ravel(), rtol=1e-4)
    for null, (end, reduce) in itertools.product(("permuted", "initial"), (("low", "min"), ("high", "max"))):
        draws = getattr(result["near_mass_null"].sel(window=2, null=null), reduce)("draw")
        np.testing.assert_allclose(cube.columns[f"{null}_{end}"], draws.values.ravel(), rtol=1e-4)
    profile = by_label["score_by_offset"]
    np.testing.assert_allclose(values_of(profile), result["score_by_offset"], rtol=1e-4)


@pytest.mark.parametrize("measure", [positions, gradients])
def test_every_statistic_of_heads_has_a_cube_for_each_category(measure, spt_run):
    found = measure(spt_run.checkpoints[-1], sequences=4, nulls=1)
    labels = {cube.label for cube in cubes(found)}
    for name, array in found.items():
        kinds = [axis for axis in module.KINDS if axis in array.dims]
        if f"{name}_interval" in found and set(array.dims) == {"layer", "head", *kinds}:
            for categories in itertools.product(*(found[axis].values.tolist() for axis in kinds)):
                words = [f"and {word}" if kinds[i] == "other_loss" else word for i, word in enumerate(categories)]
                assert ", ".join([str(name), *words]) in labels


def test_an_undefined_number_has_its_reason(spt_run):
    found = gradients(spt_run.checkpoints[-1], sequences=4, nulls=1)
    (cube,) = (cube for cube in cubes(found) if cube.label == "cosine, labels, and labels")
    assert set(cube.columns["value"]) == {None} and set(cube.reasons.values()) == {"a loss and itself"}


def long_result(n, steps=1, heads=2):
    """Result whose profile is the offset, at each step and head."""
    offset = np.arange(1 - n, n)
    profile = np.broadcast_to(offset.astype(float), (1, heads, 2 * n - 1))
    array = variable(("layer", "head", "offset"), profile, "profile", "1")
    coordinates = {"layer": [0], "head": np.arange(heads), "offset": offset}
    one = dataset({"score_by_offset": array}, coordinates, {"measure": "mine", "step": 0})
    return over_steps([one.assign_attrs(step=step) for step in range(steps)])


def test_long_profiles_are_means_over_bins_and_exact_at_near_offsets():
    n = 4000
    (cube,) = cubes(long_result(n))
    offsets = cube.axes["offset"]
    assert len(offsets) <= POINTS + 2 and offsets == sorted(offsets)
    assert set(range(-NEAR, NEAR + 1)) <= set(offsets)
    np.testing.assert_allclose(values_of(cube)[0, 0, 0], offsets, rtol=1e-4)  # the mean of a linear function
    np.testing.assert_allclose(offsets, np.negative(offsets[::-1]))  # as many bins on either side
    assert abs(offsets[0]) > 0.9 * n


def test_profiles_of_many_steps_and_heads_are_kept_at_evenly_spaced_steps(monkeypatch):
    monkeypatch.setattr(module, "MOST", 4 * 2 * 19)
    (cube,) = cubes(long_result(10, steps=10))
    assert cube.axes["step"] == [0, 3, 6, 9]
