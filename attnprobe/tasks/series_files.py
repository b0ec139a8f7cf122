"""Time series in .ts files, the format of the UEA and UCR archives."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnprobe.errors import UsageError, abridged, shown

if TYPE_CHECKING:
    import pandas as pd


def read_series(path: Path) -> "pd.DataFrame":
    """Read labelled series, one per line: channels are separated by ":", their values by ",", and the label is last.

    The table has the columns text, with arrays [token, channel], and label. Missing values ("?") are NaN. Raises
    `UsageError`, naming file and line, if a line is something else.
    """
    import pandas as pd

    header, rows, labels = True, [], []
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if header or not line or line.startswith("#"):
            _check_header(line.lower(), f"{path}: line {number}")
            header = header and line.lower() != "@data"
            continue
        *channels, label = line.split(":")
        rows.append(_series(channels, f"{path}: line {number}"))
        labels.append(label.strip())
    if not rows:
        raise UsageError(f"{path}: holds no series after a line @data")
    cells = pd.Series(dtype=object, index=range(len(rows)))
    for row, series in enumerate(rows):
        cells.iat[row] = series
    return pd.DataFrame({"text": cells, "label": labels})


def _check_header(line: str, where: str) -> None:
    for name, value in (("@timestamps", "false"), ("@classlabel", "true"), ("@targetlabel", "false")):
        if line.startswith(name) and line.split()[1:2] != [value]:
            raise UsageError(f"{where} is {shown(line)}: must be {name} {value} ...")


def _series(channels: list[str], where: str) -> np.ndarray:
    """Return a series [token, channel]."""
    try:
        values = [[float(value.replace("?", "nan")) for value in channel.split(",")] for channel in channels]
    except ValueError as error:
        raise UsageError(f"{where}: {abridged(str(error))}") from None
    if len({len(channel) for channel in values}) != 1:
        lengths = sorted({len(channel) for channel in values})
        raise UsageError(f"{where} has channels of {shown(lengths)} values: must have the same number in all")
    return np.array(values).T
