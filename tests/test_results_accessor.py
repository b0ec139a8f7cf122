"""The accessor ds.ap."""

import numpy as np
import pytest
import xarray as xr

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.results import over_steps


@pytest.fixture(scope="module")
def result(spt_run):
    return ap.proximity(spt_run.at(8), sequences=4, nulls=2)


def test_a_number_comes_with_all_that_belongs_to_it(result):
    number = result.ap["toeplitz_share"]
    assert set(number) == {"value", "interval", "std", "nulls"}
    assert number["value"].identical(result["toeplitz_share"].rename("value"))
    for part, name in {"interval": "interval", "std": "std", "nulls": "null"}.items():
        np.testing.assert_array_equal(number[part], result[f"toeplitz_share_{name}"])
    assert number.attrs["units"] == result["toeplitz_share"].attrs["units"]
    assert set(result.ap["decay_length"]) == {"value", "se"}
    assert {"toeplitz_share", "near_mass", "score_by_offset"} <= set(result.ap)
    assert not [name for name in result.ap if name.endswith(("_std", "_interval", "_null"))]


def test_an_unknown_number_is_refused_with_the_most_similar_one(result):
    with pytest.raises(UsageError, match=r"number='toeplitz' is unknown; .*valid: score_by_offset, "):
        result.ap["toeplitz"]
    with pytest.raises(UsageError, match="did you mean 'near_mass'"):
        result.ap.to_dataframe("near_mas")


def test_the_table_has_one_row_per_number_and_place(result):
    table = result.ap.to_dataframe("toeplitz_share", "near_mass")
    assert len(table) == result["toeplitz_share"].size + result["near_mass"].size
    for row in table.to_dict("records"):
        at = {axis: row[axis] for axis in ("layer", "head", "window") if not np.isnan(row[axis])}
        parts = result.ap[row["number"]].sel(at)
        assert row["value"] == parts["value"] and row["std"] == parts["std"]
        assert (row["lower"], row["upper"]) == tuple(parts["interval"].values)
        for null in ("permuted", "initial"):
            draws = parts["nulls"].sel(null=null)
            assert (row[f"{null}_min"], row[f"{null}_max"]) == (draws.min(), draws.max())
    assert set(result.ap.to_dataframe()["number"]) == set(result.ap)


def test_the_table_has_steps_and_numbers_of_the_whole_network(result, spt_run):
    joined = over_steps([result, ap.proximity(spt_run.at(12), sequences=4, nulls=2)])
    table = joined.ap.to_dataframe("entropy")
    assert list(table.columns[:4]) == ["number", "step", "layer", "head"]
    assert table.groupby("step").size().to_dict() == {8: 2, 12: 2}
    effects = ap.interventions(spt_run.at(12), sequences=4, nulls=1, edits=("uniform_attention",))
    (base,) = effects.ap.to_dataframe("base_loss").to_dict("records")
    assert base["value"] == effects["base_loss"]


def test_the_axes_of_a_number_and_of_its_parts_may_be_in_any_order():
    share, std = np.arange(6.0).reshape(2, 3), np.arange(6.0, 12).reshape(2, 3)
    result = xr.Dataset({"share": (("layer", "head"), share), "share_std": (("head", "layer"), std.T)})
    table = result.ap.to_dataframe("share")
    assert table["value"].tolist() == share.ravel().tolist()
    assert table["std"].tolist() == std.ravel().tolist()
    assert table[["layer", "head"]].values.tolist() == [[layer, head] for layer, head in np.ndindex(2, 3)]
