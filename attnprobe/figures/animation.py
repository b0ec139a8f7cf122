"""Animations: the figure of every checkpoint of a run in turn, on common axes and colour scales."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.animation import FFMpegWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from attnprobe.errors import UsageError, listed
from attnprobe.figures import default
from attnprobe.figures.pages import SHEETS
from attnprobe.figures.panels import HEAD_MAP, colour_numbers, plain_bar
from attnprobe.figures.selection import Head
from attnprobe.figures.style import WIDTH, paper
from attnprobe.files import atomic_path, writing
from attnprobe.results import over_steps
from attnprobe.tables import FIGURES

SUFFIXES = (".gif", ".mp4")
LAST = 4
"""Frames for which the last checkpoint is shown."""


def animate(
    results: Sequence[xr.Dataset],
    path: str | Path,
    heads: Sequence[Head] | None = None,
    *,
    width: float | str = WIDTH,
    seconds: int | float = 0.5,
    dpi: int = 150,
) -> Path:
    """Write the figures of a run's checkpoints as an animation, in the order of their steps.

    All frames have the same heads, axis limits and colour scales of the layer x head maps, so that what moves is the
    result. Other maps have a fixed scale, or state that of each frame.

    Args:
        results: Results of one measure at checkpoints of one run.
        path: File to write; ``.gif``, or ``.mp4``, which needs the program ffmpeg.
        heads: Heads to draw in detail, as (layer, head); by default those of the figure of the last checkpoint.
        width: Figure width in inches, or a name in `attnprobe.figures.style.WIDTHS`.
        seconds: Time per checkpoint, at least 0.02. The last one stays four times as long.
        dpi: Pixels per inch.

    Returns:
        The path.

    Raises:
        UsageError: If the results are not of one run, a figure lacks something, or the file cannot be written.
    """
    path = Path(path)
    check(path, seconds)
    frames = _frames(results, heads, width, dpi)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            _write(frames, part, path.suffix, seconds)
    return path


def check(path: Path, seconds: int | float) -> None:
    """Raise `UsageError` if no animation can be written to a path, or with this time per checkpoint."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: must end in {listed(SUFFIXES)}")
    if path.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise UsageError(f"{path}: .mp4 needs the program ffmpeg, which is not installed; .gif does not")
    if not 0.02 <= seconds <= 60:
        raise UsageError(f"seconds={seconds}: must be 0.02 to 60")


def _frames(
    results: Sequence[xr.Dataset], heads: Sequence[Head] | None, width: float | str, dpi: int
) -> list[Image.Image]:
    """Return the figures as images of one size."""
    over_steps(results)  # raises an error unless they are of one run
    results = sorted(results, key=lambda result: result.attrs["step"])
    measure = results[-1].attrs["measure"]
    if measure in FIGURES and measure not in SHEETS:
        figures = [FIGURES[measure](result) for result in results]
    else:
        compose = SHEETS.get(measure, default.sheet)
        heads = compose(results[-1], heads, width).heads
        figures = [compose(result, heads, width).figure(caption=False) for result in results]
    align(figures)
    images = []
    for figure in figures:
        buffer = io.BytesIO()
        with paper():
            figure.savefig(buffer, format="png", dpi=dpi)
        images.append(Image.open(buffer).convert("RGB"))
    # even, which video needs
    size = tuple(2 * (max(sides) // 2) for sides in zip(*(image.size for image in images), strict=True))
    frames = [Image.new("RGB", size, "white") for _ in images]
    for frame, image in zip(frames, images, strict=True):
        frame.paste(image)
    return frames


def align(figures: Sequence[Figure]) -> None:
    """Give corresponding panels of several figures common axis limits, and layer x head maps common colours.

    Figures whose panels do not correspond, because some show less, are left as they are.
    """
    if len({len(figure.axes) for figure in figures}) > 1:
        return
    for panels in zip(*(figure.axes for figure in figures), strict=True):
        if panels[0].get_label() == "<colorbar>":  # its limits are those of its map
            continue
        _align_limits(panels)
        for images in zip(*(_head_maps(panel) for panel in panels), strict=True):
            scales = np.array([image.get_clim() for image in images])
            low, high = float(scales[:, 0].min()), float(scales[:, 1].max())
            signed = next((image for image in images if image.get_clim()[0] < 0), images[-1])
            for image in images:
                image.set_cmap(signed.get_cmap())
                image.set_clim(min(low, -high) if low < 0 else low, max(high, -low) if low < 0 else high)
                if image.colorbar is not None:  # it has lost its ticks
                    plain_bar(image.colorbar, 3)
        for panel in panels:
            if _head_maps(panel):
                colour_numbers(panel)


def _head_maps(panel: Axes) -> list[AxesImage]:
    return [image for image in panel.images if image.get_label() == HEAD_MAP]


def _align_limits(panels: Sequence[Axes]) -> None:
    """Give panels the union of their limits; an axis that is drawn from high to low stays so."""
    for axis in ("x", "y"):
        limits = np.array([getattr(panel, f"get_{axis}lim")() for panel in panels])
        low, high = float(limits.min()), float(limits.max())
        reverse = limits[0, 0] > limits[0, 1]
        for panel in panels:
            getattr(panel, f"set_{axis}lim")(*((high, low) if reverse else (low, high)))


def _write(frames: Sequence[Image.Image], path: Path, suffix: str, seconds: int | float) -> None:
    """Write frames to a file, whatever the suffix of its temporary name."""
    if suffix == ".gif":
        durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * seconds * LAST)]
        # One palette for all frames: with one each, the same colour would flicker.
        palette = frames[-1].quantize(256, dither=Image.Dither.NONE)
        first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
        first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
        return
    width, height = frames[0].size
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    image = figure.figimage(np.asarray(frames[0]))
    writer = FFMpegWriter(fps=1 / seconds, extra_args=["-pix_fmt", "yuv420p", "-f", "mp4"])  # pyright: ignore
    with writer.saving(figure, str(path), dpi=100):
        for frame in [*frames, *[frames[-1]] * (LAST - 1)]:
            image.set_data(np.asarray(frame))
            writer.grab_frame()
