"""One look for every figure: text width of a one-column paper, readable in print and without colour vision."""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

WIDTH = 5.5
"""Inches: the text width of most one-column venues; two-column venues set it across both."""

# Okabe & Ito's palette, which stays apart under all common kinds of colour blindness; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A900", "#000000")
DASHES = ("-", (0, (4, 1)), (0, (4, 1, 1, 1)), (0, (1, 0.8)))
PERMUTED = "#9A9A9A"
INITIAL = "#555555"
DIVERGING = "RdBu_r"


def paper() -> AbstractContextManager[None]:
    """Return the context in which every figure is made and saved."""
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
            "pdf.fonttype": 42,  # text stays text in the PDF
            "svg.fonttype": "none",
        }
    )


class Page(Figure):
    """A figure that Jupyter shows without pyplot, and so without its global state."""

    def _repr_png_(self) -> bytes:
        """Return the picture at the resolution of a screen."""
        made = io.BytesIO()
        with paper():
            self.savefig(made, format="png", dpi=150)
        return made.getvalue()


def line(number: int) -> dict[str, Any]:
    """Return colour and dash of the n-th line: both change, so that lines stay apart in greyscale."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
