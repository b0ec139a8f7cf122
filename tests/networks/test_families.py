"""Families of models against independent references: eager patterns, autograd, and edits of materialised scores."""

import families
import pandas as pd
import pytest
import transformers
from packaging.version import Version

FAST = {"BERT", "BEiT", "ModernBERT", "gpt-oss", "T5 encoder"}
"""One family per kind of structure: none, 2-D bias with a class token, windows, a sink, bias by offset."""
FUSED_SINCE = {"GPT-J": "5.24"}
"""First transformers release with fused attention in a family; before, its scores arrive in a softmax."""


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES]
)
def test_a_family_is_measured_exactly(name):
    family = families.FAMILIES[name]
    if not families.available(family):
        pytest.skip(f"{family.library} cannot be imported")
    row = families.row(name)
    assert row["replay"] < 1e-5
    assert row["pattern"] < 1e-5 or not family.eager
    assert row["gradients"] < 1e-4 and row["edits"] < 1e-5
    committed = pd.read_csv(families.TABLE).set_index("family").loc[name]
    assert row["structure"] == committed["structure"]
    is_fused = Version(transformers.__version__) >= Version(FUSED_SINCE.get(name, "0"))
    assert row["arrives as"] == (committed["arrives as"] if is_fused else "softmax")


def test_the_committed_table_has_every_family():
    table = pd.read_csv(families.TABLE)
    assert table["family"].tolist() == list(families.FAMILIES)
    assert (table[["replay", "pattern", "edits"]].fillna(0) < 1e-5).all(axis=None) and (table["gradients"] < 1e-4).all()
