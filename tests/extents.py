"""Where the texts of a figure are."""

from itertools import combinations

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

TOLERANCE = 0.5
"""Points by which the boxes of texts, which include some empty space, may overlap."""


def problems(figure):
    """Return the texts of a figure that are outside of the page, and the pairs that overlap."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    tolerance = TOLERANCE * figure.dpi / 72
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in visible(figure)]
    page = figure.bbox
    outside = [
        f"{name!r} is outside of the page"
        for name, box in boxes
        if box.x0 < page.x0 - tolerance
        or box.y0 < page.y0 - tolerance
        or box.x1 > page.x1 + tolerance
        or box.y1 > page.y1 + tolerance
    ]
    overlapping = [
        f"{first!r} and {second!r} overlap"
        for (first, a), (second, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > tolerance and min(a.y1, b.y1) - max(a.y0, b.y0) > tolerance
    ]
    return outside + overlapping


def visible(figure):
    """Return the texts that are drawn: not those of hidden axes or of ticks outside of the limits."""
    hidden = set()
    for axes in figure.axes:
        if not axes.axison or not axes.get_visible():
            hidden |= {id(text) for axis in (axes.xaxis, axes.yaxis) for text in axis.findobj(Text)}
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - slack <= tick.get_loc() <= high + slack or not tick.get_visible():
                hidden |= {id(tick.label1), id(tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]
