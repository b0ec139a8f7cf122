"""What every measure owes its readers, whatever it measures."""

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


def test_every_variable_says_what_it_is_and_in_which_unit(result):
    for name, variable in result.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name


def test_every_number_of_a_head_has_an_interval_around_it_and_nulls_beside_it(result):
    numbers = [
        name for name, one in result.items() if {"layer", "head"} <= set(one.dims) and f"{name}_interval" in result
    ]
    assert numbers
    for name in numbers:
        lower, upper = (result[f"{name}_interval"].sel(bound=bound) for bound in ("lower", "upper"))
        known = np.isfinite(result[name])
        assert bool(((lower <= result[name]) & (result[name] <= upper)).where(known, True).all()), name
        assert f"{name}_null" in result


def test_it_says_where_it_comes_from(result):
    assert json.loads(result.attrs["provenance"])["attnprobe"]
    assert json.loads(result.attrs["config"])["task"] == "pairs"
    assert {"measure", "title", "step", "sequences", "sequences_from", "seed", "data_fingerprint"} <= set(result.attrs)


def test_files_give_back_the_same_result(result, tmp_path):
    save(result, tmp_path / "x.nc")
    again = open_result(tmp_path / "x.nc")
    xr.testing.assert_identical(again, result)
    assert [path.name for path in tmp_path.iterdir()] == ["x.nc"]


def test_a_write_that_fails_leaves_what_was_there(result, tmp_path, monkeypatch):
    save(result, tmp_path / "x.nc")
    before = (tmp_path / "x.nc").read_bytes()

    def full_disk(self, part, **named):
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(result, tmp_path / "x.nc")
    assert (tmp_path / "x.nc").read_bytes() == before


def test_the_same_seed_gives_the_same_numbers(result, spt_run):
    again = MEASURES[result.attrs["measure"]](spt_run.checkpoints[-1], **FEW)
    xr.testing.assert_equal(again, result)


def test_results_of_a_run_join_along_the_steps(result, spt_run):
    other = MEASURES[result.attrs["measure"]](spt_run.checkpoints[0], **FEW)
    joined = over_steps([other, result])
    assert joined["step"].values.tolist() == [0, 12]
    assert json.loads(joined.attrs["provenance"])["attnprobe"]
    xr.testing.assert_equal(joined.isel(step=1, drop=True), result)
