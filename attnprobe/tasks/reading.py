"""Options for reading user data, the same for arrays, tables, files and folders."""

from typing import Literal

from attnprobe.config import Count, Share, settings


@settings
class Reading:
    """How user data become a task."""

    n: Count | None = None
    """Largest number of tokens of a sequence; longer ones are cut. By default the longest sequence decides."""
    inputs: str | None = None
    """Column of the sequences in a table ("text" by default), or a pattern such as "pixel*" that matches one column per
    token."""
    labels: str | None = None
    """Column of the labels in a table; "label" by default."""
    split: str | None = None
    """Column of train, validation or test in a table; by default the column "split" if there is one."""
    pair: str | None = None
    """Column of second texts: a sequence is both texts with a separator id between them."""
    kind: Literal["text", "tokens", "values", "images"] | None = None
    """What the sequences are: text, ids (tokens), real values or images. By default integers are ids, and texts of
    numbers with commas or spaces between them are lists."""
    grid: tuple[Count, Count] | None = None
    """Rows and columns if each sequence holds the pixels of an image in row-major order."""
    tokens: Literal["bytes", "words"] = "bytes"
    """Tokens of texts: UTF-8 bytes, or words separated by white space. Words that the training split lacks are
    <unk>."""
    patch: Count = 1
    """Side of the squares of pixels that are the tokens of images."""
    standardise: Literal["channel", "none"] = "channel"
    """channel: subtract mean and divide by standard deviation of each channel of real values, over the training split;
    none: use them as given."""
    unlabelled: Literal["refuse", "drop", "pretrain"] = "refuse"
    """Sequences without a label (missing, negative): refuse; leave them out; or use them in self-pretraining only."""
    empty: Literal["refuse", "drop"] = "refuse"
    """Sequences without tokens: refuse, or leave them out."""
    test_share: Share = 0.2
    """Share of the sequences of each class that is drawn for testing if the data have no split."""
