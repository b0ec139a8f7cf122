import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest

from attnprobe.errors import UsageError
from attnprobe.tasks import pathfinder
from attnprobe.tasks.pathfinder import SCALES, Drawing, Pathfinder, rendered
from attnprobe.tasks.pixels import permutation


@pytest.fixture(scope="module", params=SCALES)
def drawing(request):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pathfinder, "DRAWS", 100)
        patched.setattr(pathfinder, "ROUNDS", 500)
        options = {"contour_length": 5} if request.param == 16 else {}
        return Pathfinder(side=request.param, **options).drawing(0, 0)


@pytest.fixture(scope="module")
def many():
    """Images of side 32, enough for their statistics."""
    return Pathfinder().drawing(1, 0)


def distances(drawing, image):
    """Return distances [paddle, paddle], from many points on each, and the indices of the existing paddles."""
    present = np.flatnonzero(~np.isnan(drawing.tails[image]))
    along = np.linspace(0, drawing.scale.paddle, 41)
    points = drawing.tails[image, present, None] + along * drawing.directions[image, present, None]
    flat = points.ravel()
    return abs(flat[:, None] - flat).reshape(len(present), 41, len(present), 41).min(axis=(1, 3)), present


def components(linked):
    """Return the component number of each node."""
    number = np.arange(len(linked))
    for _ in number:
        number = np.where(linked, number, len(linked)).min(axis=1)
    return number


def test_the_label_is_whether_the_marked_ends_belong_to_one_curve(drawing):
    ends = drawing.ends
    assert set(drawing.labels) == {0, 1}
    for image, (start, end) in enumerate(drawing.markers):
        first = np.flatnonzero(np.isclose(ends[image, :, 0], start))
        last = np.flatnonzero(np.isclose(ends[image, :, 1], end))
        assert len(first) == len(last) == 1
        assert (first[0] == last[0]) == drawing.labels[image]


def test_following_the_nearest_paddles_from_a_marker_gives_the_label(drawing):
    for image in range(12):
        apart, present = distances(drawing, image)
        linked = apart < 2 * drawing.margins[image] * (1 - 1e-9)
        component = components(linked)
        curves = drawing.curves[present]
        assert ((component[:, None] == component) == (curves[:, None] == curves)).all()
        tails, heads = drawing.tails[image, present], drawing.heads[image, present]
        start, end = (
            component[np.minimum(abs(tails - marker), abs(heads - marker)).argmin()]
            for marker in drawing.markers[image]
        )
        assert (start == end) == drawing.labels[image]


def test_paddles_keep_their_distance_and_stay_inside(drawing):
    length = 5 if drawing.side == 16 else Pathfinder().contour_length
    for image in range(12):
        apart, present = distances(drawing, image)
        follows = np.eye(len(present), k=1, dtype=bool) & (drawing.curves[present] == drawing.curves[present][:, None])
        follows |= follows.T | np.eye(len(present), dtype=bool)
        assert apart[~follows].min() >= 2 * drawing.margins[image] * (1 - 1e-9)
        ends = np.concatenate([drawing.tails[image, present], drawing.heads[image, present]])
        for part in (ends.real, ends.imag):
            assert 1 < part.min() <= part.max() < drawing.side - 1
        counts = np.bincount(drawing.curves[present])
        assert (counts[:2] == length).all()
        assert set(counts[2:]) <= {0, length // 3}
    assert set(drawing.margins) == set(drawing.scale.margins)


def test_successive_paddles_meet_at_a_point_one_margin_away(drawing):
    curve = drawing.curves == 0
    tails, heads, directions = (array[:, curve] for array in (drawing.tails, drawing.heads, drawing.directions))
    margins = drawing.margins[:, None]
    behind, ahead = heads[:, :-1] + margins * directions[:, :-1], tails[:, 1:] - margins * directions[:, 1:]
    np.testing.assert_allclose(behind, ahead, atol=1e-9)
    turns = np.angle(directions[:, 1:] / directions[:, :-1])
    assert abs(turns).max() <= np.pi / 2 / drawing.scale.continuity
    starts = drawing.ends[:, :, 0]
    np.testing.assert_allclose(abs(starts[:, 0] - starts[:, 1]), drawing.scale.apart)


@pytest.mark.parametrize("side", SCALES)
def test_turns_have_the_documented_density_if_there_is_room(side):
    tails = np.array([[side / 2 * (1 + 1j), np.nan]] * 4000)
    nothing = np.zeros((4000, 2))
    drawing = Drawing(side, np.zeros(2), np.ones(4000), tails, np.ones((4000, 2), complex), nothing, nothing[:, 0])
    assert drawing.extend(np.arange(4000), np.ones(4000, int), np.random.default_rng(0)).all()
    turns = np.angle(drawing.directions[:, 1]) * SCALES[side].continuity
    assert kstest(turns, lambda x: 0.5 + (x + np.sin(x) * np.cos(x)) / np.pi).pvalue > 0.01


def test_images_match_a_sample_by_sample_rendering(drawing):
    subset, side, scale = drawing.kept(np.arange(2)), drawing.side, drawing.scale
    samples = (np.arange(2 * side) + 0.5) / 2
    places = samples + 1j * samples[:, None]

    def seen(distance, thickness):
        return (0.5 + 2 * (thickness / 2 - distance)).clip(0, 1).reshape(side, 2, side, 2).mean(axis=(1, 3))

    for image, grey in enumerate(rendered(subset)):
        expected = np.zeros((side, side))
        for tail, direction in zip(subset.tails[image], subset.directions[image], strict=True):
            if not np.isnan(tail):
                part = ((places - tail) / direction).real.clip(0, scale.paddle)
                ink = seen(abs(places - tail - part * direction), scale.thickness) / min(1, scale.thickness)
                expected = np.maximum(expected, scale.contrast * ink)
        for marker in subset.markers[image]:
            expected = np.maximum(expected, seen(abs(places - marker), 2 * scale.marker))
        np.testing.assert_allclose(grey, 255 * expected.clip(0, 1), atol=0.51)


def test_pixel_statistics_do_not_predict_the_label(many):
    images = rendered(many).astype(float)
    labels = many.labels.astype(bool)
    assert labels.mean() == pytest.approx(0.5, abs=2 / np.sqrt(len(labels)))
    distance = abs(many.markers[:, 0] - many.markers[:, 1])
    assert distance.min() > 2 * many.scale.marker
    for statistic in (images.mean(axis=(1, 2)), (images > 0).mean(axis=(1, 2)), (images > 200).mean(axis=(1, 2))):
        positive, negative = statistic[labels], statistic[~labels]
        error = np.sqrt(positive.var() / len(positive) + negative.var() / len(negative))
        assert abs(positive.mean() - negative.mean()) < 4 * error
    positive, negative = images[labels], images[~labels]
    error = np.sqrt(positive.var(axis=0) / len(positive) + negative.var(axis=0) / len(negative)) + 0.1
    assert (abs(positive.mean(axis=0) - negative.mean(axis=0)) < 5 * error).all()


def test_three_of_five_short_curves_fit_on_average(many):
    short = many.tails[:, many.curves > 1].reshape(len(many.labels), 5, 4)
    assert (np.isnan(short).all(axis=2) | ~np.isnan(short).any(axis=2)).all()
    assert (~np.isnan(short[:, :, 0])).sum(axis=1).mean() == pytest.approx(3, abs=0.1)


def test_threads_give_the_same_images_as_sequential_drawing(monkeypatch):
    monkeypatch.setattr(pathfinder, "DRAWS", 64)
    kind = Pathfinder(contour_length=5, train_size=60, validation_size=10, test_size=30, distractors=1)
    drawings = [kind.drawing(2, number) for number in range(3)]
    expected = np.concatenate([rendered(drawing) for drawing in drawings])[:100].reshape(100, -1)
    labels = np.concatenate([drawing.labels for drawing in drawings])[:100]
    task = kind.build(2)
    np.testing.assert_array_equal(np.concatenate([split.inputs for split in task.splits.values()]), expected)
    np.testing.assert_array_equal(np.concatenate([split.labels for split in task.splits.values()]), labels)
    assert task.train.inputs.dtype == np.uint8
    values = task.train.tensor(slice(2))
    assert (values.min(), values.max()) == (-1, 1)
    permuted = dataclasses.replace(kind, pixel_permuted=True).build(2)
    np.testing.assert_array_equal(permuted.test.inputs, task.test.inputs[:, permutation(32 * 32)])


@pytest.mark.parametrize("options", [{"side": 64}, {"contour_length": 2}, {"distractors": -1}])
def test_invalid_parameters_are_refused(options):
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        Pathfinder(**options)
