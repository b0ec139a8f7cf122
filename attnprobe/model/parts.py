"""Named parts of a network: what a checkpoint can give to another, and what training can leave alone.

An expression is ``all``, parts joined by + or a comma (``qk+positions``), or ``all-but-`` and such a list.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from attnprobe.errors import UsageError, listed

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
    """Return the parameters that an expression names.

    Raises `UsageError` for an unknown part and for one without parameters in this network (positions, where the
    encoding is fixed), and lists those that have some.
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
                f"unknown part {part!r}; valid: all, all-but-PART, {listed(PARTS)}, joined by + or a comma"
            )
        if part not in present:
            raise UsageError(f"part {part!r} holds no parameters in this network; those that do: {listed(present)}")
    pattern = "|".join(f"(?:{PARTS[part]})" for part in parts)
    chosen = [name for name in names if bool(re.match(pattern, name)) != inverted]
    if not chosen:
        raise UsageError(f"{expression!r} leaves nothing; parts: {listed(present)}")
    return chosen


def transfer(expression: str, given: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``taken`` with the named parameters replaced by the given ones.

    Raises `UsageError` where a named parameter is missing from the given ones, or has another shape there.
    """
    chosen = select(expression, taken)
    for name in chosen:
        if name not in given:
            raise UsageError(f"transfer={expression!r}: the given checkpoint has no {name}; it has {listed(given)}")
        if given[name].shape != taken[name].shape:
            shapes = f"{tuple(given[name].shape)} there, {tuple(taken[name].shape)} here"
            raise UsageError(f"transfer={expression!r}: {name} differs in shape: {shapes}")
    return {name: given[name] if name in chosen else weight for name, weight in taken.items()}
