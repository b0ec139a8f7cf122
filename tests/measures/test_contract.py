"""Contract of the results of all measures."""

import json

import numpy as np
import pytest
import xarray as xr

from attnprobe.axes import LABELS
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

    def full_disk(self, part, **options):
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(result, tmp_path / "x.nc")
    assert (tmp_path / "x.nc").read_bytes() == before


def test_results_are_reproducible_with_the_same_seed(result, spt_run):
    again = MEASURES[result.attrs["measure"]](spt_run.checkpoints[-1], **FEW)
    xr.testing.assert_equal(again, result)


def test_results_of_a_run_are_joined_along_steps(result, spt_run):
    other = MEASURES[result.attrs["measure"]](spt_run.checkpoints[0], **FEW)
    joined = over_steps([other, result])
    assert joined["step"].values.tolist() == [0, 12]
    assert json.loads(joined.attrs["provenance"])["attnprobe"]
    xr.testing.assert_equal(joined.isel(step=1, drop=True), result)
