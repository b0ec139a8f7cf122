"""Style of all figures: one-column text width, readable in print and with colour-vision deficiency."""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

WIDTH = 5.5
"""Figure width in inches: the text width of most one-column venues, both columns of two-column ones."""

# Okabe & Ito's palette is distinguishable with all common kinds of colour blindness; black last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A900", "#000000")
DASHES = ("-", (0, (4, 1)), (0, (4, 1, 1, 1)), (0, (1, 0.8)))
PERMUTED = "#9A9A9A"
INITIAL = "#555555"
DIVERGING = "RdBu_r"


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
            "pdf.fonttype": 42,  # keep text as text in the PDF
            "svg.fonttype": "none",
        }
    )


class Page(Figure):
    """A figure that Jupyter can display without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG at screen resolution."""
        buffer = io.BytesIO()
        with paper():
            self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def line(number: int) -> dict[str, Any]:
    """Return colour and dash pattern of the n-th line; both vary, so lines are distinguishable in greyscale."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
