"""Numbers of a result with their intervals and nulls: the accessor ``ds.ap`` of every ``xarray.Dataset``."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from attnprobe.errors import UsageError, choices

if TYPE_CHECKING:
    import pandas as pd

PARTS = {"interval": "interval", "std": "std", "null": "nulls", "se": "se"}
"""Endings of the variables that belong to a number, and their names beside it (null is the name of an axis)."""


@xr.register_dataset_accessor("ap")
class Numbers:
    """The numbers of a result, by name: ``ds.ap["toeplitz_share"]``."""

    def __init__(self, result: xr.Dataset) -> None:
        """Create the accessor of a result."""
        self._result = result

    def __iter__(self):
        """Iterate over the names of the numbers that have an interval."""
        return (str(name) for name in self._result if f"{name}_interval" in self._result)

    def __getitem__(self, name: str) -> xr.Dataset:
        """Return a number and what belongs to it.

        Args:
            name: Name of a variable of the result, such as ``toeplitz_share``.

        Returns:
            Dataset of ``value`` and, if the result has them, ``interval`` (axis ``bound``), ``std`` (over sequences),
            ``nulls`` (axes ``null`` and ``draw``) and ``se``, with the units of the number.

        Raises:
            UsageError: If the result has no such variable.

        >>> share = xr.Dataset({"share": ("head", [0.1, 0.7]), "share_std": ("head", [0.0, 0.2])})
        >>> share.ap["share"]["std"].sel(head=1).item()
        0.2
        """
        if name not in self._result.data_vars:
            raise UsageError(f"number={name!r} is unknown; {choices(name, list(self) or list(self._result))}")
        parts = {part: f"{name}_{end}" for end, part in PARTS.items() if f"{name}_{end}" in self._result}
        found = {"value": name, **parts}
        number = xr.Dataset({part: self._result[variable] for part, variable in found.items()})
        return number.assign_attrs(self._result[name].attrs, number=name)

    def to_dataframe(self, *names: str) -> "pd.DataFrame":
        """Return numbers as a tidy table: one row per number and place (step, layer, head, window ...).

        Args:
            *names: Names of the numbers; all that have an interval by default.

        Returns:
            Columns: ``number``, one for each axis of the numbers, ``value``, the interval ``lower`` and ``upper``,
            ``std``, ``se``, and for each null the smallest and the largest draw, such as ``permuted_min`` and
            ``permuted_max``. What a number lacks is missing (NaN).

        Raises:
            UsageError: If a name is unknown.
        """
        import pandas as pd

        tables = [_table(self[name], name) for name in names or self]
        if not tables:
            raise UsageError("the result has no numbers with intervals; name its variables")
        table = pd.concat(tables, ignore_index=True)
        values = [column for part in tables for column in part.attrs["values"]]
        axes = [column for column in table if column not in values and column != "number"]
        return table.reindex(columns=["number", *axes, *dict.fromkeys(values)])


def _table(number: xr.Dataset, name: str) -> "pd.DataFrame":
    """Return the rows of one number; the attribute ``values`` lists the columns that are no axes."""
    columns = {part: number[part] for part in ("value", "std", "se") if part in number}
    if "interval" in number:
        columns |= {bound: number["interval"].isel(bound=index) for index, bound in enumerate(("lower", "upper"))}
    for null in number["null"].values.tolist() if "nulls" in number else []:
        draws = number["nulls"].sel(null=null)
        columns |= {f"{null}_min": draws.min("draw"), f"{null}_max": draws.max("draw")}
    order = ("value", "lower", "upper", "std", "se")
    columns = {key: columns[key] for key in [*order, *columns] if key in columns}
    value = number["value"]
    shape = np.indices(value.shape).reshape(value.ndim, value.size)
    axes = {
        str(axis): (value[axis].values if axis in value.coords else np.arange(value.sizes[axis]))[index]
        for axis, index in zip(value.dims, shape, strict=True)
    }
    import pandas as pd

    cells = {key: array.transpose(*value.dims).values.ravel() for key, array in columns.items()}
    table = pd.DataFrame({"number": name, **axes, **cells}, index=range(value.size))
    table.attrs["values"] = list(columns)
    return table
