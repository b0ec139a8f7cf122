"""Names of earlier versions: files that use them still load; commands that use them fail with the current name."""

from collections.abc import Mapping, Sequence
from typing import Any

from attnprobe.errors import UsageError

SETTINGS = {
    "rate": "learning_rate",
    "pretrain_rate": "pretrain_learning_rate",
    "warmup": "warmup_steps",
    "clip": "grad_clip",
    "accumulate": "gradient_accumulation_steps",
    "hold_out": "validation_size",
    "mask_share": "mask_probability",
    "init_scale": "init_std",
    "position_scale": "position_std",
    "norm_place": "norm_placement",
    "proximity_range": "length_scale",
}
"""Former to current names of run settings."""
SETTING_VALUES = {"recipe": {"labels": "supervised"}, "pretrain_order": {"own": "original"}}
"""Former to current values, per setting."""
KEYWORDS = {
    "gradients": {"reach": "length_scale"},
    "interventions": {"reach": "length_scale", "donor": "patch_from"},
}
"""Former to current keywords, per measure."""
INTERVENTIONS = {
    "flatten": "uniform_attention",
    "keep toeplitz": "keep_toeplitz",
    "remove toeplitz": "ablate_toeplitz",
    "keep position": "keep_position",
    "remove position": "ablate_position",
    "shift positions": "shift_positions",
    "permute positions": "permute_positions",
    "impose proximity": "impose_proximity",
    "donor scores": "patch_scores",
    "donor maps": "patch_qk",
}
"""Former to current names of interventions."""
COORDINATES = {
    "recipe": SETTING_VALUES["recipe"],
    "intervention": INTERVENTIONS,
    "direction": {"own profile": "measured profile"},
}
"""Former to current coordinate values, per axis of results."""
AXES = {"within": "window", "kernel": "profile"}
"""Former to current axes of results."""
VARIABLES = {"favours": "positive_share", "position_kernel": "position_score"}
"""Former to current variables of results; derived variables (``NAME_interval`` ...) are renamed with them."""
ATTRIBUTES = {"reach": "length_scale", "donor": "patch_from"}
"""Former to current attributes of results."""
STD = ("_sd", "_std")
"""Former and current suffix of standard deviations."""


def current_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Translate former names and values of settings (of one dataclass, or flat) to current ones.

    A former name is kept if the current one is also present, so that it is rejected as unknown.
    """
    renamed = {name if SETTINGS.get(name, name) in fields else SETTINGS.get(name, name): name for name in fields}
    values = {name: SETTING_VALUES.get(name, {}) for name in renamed}
    return {
        name: values[name].get(fields[former], fields[former]) if isinstance(fields[former], str) else fields[former]
        for name, former in renamed.items()
    }


def former_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Translate current names and values of settings, also nested ones, to former ones."""
    names = {current: former for former, current in SETTINGS.items()}
    former: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and name == "model":
            value = former_settings(value)
        elif isinstance(value, str) and name in SETTING_VALUES:
            value = {current: old for old, current in SETTING_VALUES[name].items()}.get(value, value)
        former[names.get(name, name)] = value
    return former


def refuse_former_settings(named: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a former name or value of a setting; the message gives the current one."""
    for name, value in named.items():
        if name in SETTINGS:
            raise UsageError(f"setting {name!r} is now called {SETTINGS[name]!r}")
        if isinstance(value, str) and value in SETTING_VALUES.get(name, {}):
            raise UsageError(f"{name}={value!r} is now called {SETTING_VALUES[name][value]!r}")


def refuse_former_flags(
    arguments: Sequence[str], names: Mapping[str, str], values: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Raise `UsageError` for a former flag or a former value of a flag; the message gives the current one.

    ``names`` maps former keywords to current ones; ``values`` maps the former values of each keyword to current ones.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            continue
        if name in names:
            raise UsageError(f"{flag} is now called --{names[name].replace('_', '-')}")
        current = (values or {}).get(name, {}).get(value or following)
        if current is not None:
            raise UsageError(f"{flag} {value or following} is now called {flag} {current}")
