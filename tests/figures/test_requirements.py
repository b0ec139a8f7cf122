"""Figures of edited results: what is missing or malformed ends in one line that names it."""

import functools
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from support import N, checkpoint

import attnprobe as ap
from attnprobe.config import DataSpec
from attnprobe.figures import draw, draw_over_steps
from attnprobe.figures.requirements import EMPTY, UNLABELLED
from attnprobe.results import UNDEFINED, over_steps
from attnprobe.tables import MEASURES

NETWORKS = {
    "sequence": {"n_heads": 2, "n_layers": 2},
    "image": {"n_heads": 2, "data": DataSpec(N, "tokens", 2, vocabulary=6, grid=(3, 4)), "position": "rotary"},
}


@functools.cache
def measured(name, network):
    return MEASURES[name](checkpoint(**NETWORKS[network]), sequences=4, nulls=1)


def of_run(name, network):
    return over_steps([measured(name, network).assign_attrs(step=step) for step in (1, 2)])


def unnamed(name, network):
    """Return the result of a measure that has no figure of its own."""
    return measured(name, network).assign_attrs(measure="mine")


CASES = [
    pytest.param(draw_figure, make, name, network, id=f"{make.__name__} {name} {network}")
    for draw_figure, make in ((draw, measured), (draw_over_steps, of_run), (draw, unnamed))
    for name in MEASURES
    for network in NETWORKS
    if make is not unnamed or name == "proximity"
]


def with_attributes(result, names):
    """Return a result with these attributes only."""
    return result.drop_attrs(deep=False).assign_attrs({name: result.attrs[name] for name in names})


def least(draw_figure, result):
    """Return the part of a result that its figure requires, found by adding what the messages name."""
    # A result is of images if it has variables of images; the default figure draws what there is.
    first = {
        "mine": [f"{name}{tail}" for name in ("score_by_offset", "toeplitz_share") for tail in ("", "_interval")],
        "gradients": ["grid_descent"],
        "flow": ["grid_field_distance_ratio"],
    }
    variables = [name for name in first.get(result.attrs["measure"], ["grid_proximity_contrast"]) if name in result]
    attributes = []
    while True:
        part = with_attributes(result, attributes)[variables]
        try:
            draw_figure(part)
        except ap.UsageError as error:
            found = re.search(r"no variable '(\w+)'|attribute '?(\w+)", str(error))
            assert found, error
            variables += [found[1]] if found[1] else []
            attributes += [found[2]] if found[2] else []
            assert len(variables) == len(set(variables)) and len(attributes) == len(set(attributes)), error
        else:
            nulls = [f"{name}_null" for name in variables if f"{name}_null" in result]
            return part.assign(result[nulls])


def edits(result):
    """Yield what an edit damages, and the damaged result."""
    for name in result.attrs:
        yield name, with_attributes(result, [other for other in result.attrs if other != name])
        yield name, result.assign_attrs({name: 5 if isinstance(result.attrs[name], str) else "x"})
        yield name, result.assign_attrs({name: np.zeros(2)})
    for name, array in result.items():
        yield name, result.assign({name: (array.dims, np.full(array.shape, 1j))})
        if array.dtype.kind == "f":
            yield name, result.assign({name: array.astype(str)})
            yield name, result.assign({name: array.where(False, np.inf)})
        for axis in array.dims:
            yield name, result.assign({name: array.isel({axis: 0}, drop=True)})
    for axis in result.dims:
        if axis not in EMPTY:
            yield axis, result.isel({axis: []})
        if axis in result.coords and axis not in UNLABELLED:
            values = result[axis].values
            yield axis, result.drop_vars(axis)
            yield axis, result.assign_coords({axis: [1j * number for number in range(len(values))]})
            yield axis, result.assign_coords({axis: [b"x"] * len(values)})
            if len(values) > 1:
                yield axis, result.assign_coords({axis: [values[0]] * len(values)})


@pytest.mark.parametrize(("draw_figure", "make", "name", "network"), CASES)
def test_what_a_figure_requires_is_named_if_it_is_missing_or_malformed(draw_figure, make, name, network):
    part = least(draw_figure, make(name, network))
    for damaged, edited in edits(part):
        try:
            draw_figure(edited)
        except ap.UsageError as error:
            assert damaged in str(error) and len(str(error)) <= 1000, (damaged, error)
        else:
            assert damaged.endswith("_null") or make is unnamed and damaged in part, f"{damaged}: {edited}"


@pytest.mark.slow
def test_what_is_no_result_is_refused_in_one_line():
    """In a process of its own, since these tests check the types of arguments before the functions do."""
    script = """
import attnprobe as ap
for name in ap.figures.__all__:
    more = {"animate": ["x.gif"], "head_map": ["entropy"], "by_offset": ["entropy"]}.get(name, [])
    for other in (["pairs.nc"],) if name == "animate" else ("pairs.nc", 3):
        try:
            getattr(ap.figures, name)(other, *more)
        except ap.UsageError as error:
            print(error)
try:
    ap.train("pairs")
except ap.UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *figures, trained = done.stdout.splitlines()
    assert len(figures) == 2 * len(ap.figures.__all__) - 1
    assert all(re.fullmatch("('pairs.nc'|3): must be a result, an xarray.Dataset; open .*", line) for line in figures)
    assert trained.startswith("'pairs': must be the settings of a run, as attnprobe.configure(TASK)")


@pytest.mark.parametrize("rules", ["", "{}x", "5", "[5]", '[{"layer": [0]}]', '[{"reason": "x", "layer": 0}]'])
def test_malformed_reasons_of_undefined_values_are_named(rules):
    result = measured("proximity", "sequence").copy(deep=True)
    result["proximity_contrast"][0, 0] = np.nan
    result["proximity_contrast"].attrs[UNDEFINED] = rules
    with pytest.raises(ap.UsageError, match="^proximity_contrast: attribute undefined="):
        draw(result)


@pytest.mark.parametrize("name", MEASURES)
def test_the_order_of_axes_does_not_change_the_figure(name):
    def pixels(result):
        buffer = io.BytesIO()
        draw(result).savefig(buffer, format="raw", dpi=40)
        return buffer.getvalue()

    result = measured(name, "sequence")
    assert pixels(result.transpose(*reversed(list(result.dims)))) == pixels(result)


def test_a_run_is_drawn_with_other_interventions_than_the_usual():
    results = [
        ap.interventions(checkpoint(), sequences=4, nulls=0, edits=("shift_positions",)).assign_attrs(step=step)
        for step in (1, 2)
    ]
    figure = draw_over_steps(over_steps(results))
    assert [axis.get_ylabel() for axis in figure.axes[1:]] == ["shift\npositions:\naccuracy change"]
