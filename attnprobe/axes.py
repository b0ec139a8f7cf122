"""The glossary: one word per axis.

The same word names a tensor axis in annotations, an axis in einops patterns, a dimension of a result and, through
`label`, the axis of a figure. *Score* is what enters the softmax: scaled, with every position bias. *Pattern* is what
leaves it. *Offset* is key position minus query position, *distance* its absolute value; on an image both are also
taken over rows and columns of pixels.
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
    "checkpoint": "checkpoint of the stage",
    "depth": "layers",
    "size": "training sequences",
    "times": "steps / chosen steps",
    "images": "training images",
    "encoding": "position encoding",
    "objective": "objective of self-pretraining",
    "candidate": "candidate of a search",
    "stage": "stage of training",
    "seed": "seed",
    "offset": "offset: key $-$ query (tokens)",
    "row_offset": "row offset: key $-$ query (pixels)",
    "column_offset": "column offset: key $-$ query (pixels)",
    "term": "term of the score: query-key",
    "query_bin": "query position (mean of the bin)",
    "key_bin": "key position (mean of the bin)",
    "frequency": "frequency (periods per token)",
    "pair": "pair of coordinates with one frequency",
    "component": "singular component",
    "loss": "objective whose gradient it is",
    "other_loss": "the other objective",
    "direction": "direction in score space",
    "case": "network, or departure from it",
    "profile": "profile: function of the offset",
    "length": "tokens in the sequence",
    "subspace": "subspace of score space",
    "intervention": "intervention",
    "window": "distance up to which keys count as near",
    "bound": "end of the interval",
    "null": "kind of null",
    "draw": "draw of the null",
}


def label(axis: str) -> str:
    """Return the figure label of an axis; raise ``KeyError`` for a word that the glossary lacks."""
    return LABELS[axis]
