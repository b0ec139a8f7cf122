"""A well-formed checkpoint with invalid entries is refused by name before anything is built from them."""

import copy
import itertools
import time

import pytest
import torch

from attnprobe.config import DataSpec, ModelConfig
from attnprobe.errors import UsageError
from attnprobe.model.shapes import BUILT_IN, shapes
from attnprobe.model.transformer import Transformer
from attnprobe.tables import POSITIONS
from attnprobe.training.checkpoint import MOST_TOKENS, _digest, load


@pytest.fixture
def fields(spt_run):
    """Return the entries of a checkpoint file without digest (format 1)."""
    fields = torch.load(spt_run.checkpoints[-1].path, weights_only=True)
    del fields["digest"]
    return {**copy.deepcopy(fields), "format": 1}


def expanded(name):
    return lambda weights: {**weights, name: torch.zeros(1).expand(10**12)}


EDITS = {
    "step": ("step", 10**40, "step=10{40}: must be 0 ... 12"),
    "negative step": ("step", -1, "step=-1: must be"),
    "boolean step": ("step", True, "step has type bool, not int"),
    "tokens": ("data.n", 10**9, f"data n=1000000000: must be at most {MOST_TOKENS}"),
    "fewer tokens": ("data.n", 17, r"weights do not fit: of another shape: position.weight \(\d+, 16\) instead of"),
    "layers": ("config.model.n_layers", 10**7, "n_layers=10000000: input should be less than or equal to 1000"),
    "width": ("config.model.d_model", 2**40, "d_model=1099511627776: input should be less than or equal to"),
    "hidden units": ("config.model.mlp_ratio", 10**9, "mlp_ratio=1000000000: 5.1e.11 weights; must be at most"),
    "vocabulary": ("data.vocabulary", 10**12, "vocabulary=1000000000000: input should be less than or equal to"),
    "classes": ("data.classes", 10**12, "weights do not fit: of another shape: classify.weight"),
    "heads": ("config.model.n_heads", 10**40, "n_heads=1(0*): input should be less than or equal to"),
    "negative width": ("config.model.d_model", -1, "d_model=-1: input should be greater than 0"),
    "long number": ("config.model.d_model", 10**600, "d_model=10.* ... .*0: input should be less than or equal to"),
    "position": ("config.model.position", "own", "position='own' is unknown"),
    "integer weights": ("weights", lambda x: {k: v.long() for k, v in x.items()}, "has type torch.int64"),
    "complex weights": ("weights", lambda x: {k: v.cfloat() for k, v in x.items()}, "has type torch.complex64"),
    "no weights": ("weights", lambda x: {}, "weights do not fit: they have 0 layers"),
    "missing weight": (
        "weights",
        lambda x: {k: v for k, v in x.items() if k != "blocks.0.attn.k.bias"},
        "weights do not fit: missing: blocks.0.attn.k.bias$",
    ),
    "another weight": ("weights", lambda x: {**x, "ghost": torch.zeros(1)}, "weights do not fit: unexpected: ghost$"),
    "number as a name": ("weights", lambda x: {**x, 3: torch.zeros(1)}, "weights have a name that is not a text"),
    "expanded weight": ("weights", expanded("classify.weight"), "does not store all of its values"),
    "sparse weight": ("weights", lambda x: {**x, "cls": torch.eye(2).to_sparse()}, "does not store all of its values"),
    "transposed weight": ("weights", lambda x: {**x, "embed.weight": x["embed.weight"].mT}, "of another shape: embed"),
    "optimiser": ("optimiser", {"state": 3}, "optimiser must have a dict state and a list param_groups"),
    "groups": ("optimiser", {"state": {}, "param_groups": [3]}, "optimiser has a group without"),
    "optimiser state": ("optimiser.state", {0: 3}, "optimiser has a state that does not fit a weight"),
    "moment": ("optimiser.state", {0: {"exp_avg": torch.zeros(7, 7, 7)}}, "optimiser has a state that does not fit"),
    "row": ("metrics", [{"step": 1}], "metrics contain a row without a step and a known objective"),
    "accuracy": (
        "metrics",
        [{"step": 1, "objective": "labels", "test_accuracy": "x"}],
        "metrics contain test_accuracy of type str, not a number",
    ),
    "key": (3, 3, "unknown entries: 3; missing: none"),
}
"""Place of an entry, its value or the function that edits it, and the message."""


def edited(fields, place, value):
    """Replace the entry at a dotted place by a value, or by a function of it."""
    *outer, last = place.split(".") if isinstance(place, str) else [place]
    at = fields
    for name in outer:
        at = at[name]
    at[last] = value(at[last]) if callable(value) else value
    return fields


@pytest.mark.parametrize("case", EDITS)
@pytest.mark.parametrize("version", [1, 2])
def test_an_invalid_entry_is_named_at_once(case, version, fields, tmp_path):
    path, (place, value, message) = tmp_path / "x.pt", EDITS[case]
    fields = edited(fields, place, value)
    if version == 2:
        expanding = case in ("expanded weight", "sparse weight")
        fields["format"] = 2
        fields["digest"] = "" if expanding else _digest(fields)
    torch.save(fields, path)
    begun = time.monotonic()
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert time.monotonic() - begun < 2
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ") and len(text) < 1000


def test_a_compressed_archive_is_refused(tmp_path):
    """It could hold far more bytes than its file."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    with pytest.raises(UsageError, match="its members are compressed"):
        load(tmp_path / "x.pt")


ARCHITECTURES = [
    *({"position": position, "pooling": pooling} for position in BUILT_IN for pooling in ("mean", "cls")),
    *({"norm": norm, "norm_placement": place} for norm in ("layer", "rms", "none") for place in ("pre", "post")),
    *({"score_bias": bias, "n_layers": 3} for bias in ("none", "fixed", "learned")),
    {"mlp_ratio": 0},
    {"mlp_ratio": 5, "causal": True},
]
FORMATS = [
    DataSpec(n=6, inputs="tokens", classes=3, vocabulary=5),
    DataSpec(n=6, inputs="values", classes=2, levels=7, grid=(2, 3)),
    DataSpec(n=6, inputs="values", classes=2, channels=4, patch=2, grid=(3, 2)),
]


@pytest.mark.parametrize(("settings", "data"), list(itertools.product(ARCHITECTURES, FORMATS)))
def test_shapes_are_those_of_the_network(settings, data):
    config = ModelConfig(d_model=8, **settings)
    state = Transformer(config, data).state_dict()
    assert shapes(config, data) == {name: tuple(weight.shape) for name, weight in state.items()}


def test_all_position_encodings_have_known_shapes():
    assert set(BUILT_IN) == set(POSITIONS)
