"""Figures depend only on saved results, and show their values."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.legend import Legend
from matplotlib.text import Text
from support import channels_checkpoint, checkpoint

from attnprobe import flow, gradients, interventions, positions, proximity
from attnprobe.errors import UsageError
from attnprobe.figures.panels import shown_offsets
from attnprobe.figures.style import COLOURS, line
from attnprobe.results import over_steps, save
from attnprobe.tables import FIGURES, MEASURES
from attnprobe.tables import FIGURES_OVER_STEPS as OVER_STEPS


def panels(figure):
    """Return the axes of a figure without colour bars and unused places."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes.axison]


def test_every_measure_has_its_figures():
    assert set(FIGURES) == set(OVER_STEPS) <= set(MEASURES)


def test_a_figure_is_redrawn_from_its_file_without_torch(spt_run, tmp_path):
    save(proximity(spt_run.checkpoints[-1], sequences=8, nulls=2), tmp_path / "x.nc")
    code = (
        "import sys, warnings; warnings.simplefilter('error');"
        # Old releases of matplotlib call former names of pyparsing.
        "warnings.filterwarnings('ignore', category=DeprecationWarning, module='matplotlib|pyparsing');"
        "from attnprobe import figures; from attnprobe.results import open_result;"
        f"figures.proximity(open_result({str(tmp_path / 'x.nc')!r})).savefig({str(tmp_path / 'x.pdf')!r});"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_the_drawn_profile_is_the_result(spt_run):
    result = proximity(spt_run.checkpoints[-1], sequences=8, nulls=2)
    contrast, distance, score, pattern = panels(FIGURES["proximity"](result))
    half = result.sel(offset=slice(-16, 16)).isel(layer=0)
    for head in range(2):
        drawn = {curve.get_label(): curve for curve in score.lines}[f"head {head}"]
        np.testing.assert_array_equal(drawn.get_ydata(), half["score_by_offset"].isel(head=head))
        drawn = {curve.get_label(): curve for curve in pattern.lines}[f"head {head}"]
        ratio = half["pattern_by_offset"] / half["uniform_pattern_by_offset"]
        np.testing.assert_allclose(drawn.get_ydata(), ratio.isel(head=head))
    np.testing.assert_array_equal(contrast.images[0].get_array(), result["proximity_contrast"])
    drawn = [dot.get_ydata().item() for dot in distance.lines]
    np.testing.assert_array_equal(drawn, np.sort(result["mean_distance"].isel(layer=0)))


@pytest.mark.parametrize("farthest", [16, 256, 257, 8192])
def test_long_sequences_are_drawn_at_log_spaced_offsets(farthest):
    shown = shown_offsets(farthest)
    assert (shown == -shown[::-1]).all() and (np.diff(shown) > 0).all()
    assert shown[-1] == farthest
    assert set(range(-16, 17)) <= set(shown.tolist())
    assert len(shown) == 2 * farthest + 1 if farthest <= 256 else len(shown) < 250


def test_a_long_sequence_has_a_logarithmic_axis(spt_run):
    """The result of a short sequence, reindexed to a longer one."""
    result = proximity(spt_run.checkpoints[-1], sequences=4, nulls=2)
    stretched = result.reindex(offset=np.arange(-999, 1000), fill_value=1.0).assign_attrs(n=1000)
    axis = panels(FIGURES["proximity"](stretched))[2]
    assert axis.get_xscale() == "symlog"
    assert axis.get_xlim() == pytest.approx((-500, 500))


def test_a_contrast_has_a_dot_unless_it_is_outside_both_nulls(spt_run):
    result = proximity(spt_run.checkpoints[-1], sequences=8, nulls=2)
    null = result["proximity_contrast_null"]
    for name in ("permuted", "initial"):
        null.loc[{"null": name}] = np.linspace(-1, 1, null.sizes["draw"])[:, None, None]
    for name, value, dots in (("none", 2.0, 0), ("permuted", 0.0, 2), ("initial", 0.0, 2)):
        result["proximity_contrast"][:] = value
        if name != "none":  # only inside this null
            other = {"permuted": "initial", "initial": "permuted"}[name]
            null.loc[{"null": name}] = np.linspace(-1, 1, null.sizes["draw"])[:, None, None]
            null.loc[{"null": other}] = 5.0
        contrast = panels(FIGURES["proximity"](result))[0]
        assert len(contrast.lines[0].get_xdata()) == dots, name


def test_an_image_task_is_drawn_in_both_views(image_checkpoint):
    result = proximity(image_checkpoint, sequences=4, nulls=2)
    figure = FIGURES["proximity"](result)
    _, _, score, ratio, *maps = panels(figure)
    assert "distance (pixels)" in score.get_xlabel() and "distance (pixels)" in ratio.get_xlabel()
    expected = result["grid_pattern_by_offset"] / result["grid_uniform_pattern_by_offset"]
    assert len(maps) == 4
    for axis, (layer, head) in zip(maps, np.ndindex(2, 2), strict=True):
        half = expected.isel(layer=layer, head=head).sel(row_offset=slice(-4, 4), column_offset=slice(-4, 4))
        np.testing.assert_allclose(axis.images[0].get_array(), np.log2(half.clip(min=1 / 8)))
    title = figure.subfigs[0].texts[0].get_text()
    assert "digits, supervised, seed 0, step 2" in title
    assert "test" in title


def test_a_run_is_drawn_with_its_stages(spt_run):
    results = [proximity(checkpoint, sequences=4, nulls=2) for checkpoint in spt_run.checkpoints]
    joined = over_steps(results)
    figure = OVER_STEPS["proximity"](joined)
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["0", "1", "8", "9", "12"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"objective: masked", "objective: labels"}
    drawn = {curve.get_label(): curve for curve in figure.axes[1].lines}["head 1"]
    np.testing.assert_array_equal(drawn.get_ydata(), joined["proximity_contrast"].isel(layer=0, head=1))


def test_lines_are_distinguishable_without_colour():
    first = [line(number) for number in range(4)]
    assert len({str(style["linestyle"]) for style in first}) == 4
    assert len({line(number)["color"] for number in range(8)}) == len(COLOURS) == 8
    assert len({str(line(number)) for number in range(32)}) == 32


def test_the_drawn_terms_are_the_result(spt_run):
    result = positions(spt_run.checkpoints[-1], sequences=8, nulls=2)
    share_map, contrast_map, share, contrast, profile, spectrum, *maps = panels(FIGURES["positions"](result))
    for axis, name in ((share_map, "variance_share"), (contrast_map, "proximity_contrast")):
        expected = result[name].sel(term="position-position")
        np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    for axis, name in ((share, "variance_share"), (contrast, "proximity_contrast")):
        dots = [container for container in axis.containers if container.get_label().startswith("head")]
        assert len(dots) == 2
        for head, drawn in enumerate(dots):
            np.testing.assert_array_equal(drawn[0].get_ydata(), result[name].isel(layer=0, head=head))
    for head, axis in enumerate(maps):
        expected = result["position_score"].isel(layer=0, head=head)
        np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    drawn = {curve.get_label(): curve for curve in profile.lines}["head 1"]
    expected = result["score_by_offset"].sel(term="position-position", offset=slice(-16, 16))
    np.testing.assert_array_equal(drawn.get_ydata(), expected.isel(layer=0, head=1))
    np.testing.assert_array_equal(spectrum.lines[-1].get_ydata(), result["wave_amplitude"].isel(layer=0, head=1))


def text_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


@pytest.mark.parametrize(("window", "distance"), [(1, "1 patch "), (2, "2 patches ")])
def test_distances_between_patches_are_in_patches(window, distance):
    ckpt = channels_checkpoint()
    for measure in (proximity, positions):
        result = measure(ckpt, sequences=4, nulls=0, window=window)
        text = text_of(FIGURES[result.attrs["measure"]](result))
        assert f"within {distance}" in text and "pixel" not in text


def test_the_terms_of_a_run_are_drawn(spt_run):
    joined = over_steps([positions(checkpoint, sequences=4, nulls=2) for checkpoint in spt_run.checkpoints[-2:]])
    figure = OVER_STEPS["positions"](joined)
    drawn = {curve.get_label(): curve for curve in figure.axes[4].lines}["head 0"]
    expected = joined["proximity_contrast"].sel(term="content-content").isel(layer=0, head=0)
    np.testing.assert_array_equal(drawn.get_ydata(), expected)


def test_rotary_images_show_their_pairs_and_two_dimensional_offsets(image_checkpoint):
    result = positions(image_checkpoint, sequences=4, nulls=2)
    *_, distance, spectrum, first, second, third, fourth = panels(FIGURES["positions"](result))
    assert spectrum.get_xscale() == "log" and "distance (pixels)" in distance.get_xlabel()
    shown = result["grid_score_by_offset"].sel(term="position-position")
    for axis, (layer, head) in zip((first, second, third, fourth), np.ndindex(2, 2), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), shown.isel(layer=layer, head=head))


def test_the_drawn_signals_and_energies_are_the_result(spt_run):
    result = gradients(spt_run.checkpoints[-1], sequences=8, nulls=2)
    axes = panels(FIGURES["gradients"](result))
    maps, signals, energies, profiles = axes[:4], axes[4:6], axes[6:8], axes[8:]
    shown = result["snr"].sel(direction="circulant exponential"), result["energy_share"].sel(subspace="circulant")
    for number, axis in enumerate(maps):
        np.testing.assert_array_equal(axis.images[0].get_array(), shown[number // 2].isel(loss=number % 2))
    for of_losses, name in ((signals, "snr"), (energies, "energy_share")):
        for loss, axis in enumerate(of_losses):
            dots = [dot for dot in axis.containers if hasattr(dot, "has_xerr")]
            for head, drawn in zip(range(2), dots, strict=True):
                np.testing.assert_array_equal(drawn[0].get_xdata(), result[name].isel(loss=loss, layer=0, head=head))
    names = [tick.get_text() for tick in signals[0].get_yticklabels()]
    assert names == result["direction"].values.tolist()
    for loss, axis in enumerate(profiles):
        drawn = {curve.get_label(): curve for curve in axis.lines}["head 1"]
        expected = result["descent_by_offset"].sel(offset=slice(-16, 16)).isel(loss=loss, layer=0, head=1)
        np.testing.assert_array_equal(drawn.get_ydata(), expected)


def test_the_drawn_changes_are_the_result(spt_run):
    result = interventions(spt_run.checkpoints[-1], sequences=8, nulls=2)
    result["accuracy_change"][0, 0, 0] = -0.5
    result["accuracy_change_interval"][0, 0, 0] = [-0.6, -0.4]
    result["accuracy_change_interval"][0, 0, 1] = [-0.1, 0.1]
    *maps, everywhere, by_head = panels(FIGURES["interventions"](result))
    dots = next(container for container in everywhere.containers if hasattr(container, "has_xerr"))
    np.testing.assert_array_equal(dots[0].get_xdata(), result["all_accuracy_change"])
    dots = [container for container in by_head.containers if hasattr(container, "has_xerr")]
    for head, drawn in enumerate(dots):
        np.testing.assert_array_equal(drawn[0].get_xdata(), result["accuracy_change"].isel(layer=0, head=head))
    for axis, kind in zip(maps, result["intervention"].values, strict=True):
        assert axis.get_title("left").splitlines()[0] == kind.replace("_", " ")
        np.testing.assert_array_equal(axis.images[0].get_array(), result["accuracy_change"].sel(intervention=kind))
    assert [text.get_text() for text in maps[0].texts][0] == "−0.50"
    assert maps[0].lines[0].get_xdata().round().tolist() == [1], "a dot where the interval includes 0"


def test_interventions_on_real_values_show_the_loss(spt_run):
    result = interventions(spt_run.checkpoints[-1], sequences=4, nulls=2)
    without_accuracy = result.assign({name: result[name] * np.nan for name in result if "accuracy" in name})
    *_, everywhere, _ = panels(FIGURES["interventions"](without_accuracy))
    assert "change in loss" in everywhere.get_xlabel()


@pytest.mark.parametrize(
    ("name", "measure", "first"),
    [("gradients", gradients, "descent"), ("interventions", interventions, "accuracy_change")],
)
def test_runs_of_gradients_and_interventions_are_drawn(name, measure, first, spt_run):
    checkpoints = spt_run.checkpoints[0], spt_run.checkpoints[-1]
    joined = over_steps([measure(checkpoint, sequences=4, nulls=2) for checkpoint in checkpoints])
    drawn = {curve.get_label(): curve for curve in OVER_STEPS[name](joined).axes[1].lines}["head 1"]
    selection = {"loss": "labels", "direction": "circulant exponential"}
    selection = selection if name == "gradients" else {"intervention": "ablate_toeplitz"}
    np.testing.assert_array_equal(drawn.get_ydata(), joined[first].sel(selection).isel(layer=0, head=1))


def test_the_drawn_fields_and_numbers_of_layers_are_the_result():
    result = flow(checkpoint(n_layers=3), sequences=8, nulls=2)
    field, collapse = panels(FIGURES["flow"](result))
    cut = result["field_by_offset"].sel(offset=slice(-6, 6))
    for layer, curve in enumerate(field.lines):
        np.testing.assert_array_equal(curve.get_ydata(), cut.isel(layer=layer))
    entropy, distance, similarity, residual = [curve for curve in collapse.lines if curve.get_marker() in "osD^"]
    np.testing.assert_allclose(entropy.get_ydata(), result["entropy_ratio"].mean("head"))
    np.testing.assert_array_equal(distance.get_ydata(), result["field_distance_ratio"])
    for name, curve in (("token_similarity", similarity), ("mean_residual", residual)):
        assert curve.get_xdata()[0] == -1 and curve.get_ydata()[0] == float(result[f"input_{name}"])
        np.testing.assert_array_equal(curve.get_ydata()[1:], result[name])
    assert [text.get_text() for text in collapse.get_xticklabels()] == ["input", "0", "1", "2"]
    selected = FIGURES["flow"](result.isel(layer=1))
    names = [text.get_text() for legend in selected.findobj(Legend) for text in legend.texts]
    assert "layer 1" in names and "layer 0" not in names
    with pytest.raises(UsageError, match=r"the figure of flow shows layers, and no heads in detail; must be None"):
        FIGURES["flow"](result, heads=[(0, 1)])


def test_the_flow_of_an_image_is_drawn_by_distance(image_checkpoint):
    result = flow(image_checkpoint, sequences=8, nulls=1)
    field, collapse = panels(FIGURES["flow"](result))
    assert field.get_xlabel() == "distance (pixels)"
    own = result["grid_field_by_offset"].sel(row_offset=0, column_offset=0)
    assert [curve.get_ydata()[0] for curve in field.lines] == pytest.approx(own.values)
    drawn = next(curve for curve in collapse.lines if curve.get_marker() == "s")
    np.testing.assert_array_equal(drawn.get_ydata(), result["grid_field_distance_ratio"])


def test_the_flow_of_a_run_has_a_line_per_layer():
    results = [flow(checkpoint(n_layers=2), sequences=4, nulls=1).assign_attrs(step=step) for step in (1, 2)]
    joined = over_steps(results)
    _, entropy, distance, *_ = OVER_STEPS["flow"](joined).axes
    drawn = {curve.get_label(): curve.get_ydata() for curve in distance.lines}
    np.testing.assert_array_equal(drawn["layer 1"], joined["field_distance_ratio"].isel(layer=1))
    drawn = {curve.get_label(): curve.get_ydata() for curve in entropy.lines}
    np.testing.assert_allclose(drawn["layer 0"], joined["entropy_ratio"].isel(layer=0).mean("head"))
