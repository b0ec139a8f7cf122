"""Animations show every checkpoint once, in order, on common axes."""

import shutil

import numpy as np
import pytest
from PIL import Image
from support import checkpoint
from synthetic import tiled

from attnprobe import UsageError, figures, proximity
from attnprobe.config import DataSpec
from attnprobe.figures.animation import align


@pytest.fixture(scope="module")
def results():
    """Results of three steps of a network of 4 x 8 heads, with contrasts of different size and sign."""
    measured = proximity(checkpoint(DataSpec(n=32, inputs="tokens", classes=2, vocabulary=6)), sequences=4, nulls=1)
    steps = [tiled(measured, 4, 8).assign_attrs(step=step) for step in (0, 10, 20)]
    for result, factor in zip(steps, (0.0, -1.0, 3.0), strict=True):
        result["proximity_contrast"][:] = factor * np.linspace(0.1, 1, 32).reshape(4, 8)
    return steps


def test_frames_are_the_steps_in_order(results, tmp_path):
    path = figures.animate(results[::-1], tmp_path / "folder" / "run.gif", seconds=0.1, dpi=40)
    with Image.open(path) as animation:
        assert animation.n_frames == 3
        durations, frames = [], []
        for number in range(3):
            animation.seek(number)
            durations.append(animation.info["duration"])
            frames.append(np.asarray(animation.convert("RGB"), dtype=int))
    assert durations == [100, 100, 400]
    redness = [(frame[..., 0] - frame[..., 2]).sum() for frame in frames]
    assert redness[1] < redness[0] < redness[2]  # maps of contrasts 0, negative and positive


def test_panels_of_all_steps_have_common_scales(results):
    drawn = [figures.proximity(result) for result in results]
    own = [figure.axes[0].images[0].get_clim() for figure in drawn]
    align(drawn)
    for panels in zip(*(figure.axes for figure in drawn), strict=True):
        assert len({panel.get_xlim() for panel in panels}) == len({panel.get_ylim() for panel in panels}) == 1
    assert [figure.axes[0].images[0].get_clim() for figure in drawn] == [own[2]] * 3
    colours = {tuple(text.get_color() for text in figure.axes[0].texts) for figure in drawn}
    assert len(colours) <= 3
    assert own[2] == (-3.0, 3.0)


def test_maps_by_offset_keep_the_scale_that_they_state(image_checkpoint):
    measured = proximity(image_checkpoint, sequences=4, nulls=1)
    drawn = [figures.proximity(measured), figures.proximity(measured)]
    for figure in drawn:
        figure.draw_without_rendering()
    before = texts(drawn[0])
    assert "≥ 8" in before and "≤ 1/8" in before
    align(drawn)
    drawn[0].draw_without_rendering()
    assert texts(drawn[0]) == before


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}


def test_the_heads_are_those_of_the_last_step(results, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("attnprobe.figures.animation.align", drawn.extend)
    figures.animate(results[1:], tmp_path / "run.gif", dpi=20)
    for figure in drawn:
        texts = {text.get_text() for part in figure.subfigs for legend in part.legends for text in legend.texts}
        assert {text for text in texts if "head " in text} == {f"layer 3, head {head}" for head in (4, 5, 6, 7)}


def test_what_cannot_be_animated_is_refused(results, tmp_path):
    for path, options, message in (
        ("run.png", {}, "run.png: must end in .gif, .mp4"),
        ("run.gif", {"seconds": 0}, "seconds=0: must be 0.02 to 60"),
    ):
        with pytest.raises(UsageError, match=message):
            figures.animate(results, tmp_path / path, **options)
    with pytest.raises(UsageError, match="step 0 occurs twice"):
        figures.animate([results[0]] * 2, tmp_path / "run.gif")
    assert not list(tmp_path.iterdir())


def test_video_needs_ffmpeg(results, tmp_path):
    path = tmp_path / "run.mp4"
    if shutil.which("ffmpeg") is None:
        with pytest.raises(UsageError, match="needs the program ffmpeg"):
            figures.animate(results, path)
        return
    assert figures.animate(results[:2], path, dpi=40).read_bytes()[4:8] == b"ftyp"
