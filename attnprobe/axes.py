"""Names and figure labels of all axes.

Each axis has one name, used in tensor annotations, einops patterns and result dimensions; `label` maps it to the axis
label in figures. The *score* is the input of the softmax, scaled and with every position bias; the *pattern* is its
output. The *offset* is key position minus query position and the *distance* its absolute value; for images, both are
also defined over rows and columns of pixels.
"""

LABELS = {
    # axes of tensors
    "batch": "sequence in the batch",
    "token": "position in the sequence",
    "query": "query position",
    "key": "key position",
    "head": "head",
    "layer": "layer",
    "d_model": "residual stream dimension",
    "d_head": "head dimension",
    "d_mlp": "hidden unit",
    "vocabulary": "token id",
    "class_": "class",
    # axes of results
    "step": "training step",
    "task": "task",
    "recipe": "training recipe",
    "other_task": "task",
    "arm": "arm of an experiment",
    "edited_arm": "arm whose scores are edited",
    "carrier": "transferred parts",
    "checkpoint": "checkpoint of the stage",
    "depth": "layers",
    "size": "training sequences",
    "times": "steps / chosen steps",
    "images": "training images",
    "encoding": "position encoding",
    "objective": "objective of self-pretraining",
    "candidate": "search candidate",
    "stage": "training stage",
    "seed": "seed",
    "run": "run",
    "offset": "offset: key $-$ query (tokens)",
    "distance": "distance (tokens)",
    "row_offset": "row offset: key $-$ query (pixels)",
    "column_offset": "column offset: key $-$ query (pixels)",
    "term": "term of the score: query-key",
    "query_bin": "query position (mean of the bin)",
    "key_bin": "key position (mean of the bin)",
    "frequency": "frequency (periods per token)",
    "pair": "pair of coordinates with one frequency",
    "component": "singular component",
    "loss": "objective of the gradient",
    "other_loss": "other objective",
    "direction": "direction in score space",
    "case": "network or variant",
    "profile": "profile: function of the offset",
    "length": "tokens in the sequence",
    "subspace": "subspace of score space",
    "intervention": "intervention",
    "window": "largest distance of a near key",
    "bound": "end of the interval",
    "null": "kind of null",
    "draw": "draw of the null",
}

KINDS = ("window", "term", "loss", "other_loss", "direction", "subspace", "intervention")
"""Axes along which a variable has several values per head."""


def label(axis: str) -> str:
    """Return the figure label of an axis; raise ``KeyError`` if the name is unknown."""
    return LABELS[axis]
