"""Additions to attnprobe as described in the README: one object and one table entry each, all from this file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.config import DataSpec, settings
from attnprobe.measures.driver import Number, measure
from attnprobe.measures.edits import Edit
from attnprobe.model.position import PositionEncoding
from attnprobe.results import open_result
from attnprobe.scores import Heads
from attnprobe.statistics import pattern_statistics
from attnprobe.tables import EDITS, MEASURES, OBJECTIVES, POSITIONS, TASKS
from attnprobe.tasks.source import Source
from attnprobe.tasks.split import Split
from attnprobe.tasks.task import Task
from attnprobe.training.objectives import Objective


@measure(
    Number("sink", "largest share of attention that one key receives", range=(0.0, 1.0), unstructured="1 / n"),
    Number("received", "mean attention by offset", axes=("offset",)),
)
def sinks(heads: Heads, *, sharpness: float = 1.0) -> dict[str, torch.Tensor]:
    """Measure how much attention a single key receives.

    Args:
        heads: Inputs of the attention of one layer.
        sharpness: Factor applied to the scores.
    """
    pattern = pattern_statistics(replace(heads.scores, scale=sharpness * heads.scores.factor)).in_line()
    return {"sink": pattern.mass_by_key.amax(-1) / heads.scores.shape[2], "received": pattern.mass_by_offset}


def _first_tokens(logits, batch, mask):
    return logits[:, 0], batch.inputs[:, 0], torch.arange(len(logits))


first_token = Objective("tokens", _first_tokens, lambda lengths, mask: len(lengths), "first-token")


def _sharpen(heads, setup):
    return replace(heads, scores=replace(heads.scores, scale=2 * heads.scores.factor)).attend()


@settings
class Majority(Source):
    """Classify which of two token ids is more frequent."""

    n: int = 9
    """Number of tokens per sequence."""
    train_size: int = 32
    """Number of training sequences."""
    test_size: int = 24
    """Number of test sequences."""

    @property
    def data(self) -> DataSpec:
        """Format of the inputs: token ids."""
        return DataSpec(n=self.n, inputs="tokens", classes=2, vocabulary=2)

    def build(self, seed: int) -> Task:
        """Return the task for a seed."""
        splits = []
        for number, size in enumerate(self.sizes.values()):
            inputs = np.random.default_rng([seed, number]).integers(2, size=(size, self.n))
            splits.append(Split(inputs, (inputs.sum(1) > self.n / 2).astype(int)))
        return Task("majority", self.data, *splits)


class Reversed(PositionEncoding):
    """Bias that favours far keys."""

    def __init__(self, config, n):
        super().__init__(config, n)
        self.slope = torch.nn.Parameter(torch.tensor(3.0))

    def bias(self, n):
        """Return the slope times the distance."""
        return self.slope * torch.arange(-(n - 1), n).abs().float().expand(2, -1)


@pytest.fixture(scope="module", autouse=True)
def added():
    entries = [
        (MEASURES, "sinks", sinks),
        (OBJECTIVES, "first-token", first_token),
        (EDITS, "sharpen", Edit(_sharpen)),
        (TASKS, "majority", Majority),
        (POSITIONS, "reversed", Reversed),
    ]
    with pytest.MonkeyPatch.context() as patched:
        for table, name, entry in entries:
            patched.setitem(table, name, entry)
        yield


@pytest.fixture(scope="module")
def run(added, tmp_path_factory):
    """Run with the new task, encoding and objective, trained from the command line."""
    folder = tmp_path_factory.mktemp("added") / "run"
    flags = ["--task", "majority", "--position", "reversed", "--pretrain-objective", "first-token", "--steps", "4"]
    few = ["--d-model", "8", "--freeze", "positions", "--evaluations", "1", "--checkpoints", "1"]
    main(["train", *flags, *few, "--out", str(folder)])
    return ap.Run.open(folder)


def test_a_new_task_encoding_and_objective_are_trained(run):
    assert [row["objective"] for row in run.metrics] == ["first-token", "first-token", "labels"]
    last = run.checkpoints[-1]
    _, cache = last.model.run_with_cache(last.tokens(2))
    q, k, s = (cache[f"blocks.0.attn.hook_{name}"] for name in ("q", "k", "attn_scores"))
    distance = (torch.arange(9) - torch.arange(9)[:, None]).abs()
    assert last.model.position.slope == 3, "parameters that are not zero keep their initial values"
    torch.testing.assert_close(s, torch.einsum("bihd,bjhd->bhij", q, k) / 2 + 3 * distance)
    middle = run.checkpoints[1]
    logits = middle.model(middle.tokens(24), output="tokens")[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, middle.tokens(24)[:, 0])
    assert middle.last_metrics["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert "first-token accuracy" in middle.title


def test_a_new_task_is_listed_with_default_attributes(capsys):
    main(["tasks", "--json"])
    row = next(row for row in json.loads(capsys.readouterr().out) if row["task"] == "majority")
    assert (row["what"], row["licence"], row["chance"], row["train"]) == (Majority.__doc__, "generated", 0.5, 32)


def test_a_new_measure_has_a_command_a_result_and_a_figure(run, tmp_path, capsys):
    flags = ["--sequences", "6", "--nulls", "2", "--sharpness", "0"]
    main(["sinks", str(run.checkpoint_paths[-1]), *flags, "--out", str(tmp_path)])
    assert "sink" in capsys.readouterr().out
    result = open_result(tmp_path / "sinks.nc")
    assert result.attrs["sharpness"] == 0
    assert result["sink_null"].sizes == {"null": 2, "draw": 2, "layer": 1, "head": 2}
    # without query-key products the score is the bias
    pattern = (3 * (torch.arange(9) - torch.arange(9)[:, None]).abs()).double().softmax(-1)
    assert result["sink"].values == pytest.approx(np.full((1, 2), float(pattern.sum(0).max() / 9)))
    far = [pattern.diagonal(o).sum() / 9 for o in range(-8, 9)]
    assert result["received"].values == pytest.approx(np.tile(far, (1, 2, 1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sinks.nc", "sinks.pdf", "sinks.png"]
    drawn = ap.figures.draw(result)
    head_map, profiles = (axes for axes in drawn.axes if axes.get_label() != "<colorbar>")
    np.testing.assert_array_equal(head_map.images[0].get_array(), result["sink"])
    profile = {line.get_label(): line for line in profiles.lines}["head 1"]
    np.testing.assert_array_equal(profile.get_ydata(), result["received"].sel(offset=slice(-4, 4))[0, 1])
    with pytest.raises(SystemExit):
        main(["sinks", "--help"])
    help_text = capsys.readouterr().out
    assert "Factor applied to the scores" in help_text and "draws of each null" in help_text


def test_a_new_measure_is_drawn_over_the_steps_of_a_run(run, tmp_path):
    main(["sinks", str(run.folder), "--sequences", "4", "--nulls", "0", "--out", str(tmp_path)])
    joined = open_result(tmp_path / "sinks_over_steps.nc")
    axis = ap.figures.draw_over_steps(joined).axes[1]
    drawn = {line.get_label(): line for line in axis.lines}["head 0"]
    np.testing.assert_array_equal(drawn.get_ydata(), joined["sink"].isel(layer=0, head=0))


def test_a_measure_with_profiles_only_is_drawn_over_steps(run):
    @measure(Number("profile", "attention by offset", axes=("offset",)))
    def profiles(heads):
        return {"profile": pattern_statistics(heads.scores).mass_by_offset}

    joined = ap.over_steps([profiles(ckpt, sequences=4, nulls=0) for ckpt in run.checkpoints])
    assert len(ap.figures.draw_over_steps(joined).axes) == 1


def test_offsets_of_images_are_one_dimensional(image_checkpoint):
    assert sinks(image_checkpoint, sequences=2, nulls=0)["received"].sizes["offset"] == 127


def test_a_new_edit_is_an_intervention(run):
    ckpt = run.checkpoints[-1]
    result = ap.interventions(ckpt, sequences=8, nulls=0).sel(intervention="sharpen")
    hook = [("blocks.0.attn.hook_attn_scores", lambda s, hook: 2 * s - 3 * distance)]
    distance = (torch.arange(9) - torch.arange(9)[:, None]).abs()
    with torch.no_grad():
        logits = ckpt.model.run_with_hooks(ckpt.tokens(8), fwd_hooks=hook)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ckpt.task.test.labels[:8]))
    assert float(result["all_loss"]) == pytest.approx(loss.item(), rel=1e-5)


def test_additions_are_in_the_report(run, tmp_path):
    page = Path(ap.report.page.write_report(run.checkpoint_paths[-1], tmp_path, sequences=4, nulls=1))
    text = page.read_text()
    assert '<h2 id="sinks">sinks</h2>' in text and "Measure how much attention a single key receives." in text
    assert 'download="sinks.pdf"' in text and (tmp_path / "sinks.png").exists()
    assert '"label":"all_loss_change, sharpen"' in text


def few(measure_function):
    def measured(of):
        return measure_function(of, sequences=4, nulls=1)

    measured.__doc__ = measure_function.__doc__
    return measured
