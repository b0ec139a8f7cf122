"""Figures of networks of any size fit on pages, and show the heads that matter."""

import json

import numpy as np
import pytest
import xarray as xr
from extents import problems
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from support import checkpoint
from synthetic import tiled

import attnprobe as ap
from attnprobe import figures, flow, gradients, interventions, positions, proximity
from attnprobe.config import DataSpec
from attnprobe.figures.panels import by_distance, number_text
from attnprobe.figures.selection import all_heads, beyond
from attnprobe.figures.style import HEIGHT, WIDTHS
from attnprobe.results import join, over_seeds, over_steps
from attnprobe.tables import FIGURES, FIGURES_OVER_STEPS

ALL = {
    "proximity": proximity,
    "positions": positions,
    "gradients": gradients,
    "interventions": interventions,
    "flow": flow,
}


@pytest.fixture(scope="module")
def tiny(image_checkpoint):
    """Results of every measure of a tiny network on sequences and on images."""
    line = checkpoint(DataSpec(n=32, inputs="tokens", classes=2, vocabulary=6), n_layers=2, n_heads=2)
    subjects = {"sequence": line, "image": image_checkpoint}
    return {
        (name, kind): measure(subject, sequences=6, nulls=2)
        for kind, subject in subjects.items()
        for name, measure in ALL.items()
    }


def text_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def check(figure):
    assert figure.get_figheight() <= HEIGHT + 1e-9
    assert problems(figure) == []


SIZES = [(1, 1), (1, 2), (4, 8), (12, 12), (2, 64)]
SLOW = [pytest.param(*size, marks=pytest.mark.slow) for size in SIZES if size not in ((1, 2), (4, 8))]


@pytest.mark.parametrize(("layers", "heads"), [(1, 2), (4, 8), *SLOW])
@pytest.mark.parametrize("kind", ["sequence", "image"])
@pytest.mark.parametrize("name", ALL)
def test_texts_neither_overlap_nor_leave_the_page(name, kind, layers, heads, tiny):
    check(FIGURES[name](tiled(tiny[name, kind], layers, heads)))


@pytest.mark.parametrize(("layers", "heads"), [(12, 12), (2, 64)])
def test_large_networks_fit_on_a_page(layers, heads, tiny):
    check(figures.proximity(tiled(tiny["proximity", "image"], layers, heads)))
    check(figures.gradients(tiled(tiny["gradients", "sequence"], layers, heads)))


@pytest.mark.slow
@pytest.mark.parametrize("width", ["acl-column", "ieee"])
@pytest.mark.parametrize(("layers", "heads"), SIZES)
@pytest.mark.parametrize("name", ALL)
def test_figures_fit_into_columns(name, layers, heads, width, tiny):
    for kind in ("sequence", "image"):
        figure = FIGURES[name](tiled(tiny[name, kind], layers, heads), width=width)
        assert figure.get_figwidth() == WIDTHS[width]
        check(figure)


def test_a_column_is_as_wide_as_the_venue_says(tiny):
    check(figures.proximity(tiled(tiny["proximity", "sequence"], 4, 8), width="acl-column"))
    with pytest.raises(ap.UsageError, match="width='acl-colum' is unknown; valid: inches, neurips"):
        figures.proximity(tiny["proximity", "sequence"], width="acl-colum")
    with pytest.raises(ap.UsageError, match="width=1.0: must be 3 to 12 inches"):
        figures.proximity(tiny["proximity", "sequence"], width=1.0)


def test_the_check_of_extents_detects_planted_faults():
    figure = Figure(figsize=(3, 3))
    axes = figure.subplots()
    assert problems(figure) == []
    axes.text(0.5, 0.5, "one")
    axes.text(0.51, 0.51, "two")
    figure.text(0.99, 0.5, "three")
    assert problems(figure) == ["'three' is outside of the page", "'one' and 'two' overlap"]
    axes.set_axis_off()
    axes.texts[0].set_visible(False)
    figure.texts[0].set_visible(False)
    assert problems(figure) == []


@pytest.mark.parametrize("name", ALL)
def test_runs_of_large_networks_fit_on_a_page(name, tiny):
    results = [tiled(tiny[name, "sequence"], 4, 8, seed).assign_attrs(step=10**seed) for seed in range(7)]
    check(FIGURES_OVER_STEPS[name](over_steps(results)))


# --- choice of heads


def test_the_drawn_heads_are_those_farthest_outside_the_nulls(tiny):
    result = tiled(tiny["proximity", "sequence"], 4, 8)
    result["proximity_contrast"][:] = 0.0
    result["proximity_contrast_null"][:] = 0.0
    planted = {(0, 7): 5.0, (1, 2): -4.0, (3, 0): 3.0, (3, 5): 2.0}
    for (layer, head), value in planted.items():
        result["proximity_contrast"][layer, head] = value
    result["proximity_contrast"][2, 2] = 9.0  # inside its null
    result["proximity_contrast_null"].loc[{"layer": 2, "head": 2}] = np.resize([-10.0, 10.0], 4).reshape(2, 2)
    figure = figures.proximity(result)
    (labels,) = [[text.get_text() for text in legend.texts] for part in figure.subfigs for legend in part.legends]
    assert labels[:4:] and set(labels) >= {f"layer {layer}, head {head}" for layer, head in planted}
    assert "layer 2, head 2" not in labels
    assert "4 of 32 heads: largest |contrast| beyond the nulls" in text_of(figure)
    assert "4 of 32 heads: largest |contrast| beyond the nulls" in figures.caption(result)


def test_named_heads_are_drawn_and_unknown_ones_refused(tiny):
    result = tiled(tiny["positions", "image"], 4, 8)
    figure = figures.positions(result, heads=[(3, 1), (0, 6)])
    assert "layer 3, head 1" in text_of(figure) and "layer 0, head 6" in text_of(figure)
    with pytest.raises(ap.UsageError, match=r"\(4, 0\) is not in the result; valid: layer 0 to 3, head 0 to 7"):
        figures.positions(result, heads=[(4, 0)])
    with pytest.raises(ap.UsageError, match=r"1 to 8 fit on one page, got 9; figures.pages draws more"):
        figures.positions(result, heads=all_heads(result)[:9])


def test_further_pages_show_all_heads_of_medium_networks(tiny):
    result = tiled(tiny["proximity", "sequence"], 3, 12)
    shown = figures.pages(result)
    assert len(shown) == 1 + 3 * 2  # two pages of six heads for each layer
    legends = [text_of(page) for page in shown[1:]]
    for layer, head in all_heads(result):
        (page,) = [number for number, text in enumerate(legends) if f"layer {layer}, head {head} " in f"{text} "]
        assert page == 2 * layer + head // 6
    assert len(figures.pages(tiled(result, 12, 12))) == 1
    assert len(figures.pages(tiled(result, 2, 4))) == 1
    assert len(figures.pages(result, heads=all_heads(result)[:10])) == 2
    with pytest.raises(ap.UsageError, match="heads='every'; valid: 'all'"):
        figures.pages(result, heads="every")


def test_beyond_is_the_distance_from_the_range_of_all_draws():
    null = xr.DataArray([[0.0, 1.0], [2.0, -1.0]], dims=("null", "draw"))
    for value, expected in ((3.0, 1.0), (-3.0, 2.0), (1.5, -0.5)):
        assert beyond(xr.DataArray(value), null).item() == expected


# --- selections


@pytest.mark.parametrize("name", [name for name in ALL if name != "flow"])
def test_selected_heads_and_layers_keep_their_names(name, tiny):
    result = tiled(tiny[name, "image"], 2, 4)
    drawn = text_of(FIGURES[name](result.sel(head=[1])))
    assert "layer 0, head 1" in drawn and "layer 1, head 1" in drawn and "head 0" not in drawn
    assert drawn == text_of(FIGURES[name](result.sel(head=1)))
    drawn = text_of(FIGURES[name](result.isel(layer=1)))
    assert "layer 1, head 3" in drawn and "layer 0" not in drawn


def test_one_draw_of_one_head_is_drawn(tiny):
    drawn = text_of(figures.proximity(tiny["proximity", "sequence"].isel(draw=0).sel(layer=1, head=0, null="permuted")))
    assert "layer 1, head 0" in drawn and "positions permuted" in drawn and "and 1 draw)" in drawn


def test_selected_offsets_are_drawn(tiny):
    result = tiny["proximity", "sequence"].sel(offset=slice(-5, 8))
    score = figures.proximity(result).subfigs[3].axes[0]
    assert score.get_xlim() == (-5, 8)
    image = tiny["proximity", "image"].sel(row_offset=slice(-3, 3), column_offset=slice(-2, 2))
    check(figures.proximity(image))


def test_what_cannot_be_drawn_is_refused(tiny):
    result = tiny["proximity", "sequence"]
    for selected, message in (
        (result.drop_vars("mean_distance"), "the result has no variable 'mean_distance'; it has: "),
        (result.sel(offset=0), "score_by_offset has axes layer, head: must have layer, head, offset"),
        (result.isel(head=slice(0)), "axis head .* is empty"),
        (xr.concat([result, result], "recipe"), r"axis recipe with several values; select one, as in sel\(recipe=0\)"),
        (over_steps([result, result.assign_attrs(step=9)]), "axis step with several values.*or draw_over_steps"),
    ):
        with pytest.raises(ap.UsageError, match=message):
            figures.proximity(selected)
    with pytest.raises(ap.UsageError, match="variance_share has axes layer, head: must have layer, head, term"):
        figures.positions(tiny["positions", "sequence"].isel(term=0))
    with pytest.raises(ap.UsageError, match="objective has axes none: must have step"):
        figures.positions_over_steps(tiny["positions", "sequence"].isel(term=0))
    with pytest.raises(ap.UsageError, match="objective has axes none: must have step"):
        figures.proximity_over_steps(result)


# --- several runs


def with_seed(result, seed, **settings):
    config = json.loads(result.attrs["config"]) | {"seed": seed} | settings
    title = result.attrs["title"].replace("seed 0", f"seed {seed}")
    return result.assign_attrs(config=json.dumps(config), title=title)


def test_steps_of_different_runs_are_not_joined(tiny):
    result = tiny["proximity", "sequence"]
    other = with_seed(result, 1).assign_attrs(step=9)
    with pytest.raises(
        ap.UsageError, match=r"different runs \(config seed differ\): pairs, spt, seed 0.* and pairs, s"
    ):
        over_steps([result, other])
    with pytest.raises(ap.UsageError, match="different measures, proximity and positions"):
        over_steps([result, tiny["positions", "sequence"]])
    with pytest.raises(ap.UsageError, match="step 5 occurs twice"):
        over_steps([result, result])
    with pytest.raises(ap.UsageError, match="no results"):
        over_steps([])
    longer = with_seed(result, 0, more_steps=[4], device="cuda").assign_attrs(step=9)
    assert over_steps([result, longer])["step"].values.tolist() == [5, 9]
    joined = xr.concat([result, other], "step")
    with pytest.raises(ap.UsageError, match=r"axis step has values \[0, 0\]: must be numbers, each once"):
        figures.proximity_over_steps(joined.assign_coords(step=[0, 0]))


def test_only_seeds_may_differ(tiny):
    result = tiny["proximity", "sequence"]
    joined = over_seeds([result, with_seed(result, 3)])
    assert joined["seed"].values.tolist() == [0, 3] and "title" not in joined.attrs
    for others, message in (
        ([], "no results"),
        ([result, result], "seeds 0, 0 are not different"),
        ([result, with_seed(result, 1, task="text")], "differ in more than their seeds: config task"),
        ([result, tiny["positions", "sequence"]], "different measures"),
        ([result.assign_attrs(config="{}")], "no seed of training"),
    ):
        with pytest.raises(ap.UsageError, match=message):
            over_seeds(others)


@pytest.mark.parametrize("name", ALL)
def test_means_over_seeds_are_drawn(name, tiny):
    results = [with_seed(tiled(tiny[name, "image"], 2, 2, seed), seed) for seed in range(3)]
    figure = FIGURES[name](over_seeds(results))
    assert f"{name}: mean over 3 seeds (0, 1, 2)" in text_of(figure)
    check(figure)


def test_runs_joined_by_xarray_are_not_drawn_under_the_title_of_the_first(tiny):
    result = tiny["proximity", "sequence"]
    drawn = text_of(figures.proximity(xr.concat([result, with_seed(result, 1)], "run")))
    assert "mean over 2 runs (0, 1)" in drawn and "seed 0" not in drawn


def test_heads_are_sorted_before_the_mean_over_seeds(tiny):
    """Heads of different networks do not correspond: the mean over seeds is that of the k-th largest heads."""
    first = tiled(tiny["proximity", "sequence"], 2, 4)
    second = with_seed(first.copy(deep=True), 1)
    first["proximity_contrast"][:] = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 5.0]]
    second["proximity_contrast"][:] = [[8.0, 6.0, 4.0, 2.0], [0.0, 1.0, 0.0, 0.0]]
    expected = [[6.0, 4.5, 3.0, 1.5], [3.0, 0.0, 0.0, 0.0]]
    (image, *_) = figures.proximity(over_seeds([first, second])).subfigs[1].axes[0].images
    np.testing.assert_allclose(image.get_array(), expected)
    by_hand = first["score_by_offset"][0, 3] / 2 + second["score_by_offset"][0, 0] / 2
    curves = figures.proximity(over_seeds([first, second])).subfigs[3].axes[0].lines
    drawn = {curve.get_label(): curve for curve in curves}["layer 0, head 0"]
    np.testing.assert_allclose(drawn.get_ydata(), by_hand.sel(offset=slice(-16, 16)))


def test_runs_of_several_seeds_are_drawn_over_steps(tiny):
    runs = []
    for seed in range(2):
        result = with_seed(tiny["proximity", "sequence"], seed)
        runs.append(over_steps([result, tiled(result, 2, 2, seed).assign_attrs(step=9)]))
    check(figures.proximity_over_steps(join(runs, "seed", [0, 1])))


# --- parts of figures


def test_values_by_distance_are_means_over_pairs():
    offsets = {"row_offset": [-1, 0, 1], "column_offset": [-1, 0, 1]}
    values = xr.DataArray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], offsets, list(offsets))
    counts = xr.DataArray([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], offsets, list(offsets))
    interval = xr.concat([values - 1, values + 3], "bound").assign_coords(bound=["lower", "upper"])
    result = xr.Dataset({"x": values, "x_interval": interval})
    # diagonal neighbours, at distance 1.41, count as distance 1
    near = (np.sum(values * counts) - 20.0) / 12
    drawn = by_distance(result, "x", counts)
    np.testing.assert_allclose(drawn["x"], [5.0, near])
    np.testing.assert_allclose(drawn["x_interval"].sel(bound="upper") - drawn["x"], 2.0)
    sums = by_distance(result, "x", counts, divided=True)
    np.testing.assert_allclose(sums["x"], [5.0 / 4, 40.0 / 12])


def test_attention_by_distance_is_uniform_for_uniform_attention(tiny):
    result = tiny["proximity", "image"].copy()
    uniform = result["grid_uniform_pattern_by_offset"]
    result["grid_pattern_by_offset"] = uniform + 0 * result["grid_pattern_by_offset"].fillna(0)
    drawn = by_distance(result, "grid_pattern_by_offset", uniform, divided=True)["grid_pattern_by_offset"]
    np.testing.assert_allclose(drawn, 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.75, "0.75"), (-0.004, "−4e-3"), (0.0, "0.00"), (-0.0, "0.00"), (123.4, "123"), (np.nan, "–"), (2e6, "2e6")],
)
def test_numbers_in_figures(value, text):
    assert number_text(value) == text


def test_titles_and_captions_are_optional(tiny):
    result = tiny["proximity", "sequence"]
    plain = figures.proximity(result, titles=False, caption=False)
    assert "seed 0" not in text_of(plain) and "Means over" not in text_of(plain)
    full = figures.proximity(result)
    assert figures.caption(result) in text_of(full) and "seed 0" in text_of(full)
    assert plain.get_figheight() < full.get_figheight()


def test_panels_are_drawn_into_given_axes(tiny):
    result = tiny["proximity", "sequence"]
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert figures.head_map(result, "proximity_contrast", ax=left) is left
    np.testing.assert_array_equal(left.images[0].get_array(), result["proximity_contrast"])
    figures.by_offset(result, "score_by_offset", heads=[(1, 0)], ax=right)
    expected = result["score_by_offset"].sel(layer=1, head=0, offset=slice(-16, 16))
    drawn = {curve.get_label(): curve for curve in right.lines}["layer 1, head 0"]
    np.testing.assert_array_equal(drawn.get_ydata(), expected)
    FigureCanvasAgg(figure).draw()
    assert figures.head_map(result, "entropy").figure is not figure
    with pytest.raises(ap.UsageError, match="no variable 'contrast'"):
        figures.head_map(result, "contrast")


def test_files_have_all_pages_and_the_same_bytes(tiny, tmp_path):
    from attnprobe.report.write import write_figure

    result = tiled(tiny["proximity", "sequence"], 2, 5)
    for name in ("a", "b"):
        write_figure(figures.pages(result), tmp_path / name, "title")
    first, second = ((tmp_path / name).with_suffix(".pdf").read_bytes() for name in ("a", "b"))
    assert first == second and first.count(b"/Type /Page ") == 3


def test_positions_have_no_rounding_errors_of_the_solver(tiny):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (page,) = figures.pages(tiny["proximity", "image"])
    FigureCanvasAgg(page).draw()
    boxes = [part.bbox_relative for part in page.subfigs] + [axes.get_position(original=True) for axes in page.axes]
    corners = np.stack([box.get_points() for box in boxes])
    np.testing.assert_array_equal(corners, corners.round(9))
    assert len(boxes) > 4 and all(axes.get_in_layout() for axes in page.axes)
