"""Contract of the results of all measures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from support import N, checkpoint

from attnprobe.axes import LABELS
from attnprobe.config import DataSpec
from attnprobe.errors import UsageError
from attnprobe.results import open_result, over_steps, save
from attnprobe.tables import MEASURES

FEW = {"sequences": 8, "nulls": 2}


@pytest.fixture(scope="module", params=MEASURES)
def result(request, spt_run):
    return MEASURES[request.param](spt_run.checkpoints[-1], **FEW)


def test_axes_come_from_the_glossary_and_have_labels(result):
    assert set(result.dims) <= set(LABELS)
    for name in result.coords:
        assert result[name].attrs["long_name"] == LABELS[name]


def test_every_variable_has_a_long_name_and_units(result):
    for name, variable in result.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name


def test_every_statistic_of_a_head_has_an_interval_and_nulls(result):
    names = [
        name
        for name, variable in result.items()
        if {"layer", "head"} <= set(variable.dims) and f"{name}_interval" in result
    ]
    assert names
    for name in names:
        lower, upper = (result[f"{name}_interval"].sel(bound=bound) for bound in ("lower", "upper"))
        finite = np.isfinite(result[name])
        assert bool(((lower <= result[name]) & (result[name] <= upper)).where(finite, True).all()), name
        assert f"{name}_null" in result


def test_results_have_provenance(result):
    assert json.loads(result.attrs["provenance"])["attnprobe"]
    assert json.loads(result.attrs["config"])["task"] == "pairs"
    assert {"measure", "title", "step", "sequences", "sequences_from", "seed", "data_fingerprint"} <= set(result.attrs)


def test_saved_results_load_unchanged(result, tmp_path):
    save(result, tmp_path / "x.nc")
    again = open_result(tmp_path / "x.nc")
    xr.testing.assert_identical(again, result)
    assert [path.name for path in tmp_path.iterdir()] == ["x.nc"]


def test_a_failed_write_keeps_the_previous_file(result, tmp_path, monkeypatch):
    save(result, tmp_path / "x.nc")
    before = (tmp_path / "x.nc").read_bytes()

    write_bytes = Path.write_bytes

    def full_disk(path, content):
        write_bytes(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UsageError, match=r"x\.nc: cannot be written \(No space left on device\)"):
        save(result, tmp_path / "x.nc")
    assert (tmp_path / "x.nc").read_bytes() == before


def test_results_are_reproducible_with_the_same_seed(result, spt_run):
    again = MEASURES[result.attrs["measure"]](spt_run.checkpoints[-1], **FEW)
    xr.testing.assert_equal(again, result)


@pytest.mark.parametrize("name", MEASURES)
def test_several_channels_are_measured_as_the_same_network_without_them(name):
    """A network that reads the first channel only has the scores of the network without channels."""
    one = checkpoint(DataSpec(N, "values", 2, grid=(3, 4)))
    two = checkpoint(DataSpec(N, "values", 2, grid=(3, 4), channels=2, patch=2))
    weights = one.model.state_dict()
    embed, unembed = weights["embed.weight"], weights["unembed.weight"]
    two.model.load_state_dict(
        {
            **weights,
            "embed.weight": torch.stack([embed[:, 0], torch.zeros_like(embed[:, 0]), embed[:, 1]], dim=1),
            "unembed.weight": torch.cat([unembed, unembed]),
            "unembed.bias": torch.zeros(2),
        }
    )
    split = replace(two.task.test, inputs=two.task.test.inputs[..., 0])
    object.__setattr__(one, "task", replace(one.task, train=split, test=split))
    options = {"sequences": 4, "nulls": 1, **({"curvature": 1} if name == "gradients" else {})}
    found, expected = (MEASURES[name](of, **options) for of in (two, one))
    assert set(found.variables) == set(expected.variables)
    for key, array in expected.data_vars.items():
        if array.dtype.kind != "f" or "vector" in str(key) or "other_loss" in array.dims:
            continue
        left, right = found[key], array
        if "loss" in array.dims:  # the masked error is a mean over both channels
            left, right = left.sel(loss="labels"), right.sel(loss="labels")
        if "null" in array.dims:  # networks at initialisation differ
            left, right = left.sel(null="permuted"), right.sel(null="permuted")
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6, err_msg=str(key))
    assert found.attrs["grid_unit"] == "patches" and expected.attrs["grid_unit"] == "pixels"
    for axis in {"row_offset", "column_offset"} & set(found.dims):
        assert found[axis].attrs["long_name"] == LABELS[axis].replace("pixels", "patches")


def test_results_do_not_hold_the_symbols():
    ckpt = checkpoint(DataSpec(N, "tokens", 2, vocabulary=6, symbols=tuple("abcdef"), class_names=("no", "yes")))
    data = json.loads(MEASURES["proximity"](ckpt, **FEW).attrs["data"])
    assert "symbols" not in data and data["class_names"] == ["no", "yes"] and data["vocabulary"] == 6


def test_results_of_a_run_are_joined_along_steps(result, spt_run):
    other = MEASURES[result.attrs["measure"]](spt_run.checkpoints[0], **FEW)
    joined = over_steps([other, result])
    assert joined["step"].values.tolist() == [0, 12]
    assert json.loads(joined.attrs["provenance"])["attnprobe"]
    xr.testing.assert_equal(joined.isel(step=1, drop=True), result)
