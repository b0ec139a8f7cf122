"""Style of all figures: widths of venues, readable in print and with colour-vision deficiency."""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

from attnprobe.errors import UsageError, listed

WIDTH = 5.5
"""Default figure width in inches: the text width of most one-column venues."""
WIDTHS = {
    "neurips": 5.5,
    "iclr": 5.5,
    "icml": 6.75,
    "icml-column": 3.25,
    "acl": 6.3,
    "acl-column": 3.03,
    "ieee": 7.16,
    "ieee-column": 3.5,
    "nature": 7.2,
    "nature-column": 3.5,
}
"""Text and column widths of venues, in inches."""
NARROWEST, WIDEST = 3.0, 12.0
"""Limits of figure widths in inches: panels with their labels fit into no less."""
WIDE = 4.5
"""Smallest width in inches at which panels are beside each other."""
HEIGHT = 9.0
"""Largest figure height in inches: the text height of a page."""

# Okabe & Ito's palette is distinguishable with all common kinds of colour blindness; black last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A900", "#000000")
DASHES = ("-", (0, (4, 1)), (0, (4, 1, 1, 1)), (0, (1, 0.8)))
PERMUTED = "#9A9A9A"
INITIAL = "#555555"
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
TITLE_SIZE, SMALL_SIZE = 8.0, 5.8
"""Font sizes in points, of titles and of captions and the smallest labels."""


def paper() -> AbstractContextManager[None]:
    """Return the Matplotlib context in which all figures are drawn and saved."""
    return matplotlib.rc_context(
        {
            "font.size": 7.5,
            "axes.titlesize": 7.5,
            "axes.labelsize": 7.5,
            "xtick.labelsize": 6.5,
            "ytick.labelsize": 6.5,
            "legend.fontsize": 6.5,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.1,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.dpi": 150,
            "savefig.dpi": 300,
            "text.hinting": "none",  # text has the same width at every resolution
            "pdf.fonttype": 42,  # keep text as text in the PDF
            "svg.fonttype": "none",
        }
    )


class RoundedLayout(ConstrainedLayoutEngine):
    """Constrained layout without the rounding errors of its solver, whose order of operations differs between runs."""

    def execute(self, fig: Figure) -> Any:
        """Place everything, and round all positions to 1e-9 of the figure."""
        grids = super().execute(fig)
        parts = list(fig.subfigs)
        while parts:
            part = parts.pop()
            part.bbox_relative.set(_rounded(part.bbox_relative))
            parts += part.subfigs
        for axes in fig.axes:
            is_laid_out = axes.get_in_layout()
            axes.set_position(_rounded(axes.get_position(original=True)))
            axes.set_in_layout(is_laid_out)  # `set_position` removes axes from the layout
        return grids


def _rounded(box: Any) -> Bbox:
    return Bbox(box.get_points().round(9) + 0.0)  # 0.0: no negative zeros


class Page(Figure):
    """A figure that Jupyter can display without pyplot and its global state; the same content gives the same bytes."""

    def __init__(self, figsize: tuple[float, float]) -> None:
        """Make an empty figure of a width and height in inches."""
        super().__init__(figsize=figsize, layout=RoundedLayout())

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG at screen resolution."""
        buffer = io.BytesIO()
        with paper():
            self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def width_in_inches(width: float | str) -> float:
    """Return a width in inches, given as a number or as a name of `WIDTHS`.

    Raises:
        UsageError: If the name is unknown or the number outside `NARROWEST` to `WIDEST`.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise UsageError(f"width={width!r} is unknown; valid: inches, {listed(WIDTHS)}")
        return WIDTHS[width]
    if not NARROWEST <= width <= WIDEST:
        raise UsageError(f"width={width!r}: must be {NARROWEST:g} to {WIDEST:g} inches, or one of {listed(WIDTHS)}")
    return float(width)


def line(number: int) -> dict[str, Any]:
    """Return colour and dash pattern of the n-th line; both vary, so lines are distinguishable in greyscale.

    The first 8 lines differ in colour, the first 32 in the combination.
    """
    turn = number // len(COLOURS)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[(number + turn) % len(DASHES)]}
