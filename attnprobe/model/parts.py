"""Named parts of a network, for transferring weights between checkpoints and for freezing.

An expression is ``all``, parts joined by + or a comma (``qk+positions``), or ``all-but-`` followed by such a list.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from attnprobe.errors import UsageError, listed, suggestion

PARTS = {
    "embeddings": r"embed\.|cls$",
    "positions": r"(position|score_bias)\.",
    "qk": r"blocks\.\d+\.attn\.[qk]\.",
    "vo": r"blocks\.\d+\.attn\.[vo]\.",
    "mlp": r"blocks\.\d+\.mlp\.",
    "norms": r"(blocks\.\d+\.ln[12]|ln_final)\.",
    "heads": r"(unembed|classify)\.",
}


def select(expression: str, names: Iterable[str]) -> list[str]:
    """Return the names of the parameters that an expression selects.

    Raises `UsageError` for an unknown part, for a part without parameters in this network (such as positions if the
    encoding is fixed) and for an empty selection; the message lists the valid parts.
    """
    names = list(names)
    present = [part for part in PARTS if any(re.match(PARTS[part], name) for name in names)]
    if expression == "all":
        return names
    inverted = expression.startswith("all-but-")
    parts = re.split("[+,]", expression.removeprefix("all-but-"))
    for part in parts:
        if part not in PARTS:
            raise UsageError(
                f"unknown part {part!r}; {suggestion(part, PARTS)}valid: all, all-but-PART, {listed(PARTS)}, joined by "
                "+ or a comma"
            )
        if part not in present:
            raise UsageError(f"part {part!r} has no parameters in this network; valid: {listed(present)}")
    pattern = "|".join(f"(?:{PARTS[part]})" for part in parts)
    selected = [name for name in names if bool(re.match(pattern, name)) != inverted]
    if not selected:
        raise UsageError(f"{expression!r} selects no parameters; parts: {listed(present)}")
    return selected


def transfer(expression: str, given: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights ``taken`` with the parameters that an expression selects replaced by those in ``given``.

    Raises `UsageError` if a selected parameter is missing from ``given`` or has another shape there.
    """
    selected = select(expression, taken)
    for name in selected:
        if name not in given:
            raise UsageError(f"transfer={expression!r}: init_from has no {name}; it has {listed(given)}")
        if given[name].shape != taken[name].shape:
            shapes = f"{tuple(given[name].shape)} in init_from, {tuple(taken[name].shape)} in this network"
            raise UsageError(f"transfer={expression!r}: {name} has different shapes: {shapes}")
    return {name: given[name] if name in selected else weight for name, weight in taken.items()}
