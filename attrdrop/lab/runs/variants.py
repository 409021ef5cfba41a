"""Arms with settings of their own: "reldrop beta=0.3 rule=epsilon" is the arm reldrop with these two changed."""

import dataclasses
import types
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from typing import Any, get_args, get_origin

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import options_of

NOTHING = "none"  # stands for the value None


def arm_of(label: str) -> str:
    """The arm itself."""
    return label.partition(" ")[0]


def changes_of(label: str) -> dict[str, str]:
    """What is changed, by name, as it is written."""
    return dict(part.partition("=")[::2] for part in label.split()[1:])


def changed(settings: Any, label: str, uses: Mapping[str, Collection[str]]) -> Any:
    """The settings of an arm; uses: which settings tell on an arm.

    Raises InputError for what is no such setting, or cannot be its value.
    """
    arm, changes = arm_of(label), changes_of(label)
    for name in changes:
        if name not in uses[arm]:
            known = ", ".join(sorted(uses[arm])) or "nothing"
            raise InputError(f"--arms: {label!r} changes {name!r}, and {arm} depends on {known}.")
    kinds = options_of(type(settings))
    return dataclasses.replace(
        settings, **{name: _parsed(kinds[name][0], name, text) for name, text in changes.items()}
    )


def grid(arms: Iterable[str], text: str, uses: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Every arm at every combination of the values that tell on it.

    text: "alpha=0,0.5; beta=0.15,0.3", each setting with its values.
    """
    values = _axes(text)
    for name in values:
        if not any(name in known for known in uses.values()):
            known = ", ".join(sorted(set().union(*uses.values())))
            raise InputError(f"--vary: {name!r} is not one of {known}.")
    found = []
    for label in arms:
        own = {name: options for name, options in values.items() if name in uses[arm_of(label)]}
        for point in product(*own.values()):
            found.append(" ".join([label, *(f"{name}={value}" for name, value in zip(own, point, strict=True))]))
    return tuple(found)


def axes_of(labels: Iterable[str]) -> dict[str, list[str]]:
    """Settings in which arms differ, with their values in the order in which they come."""
    found: dict[str, dict[str, None]] = {}
    for label in labels:
        for name, value in changes_of(label).items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def _axes(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, listed = part.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        values = [value.strip() for value in listed.split(",") if value.strip()]
        if not values or name in found or any(" " in value for value in values):
            raise InputError(f'--vary: {part!r} is not a setting with its values, such as "beta=0.15,0.3", given once.')
        found[name] = list(dict.fromkeys(values))
    return found


def _parsed(kind: Any, name: str, text: str) -> Any:
    options = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    if type(None) in options and text == NOTHING:
        return None
    (made,) = (option for option in options if option is not type(None))
    try:
        return made(text)
    except ValueError:
        raise InputError(f"--{name.replace('_', '-')}: {text!r} is not a valid {made.__name__}.") from None
