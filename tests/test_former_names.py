"""Files of an earlier version load under current names; its flags are rejected with the current name."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import attnprobe as ap
from attnprobe import former_names
from attnprobe.cli import main
from attnprobe.config import ModelConfig, TrainConfig, from_flat
from attnprobe.errors import UsageError
from attnprobe.results import with_current_names
from attnprobe.sweeps.cells import complete
from attnprobe.sweeps.plan import read_sweep
from attnprobe.tables import EDITS, MEASURES

SETTINGS = {
    "learning_rate": 0.004,
    "pretrain_learning_rate": 0.002,
    "grad_clip": 0.5,
    "validation_size": 8,
    "warmup_steps": 1,
    "mask_probability": 0.4,
    "gradient_accumulation_steps": 2,
    "pretrain_order": "shuffled",
}
NETWORK = {"init_std": 0.03, "position_std": 0.05, "length_scale": 3.0, "norm_placement": "post"}
"""Settings that the sweep file has under former names."""


def test_every_former_name_has_a_current_one():
    fields = {*TrainConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    assert set(former_names.SETTINGS.values()) <= fields and not set(former_names.SETTINGS) & fields
    assert set(former_names.INTERVENTIONS.values()) <= set(EDITS)
    assert all(name.isidentifier() for name in EDITS)
    for measure, keywords in former_names.KEYWORDS.items():
        assert set(keywords.values()) <= set(inspect.signature(MEASURES[measure]).parameters)


def test_a_former_sweep_with_its_runs_and_checkpoints_loads(former, tmp_path):
    table = ap.open_sweep(former / "sweep")
    assert table["recipe"].tolist() == ["supervised", "spt"] and table["status"].tolist() == ["done", "done"]
    runs = [ap.Run.open(folder) for folder in table["folder"]]
    for run, recipe in zip(runs, ("supervised", "spt"), strict=True):
        (checkpoint,) = run.checkpoints
        assert checkpoint.config == run.config and run.config.recipe == recipe
        assert {name: getattr(run.config, name) for name in SETTINGS} == SETTINGS
        assert {name: getattr(run.config.model, name) for name in NETWORK} == NETWORK
        for row in (*run.metrics, *checkpoint.metrics):
            assert "learning_rate" in row and "rate" not in row
        assert checkpoint.model(checkpoint.tokens(2)).shape == (2, 4)
    # The existing cells are recognised, so nothing is trained again.
    text = (former / "sweep.toml").read_text()
    for name, current in former_names.SETTINGS.items():
        text = re.sub(rf"^{name} =", f"{current} =", text, flags=re.MULTILINE)
    (tmp_path / "sweep.toml").write_text(text.replace('"labels"', '"supervised"'))
    cells = read_sweep(tmp_path / "sweep.toml", former / "sweep").cells
    assert [cell.folder for cell in cells] == [run.folder for run in runs]
    assert complete(cells[0].folder, cells[0].config).folder == cells[0].folder
    elsewhere = read_sweep(tmp_path / "sweep.toml", tmp_path / "new").cells
    assert elsewhere[0].folder.name.startswith("pairs-supervised-0-")


ADDED = {
    "proximity": ("query_key_nmi", "sink_rate", "any_sink_rate", "previous_token", "duplicate_token", "induction"),
    "positions": (
        "qk_symmetry",
        "qk_directionality",
        "qk_eigenvalue_positivity",
        "positional_score",
        "symbolic_score",
    ),
    "gradients": (),
    "interventions": (),
}
"""Beginnings of variables that later versions added."""


@pytest.mark.parametrize("measure", ["proximity", "positions", "gradients", "interventions"])
def test_a_former_result_has_the_variables_of_a_new_one_and_the_same_values(measure, former):
    result = ap.open_result(former / f"{measure}.nc")
    run = ap.open_sweep(former / "sweep")["folder"][1]
    patch_from = Path(ap.open_sweep(former / "sweep")["folder"][0]) / "checkpoints/step-000004.pt"
    options = {"gradients": {"length_scale": 3, "curvature": 2}, "interventions": {"patch_from": patch_from}}
    arguments = {"nulls": 1, "sequences": 4, **options.get(measure, {})}
    new = getattr(ap, measure)(ap.load(Path(run) / "checkpoints/step-000004.pt"), **arguments)
    added = {str(name) for name in new.variables if str(name).startswith(ADDED[measure])}
    assert set(result.variables) | added == set(new.variables) and not set(result.variables) & added
    assert all(array.dims == new[name].dims for name, array in result.variables.items())
    assert set(new.attrs) - {"note"} == set(result.attrs)
    for name, coordinate in new.coords.items():
        np.testing.assert_array_equal(result[name], coordinate)
    for name in result.data_vars:
        array = new[name]
        assert result[name].attrs["units"] == array.attrs["units"]
        if array.dtype.kind == "f" and "null" not in str(name) and "vector" not in str(name):
            np.testing.assert_allclose(result[name], array, rtol=1e-3, atol=1e-5, err_msg=str(name))
    assert ap.figures.draw(result) is not None


def test_former_axes_and_variables_are_renamed_with_derived_variables():
    axes, interval_axes = ("layer", "kernel"), ("layer", "kernel", "bound")
    variables = {"grid_favours": (axes, [[1.0]]), "grid_favours_interval": (interval_axes, [[[0.0, 1.0]]])}
    variables["grid_favours_sd"], variables["searched_sd"] = (axes, [[0.5]]), ((), 1.0)
    current = with_current_names(xr.Dataset(variables, {"kernel": ["band"]}))
    # A variable without an interval is not a standard deviation, so `searched_sd` keeps its name.
    names = {"grid_positive_share", "grid_positive_share_interval", "grid_positive_share_std", "searched_sd"}
    assert set(current.data_vars) == names and "profile" in current.coords


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--rate", "0.1"], "--rate is now called --learning-rate"),
        (["train", "--hold-out=5"], "--hold-out is now called --validation-size"),
        (["train", "--recipe", "labels"], "--recipe labels is now called --recipe supervised"),
        (["train", "--recipe=labels"], "--recipe labels is now called --recipe supervised"),
        (["train", "--config", "{former}/old.toml"], "setting 'rate' is now called 'learning_rate'"),
        (["sweep", "{former}/sweep.toml"], "sweep.toml: setting 'rate' is now called 'learning_rate'"),
        (["gradients", "x.pt", "--reach", "3"], "--reach is now called --length-scale"),
        (["interventions", "x.pt", "--donor", "y.pt"], "--donor is now called --patch-from"),
    ],
)
def test_former_flags_and_values_are_rejected_with_the_current_name(arguments, message, former, capsys):
    (former / "old.toml").write_text("rate = 0.1\n")
    with pytest.raises(SystemExit) as stop:
        main([argument.format(former=former) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_former_settings_are_rejected_in_python_too():
    with pytest.raises(UsageError, match="recipe='labels' is now called 'supervised'"):
        from_flat({"recipe": "labels"})
    with pytest.raises(UsageError, match="setting 'clip' is now called 'grad_clip'"):
        ap.configure("pairs", clip=1.0)
