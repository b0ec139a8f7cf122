"""Pages: blocks of panels under each other, with title, legends and caption of measured size."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path

from attnprobe.figures.selection import Choice, Head
from attnprobe.figures.style import HEIGHT, INITIAL, PERMUTED, SMALL_SIZE, TITLE_SIZE, Page, line, paper

MARGIN = 0.08
"""Margin left and right of title, legends and caption, in inches."""
LEGEND_SIZE = 6.5


@dataclass(frozen=True)
class Block:
    """A part of a page over its full width."""

    height: float
    """Height in inches."""
    draw: Callable[[SubFigure], None]
    is_text: bool = False
    """Whether the part is text, whose height cannot shrink."""


@dataclass(frozen=True)
class Sheet:
    """A page before it is drawn."""

    width: float
    title: str
    blocks: Sequence[Block]
    caption: str
    heads: tuple[Head, ...] = ()
    """Heads drawn in detail."""

    def figure(self, titles: bool = True, caption: bool = True) -> Figure:
        """Draw the page; it is at most `HEIGHT` inches tall.

        Args:
            titles: Draw the title.
            caption: Draw the caption.
        """
        blocks = [
            *([text_block(self.title, self.width, TITLE_SIZE, centred=True)] if titles and self.title else []),
            *self.blocks,
            *([text_block(self.caption, self.width, SMALL_SIZE)] if caption and self.caption else []),
        ]
        texts = sum(block.height for block in blocks if block.is_text)
        panels = sum(block.height for block in blocks if not block.is_text)
        scale = min(1.0, (HEIGHT - texts) / panels)
        heights = [block.height if block.is_text else block.height * scale for block in blocks]
        with paper():
            page = Page(figsize=(self.width, sum(heights)))
            page.get_layout_engine().set(h_pad=0.03, w_pad=0.03)  # pyright: ignore
            parts = page.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False, hspace=0)[:, 0]
            for part, block in zip(parts, blocks, strict=True):
                block.draw(part)
        return page


def text_block(text: str, width: float, size: float, centred: bool = False) -> Block:
    """Return a block of text, wrapped to the width."""
    wrapped = wrap(text, width - 2 * MARGIN, size)
    height = (1.35 * size * (wrapped.count("\n") + 1) + 6) / 72

    def draw(part: SubFigure) -> None:
        x, alignment = (0.5, "center") if centred else (MARGIN / width, "left")
        part.text(x, 0.5, wrapped, fontsize=size, va="center", ha=alignment, linespacing=1.2)

    return Block(height, draw, is_text=True)


def legend_block(entries: Sequence[tuple[Artist, str]], width: float, heading: str = "") -> Block:
    """Return a legend in as many columns as fit into the width."""
    handle_and_gap = 3.9 * LEGEND_SIZE / 72
    widths = [text_width(text, LEGEND_SIZE) + handle_and_gap for _, text in entries]
    columns = len(entries)
    while columns > 1 and sum(max(widths[column::columns]) for column in range(columns)) > width - 2 * MARGIN:
        columns -= 1
    rows = -(-len(entries) // columns)
    heading = wrap(heading, width - 2 * MARGIN, LEGEND_SIZE)
    lines = rows + (heading.count("\n") + 1 if heading else 0)

    def draw(part: SubFigure) -> None:
        # Matplotlib fills columns first; readers expect rows first.
        order = [entry for column in range(columns) for entry in entries[column::columns]]
        part.legend(
            [artist for artist, _ in order],
            [text for _, text in order],
            loc="center",
            ncols=columns,
            title=heading or None,
            title_fontsize=LEGEND_SIZE,
            handlelength=2.2,
            handletextpad=0.6,
            columnspacing=1.0,
            labelspacing=0.3,
            borderpad=0,
            borderaxespad=0,
        )

    return Block((1.45 * LEGEND_SIZE * lines + 5) / 72, draw, is_text=True)


def head_entries(choice: Choice, marker: str | None = None) -> list[tuple[Artist, str]]:
    """Return the legend entries of the drawn heads."""
    style: dict[str, Any] = {} if marker is None else {"marker": marker, "markersize": 3}
    entries: list[tuple[Artist, str]] = []
    for number, head in enumerate(choice.heads):
        of_head = line(number) if marker is None else {"color": line(number)["color"], "linestyle": ""}
        entries.append((Line2D([], [], **of_head, **style), choice.name(head)))
    return entries


def null_entries(kinds: Sequence[str]) -> list[tuple[Artist, str]]:
    """Return the legend entries of a result's nulls."""
    entries: list[tuple[Artist, str]] = []
    if "permuted" in kinds:
        entries.append((Patch(color=PERMUTED, alpha=0.45, linewidth=0), "positions permuted"))
    if "initial" in kinds:
        style: dict[str, Any] = {"color": INITIAL, "linewidth": 0.7, "linestyle": (0, (3, 2))}
        entries.append((Line2D([], [], **style), "networks at initialisation"))
    return entries


def wrap(text: str, width: float, size: float) -> str:
    """Break text into lines that are at most ``width`` inches wide; line breaks in the text are kept."""
    lines = []
    for paragraph in text.split("\n"):
        current = ""
        for word in paragraph.split():
            longer = f"{current} {word}".strip()
            if current and text_width(longer, size) > width:
                lines.append(current)
                longer = word
            current = longer
        lines.append(current)
    return "\n".join(lines)


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Return the width of one line of text in inches, at a font size in points."""
    with paper():
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72
