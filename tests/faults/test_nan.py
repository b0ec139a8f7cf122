"""NaN, infinite, constant and huge values planted in networks: measures refuse them, or state a reason for each NaN."""

import dataclasses
import functools
import io
import json
import re

import numpy as np
import pytest
import torch
from support import N, checkpoint
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.config import DataSpec
from attnprobe.errors import NonFiniteError
from attnprobe.measures.driver import Number, measure
from attnprobe.report import page
from attnprobe.results import UNDEFINED, over_steps, reasons, reasons_of
from attnprobe.scores import Scores
from attnprobe.statistics import score_statistics
from attnprobe.tables import MEASURES

FEW = {"sequences": 4, "nulls": 1}
READ_SCORES, READ_PREDICTIONS = ["proximity", "positions"], ["gradients", "interventions"]
EQUAL = "all scores of each query are equal"


def planted(value, name, index=None):
    """Return an edit that puts a value into a weight: at an index, or everywhere."""

    def edit(model):
        weight = dict(model.named_parameters())[name]
        weight[(0,) * weight.ndim if index is None else index] = value

    return edit


def multiplied(factor, *parts, rows=slice(None)):
    def edit(model):
        for name, weight in model.named_parameters():
            if any(part in name for part in parts):
                weight[rows] *= factor

    return edit


NAN, INF = float("nan"), float("inf")
REACH_SCORES = {
    "embed.weight": ("embed", NAN),
    "position.weight": ("blocks.0.ln1", NAN),
    "blocks.0.attn.q.weight": ("blocks.0.attn.q", INF),
    "blocks.0.attn.k.bias": ("blocks.0.attn.k", NAN),
    "blocks.0.attn.v.weight": ("blocks.0.attn.v", NAN),
    "blocks.0.attn.o.bias": ("blocks.0.attn.o", INF),
    "blocks.0.mlp.out.weight": ("blocks.0.mlp.out", NAN),
    "blocks.1.ln1.weight": ("blocks.1.ln1", NAN),
}
"""Weight, module whose output is damaged first, and planted value: damage before the last scores."""
AFTER_SCORES = {
    "blocks.1.attn.v.weight": ("blocks.1.attn.v", NAN),
    "blocks.1.attn.o.weight": ("blocks.1.attn.o", INF),
    "blocks.1.mlp.into.weight": ("blocks.1.mlp.into", NAN),
    "ln_final.weight": ("ln_final", NAN),
    "classify.weight": ("classify", NAN),
    "classify.bias": ("classify", INF),
}


@pytest.mark.parametrize(
    "weight, name",
    [
        *((weight, list(MEASURES)[number % 4]) for number, weight in enumerate(REACH_SCORES)),
        *(("embed.weight", name) for name in MEASURES),
        *((weight, name) for weight in AFTER_SCORES for name in READ_PREDICTIONS),
        *((weight, "flow") for weight in AFTER_SCORES if weight.startswith("blocks.")),
    ],
)
def test_measures_refuse_damage_and_name_where_it_comes_up(weight, name):
    module, value = (REACH_SCORES | AFTER_SCORES)[weight]
    damaged = checkpoint(n_layers=2, edit=planted(value, weight))
    message = rf"{name}: .*first in the output of {module}, test sequence 0; weight {weight} has 1 NaN or infinite"
    with pytest.raises(NonFiniteError, match=message) as refused:
        MEASURES[name](damaged, **FEW)
    assert "\n" not in str(refused.value)


def test_the_sequence_that_has_the_damaged_token_is_named():
    tokens = checkpoint().task.test.inputs
    rare = next(t for t in range(6) if 0 < int((tokens[:8] == t).any(1).argmax()))
    row = int((tokens[:8] == rare).any(1).argmax())
    assert row > 0
    with pytest.raises(NonFiniteError, match=rf"first in the output of embed, test sequence {row};"):
        ap.proximity(checkpoint(edit=planted(NAN, "embed.weight", rare)), sequences=8, nulls=0)


@pytest.mark.parametrize("name", READ_SCORES)
def test_measures_of_scores_ignore_damage_after_the_scores(name):
    damaged, expected = (
        MEASURES[name](checkpoint(n_layers=2, edit=edit), sequences=4, nulls=0)
        for edit in (planted(NAN, "blocks.1.attn.v.weight"), None)
    )
    for variable in ("toeplitz_share", "proximity_contrast"):
        np.testing.assert_array_equal(damaged[variable], expected[variable])


@pytest.mark.parametrize("name", READ_PREDICTIONS)
def test_infinite_losses_are_refused_with_the_sequence(name):
    with pytest.raises(NonFiniteError, match=rf"{name}: .* of 1 of 4 sequences are NaN or infinite; .*test sequence 3"):
        MEASURES[name](checkpoint(n_layers=2, n_heads=2, edit=multiplied(1e38, "classify")), **FEW)


def test_scores_outside_the_range_of_their_type_are_refused_with_the_layer():
    huge = checkpoint(n_layers=2, edit=multiplied(1e37, "1.attn.q."))
    with pytest.raises(NonFiniteError, match="layer 1: .*scores of up to .* exceed the range of torch.float32"):
        ap.proximity(huge, **FEW)


def test_scores_whose_squares_overflow_are_refused():
    q = torch.full((2, 1, 6, 4), 1e90, dtype=torch.float64) * torch.arange(1.0, 5.0)
    with pytest.raises(NonFiniteError, match="squares of scores exceed the range of float64"):
        score_statistics(Scores(q, q))


# --- every NaN has a reason

NETWORKS = {
    "constant scores": {"edit": multiplied(0, ".attn.q.")},
    "constant scores in one head": {"edit": multiplied(0, "0.attn.q.", rows=slice(8)), "position": "none"},
    "one-hot patterns": {"edit": multiplied(1e20, ".attn.q.")},
    "no values": {"edit": multiplied(0, ".attn.v.")},
    "all weights 0": {"edit": multiplied(0, "")},
    "causal": {"causal": True, "position": "rotary"},
    "sinusoidal": {"position": "sinusoidal", "n_layers": 2, "n_heads": 1},
    "image": {"data": DataSpec(N, "tokens", 2, vocabulary=6, grid=(3, 4)), "edit": multiplied(0, ".attn.q.")},
    "short sequences": {"lengths": np.full(30, 3)},
    "one token": {"data": DataSpec(1, "tokens", 2, vocabulary=6)},
    "two tokens": {"data": DataSpec(2, "tokens", 2, vocabulary=6), "causal": True},
    "real-valued": {"data": DataSpec(N, "values", 2), "causal": True},
}


@functools.cache
def measured(name, network):
    return MEASURES[name](checkpoint(**{"n_heads": 2, **NETWORKS[network]}), **FEW)


DRAWN = {"constant scores", "constant scores in one head", "all weights 0", "image", "one token"}
"""Networks whose results have panels without values."""


@pytest.mark.parametrize(
    "name, network",
    [(name, network) for network in NETWORKS for name in [*READ_SCORES, "gradients"]]
    # gradients through attention overflow if scores are of size 1e20
    + [("flow", network) for network in NETWORKS if network != "one-hot patterns"]
    + [("interventions", network) for network in ("all weights 0", "one token", "real-valued")],
)
def test_every_nan_has_a_reason_and_figures_show_it_without_warnings(name, network):
    result = measured(name, network)
    for variable, texts in reasons(result).items():
        missing = np.isnan(result[variable].values)
        assert ((texts.values != "") == missing).all(), variable
        assert "no reason is stated" not in texts.values, variable
        assert not np.isinf(result[variable].values).any(), variable
        assert len(result[variable].attrs.get(UNDEFINED, "")) < 2000, variable
    if network in DRAWN:
        ap.figures.draw(result).savefig(io.BytesIO(), format="png", dpi=30)


def test_reasons_are_those_of_the_cells():
    result = measured("proximity", "constant scores in one head")
    assert reasons(result)["toeplitz_share"].values.tolist() == [[EQUAL, ""]]
    assert reasons_of(result["proximity_contrast"].isel(layer=0, head=0)).item() == EQUAL
    gradients = reasons(measured("gradients", "no values")).sel(loss="labels", layer=0, head=0)
    assert set(gradients["energy_share"].values) == {"the gradient is 0"}
    assert set(gradients["snr"].values) == {"the descent is the same in all sequences"}
    alone = reasons(measured("proximity", "one token"))
    assert set(alone["proximity_contrast"].values.ravel()) == {"no visible key is farther than 2"}


def test_reasons_survive_joining_over_steps():
    results = [measured("proximity", network).copy() for network in ("constant scores", "one-hot patterns")]
    for step, result in enumerate(results):
        result.attrs["step"] = step
    joined = reasons(over_steps(results))["toeplitz_share"]
    assert joined.values.tolist() == [[[EQUAL, EQUAL]], [["", ""]]]


def test_own_measures_state_that_they_returned_nan():
    @measure(Number("share", "a share"))
    def nothing(heads):
        return {"share": torch.full(heads.scores.shape[:2], NAN)}

    assert set(reasons(nothing(checkpoint(), **FEW))["share"].values.ravel()) == {
        "nothing returned NaN for every sequence"
    }


# --- the command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory, spt_run):
    """Return a function that saves the last checkpoint of a run with edited weights."""

    def save(edit):
        last = ap.load(spt_run.checkpoints[-1].path)
        model = last.model
        with torch.no_grad():
            edit(model)
        path = tmp_path_factory.mktemp("edited") / "edited.pt"
        dataclasses.replace(last, weights=model.state_dict()).save(path)
        return path

    return save


def test_the_command_prints_reasons(saved, capsys, tmp_path):
    path = saved(multiplied(0, ".attn.q."))
    arguments = ["proximity", str(path), "--sequences", "4", "--nulls", "1", "--out", str(tmp_path)]
    main(arguments)
    assert re.search(rf"^undefined in \d+ heads?: {EQUAL}$", capsys.readouterr().out, re.MULTILINE)
    main([*arguments, "--all"])
    output, errors = capsys.readouterr()
    assert re.search(rf"^ *toeplitz_share undefined: {EQUAL}$", output, re.MULTILINE)
    assert re.search(r"^ *decay_length undefined: the profile is constant$", output, re.MULTILINE)
    assert "nan" not in output.lower() and not errors
    main([*arguments, "--json"])
    row = json.loads(capsys.readouterr().out)[0]
    assert row["toeplitz_share"] is None and row["toeplitz_share_undefined"] == EQUAL


def test_the_page_holds_reasons(saved, tmp_path, monkeypatch):
    path = saved(multiplied(0, ".attn.q."))
    monkeypatch.setattr(page, "MEASURES", {"proximity": MEASURES["proximity"]})
    text = page.write_report(path, tmp_path, progress=False, sequences=4, nulls=1).read_text()
    assert f'"reasons":{{"0":"{EQUAL}","1":"{EQUAL}"}}' in text  # of both heads
    assert not re.search(r"[:,\[]NaN", text.split("</script>")[0])


def test_the_command_refuses_damage_in_one_line(saved, capsys, tmp_path):
    path = saved(planted(NAN, "classify.bias"))
    with pytest.raises(SystemExit) as stopped:
        main(["interventions", str(path), "--sequences", "4", "--nulls", "0", "--out", str(tmp_path)])
    output, errors = capsys.readouterr()
    assert stopped.value.code == 2 and not output
    assert (
        errors.count("\n") == 1 and "first in the output of classify, test sequence 0; weight classify.bias" in errors
    )


# --- the user's own models


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True)

    def forward(self, ids):
        return self.head(self.layer(self.embed(ids)).mean(1))


IDS = torch.arange(48).view(8, 6) % 5


@pytest.mark.parametrize("weight", ["embed.weight", "layer.self_attn.in_proj_weight"])
def test_own_models_that_attend_over_nan_are_refused(weight):
    model = Own().eval()
    dict(model.named_parameters())[weight].data[0] = NAN
    with pytest.raises(NonFiniteError, match=rf"Own attends over NaN .*first in the output of .*; weight {weight} has"):
        ap.network(model, IDS)


@pytest.mark.parametrize("name", READ_PREDICTIONS)
@pytest.mark.parametrize("module", ["head", "layer.linear2", "layer.norm2"])
def test_own_models_with_damage_after_attention_are_refused(name, module):
    model = Own().eval()
    model.get_submodule(module).weight.data[0] = NAN
    probe = ap.network(model, IDS, labels=[0, 1] * 4)
    with pytest.raises(NonFiniteError, match=rf"{name}: .*first in the output of {module}, test sequence 0"):
        MEASURES[name](probe, sequences=4, nulls=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_own_weights_of_integer_or_complex_type_are_refused(dtype):
    model = Own().eval()
    model.head.weight = nn.Parameter(model.head.weight.to(dtype), requires_grad=False)
    with pytest.raises(ap.UsageError, match=f"head.weight has type {dtype}: weights must have a real floating-point"):
        ap.network(model, IDS)


@pytest.mark.parametrize(
    "measure, weight",
    [
        ("proximity", "bert.encoder.layer.0.attention.self.query.weight"),
        ("proximity", "bert.embeddings.position_embeddings.weight"),
        ("interventions", "classifier.weight"),
    ],
)
def test_the_command_refuses_damaged_hugging_face_models_in_one_line(measure, weight, tmp_path, capfd):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=16, **sizes))
    dict(model.named_parameters())[weight].data[0] = NAN
    model.save_pretrained(tmp_path / "model")
    np.savez(tmp_path / "inputs.npz", input_ids=np.arange(64).reshape(8, 8) % 15 + 1, labels=np.arange(8) % 2)
    capfd.readouterr()
    flags = ["--tokens", tmp_path / "inputs.npz", "--sequences", 4, "--nulls", 1, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as stopped:
        main([measure, f"hf:{tmp_path / 'model'}", *map(str, flags)])
    output, errors = capfd.readouterr()
    assert stopped.value.code == 2 and not output and errors.count("\n") == 1
    assert errors.startswith("attnprobe: ") and f"weight {weight} has 8 NaN or infinite values of" in errors
    assert not (tmp_path / "out").exists()
