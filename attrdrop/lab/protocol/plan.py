"""A plan, read from a TOML file: which arms are compared on which data, what is searched, the seeds, and what decides.

::

    [[setting]]
    name = "sentiment"
    command = "finetune"                     # finetune, train-images or train-points
    options = { task = "rotten-tomatoes", model = "bert-tiny", dev_size = 300, epochs = 8 }  # of that command
    trials = 12                              # settings that each arm tries
    search_seeds = [100, 101, 102]           # of each try
    seeds = [200, 201, 202, 203, 204]        # fresh ones, of what was chosen
    chosen_by = "accuracy"                   # a measure of the development split
    primary = "loss"                         # the measure of the test split that decides
    compare = [["ad-drop", "plain"], ["ad-drop", "random"]]
    shots = 256                              # training texts of each class, drawn by the seed; else always the same
    [setting.arms.plain]                     # what is searched
    lr = [1e-4, 3e-4, 1e-3]
    [setting.arms.ad-drop]
    lr = [1e-4, 3e-4, 1e-3]
    p = [0.1, 0.3, 0.5, 0.7, 0.9]
    [setting.twins.random]                   # an arm that takes over what another one chose
    of = "ad-drop"
    attribution = "RD"

An arm or twin is trained as the arm of its name unless it names another, as in arm = "ad-drop".
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError, said

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS = ("finetune", "train-images", "train-points")
LOWER = {"loss", "calibration_error", "brier_score", "gap_best", "gap_last"}  # measures that are better when low
MATCHED = "matched"  # the rate of attention dropout that drops as much as AD-DROP at the p and q it takes over
Point = dict[str, Any]


@dataclass(frozen=True)
class Twin:
    """Takes the settings chosen for the arm `of`, except for the changes."""

    of: str
    arm: str
    changes: Point

    def point(self, chosen: Point, options: Mapping[str, Any]) -> Point:
        """The twin's settings, from the chosen ones and the options of all arms."""
        point = chosen | self.changes
        if point.get("rate") == MATCHED:
            p, q = (options.get(name, 0.3) if name not in point else point[name] for name in ("p", "q"))
            crossed = point.get("cross_tuning", options.get("cross_tuning", True))
            point["rate"] = round(p * q / (2 if crossed else 1), 4)  # cross-tuning drops in every other epoch
        return point


@dataclass(frozen=True)
class Setting:
    """One comparison, as the file has it; `arms` has the choices of each, `kinds` what it is trained as."""

    name: str
    command: str
    options: Point
    trials: int
    search_seeds: list[int]
    seeds: list[int]
    chosen_by: str
    primary: str
    compare: list[tuple[str, str]]
    arms: dict[str, dict[str, list[Any]]]
    kinds: dict[str, str]
    twins: dict[str, Twin] = field(default_factory=dict)
    shots: int | None = None

    def grid(self, arm: str) -> list[Point]:
        """All points of an arm."""
        choices = self.arms[arm]
        return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]

    @property
    def all_arms(self) -> list[str]:
        """Arms, then twins."""
        return [*self.arms, *self.twins]


def load(path: Path) -> list[Setting]:
    """The settings of a plan. Raises InputError where the file says something else."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {said(error)}.") from None
    found = content.get("setting")
    if not (isinstance(found, list) and found and all(isinstance(one, dict) for one in found)):
        raise InputError(f"{path} must have one [[setting]] or more.")
    settings = [_setting(path, number, one) for number, one in enumerate(found, start=1)]
    names = [setting.name for setting in settings]
    if len(set(names)) < len(names):
        raise InputError(f"{path} must give each setting a different name, got {', '.join(names)}.")
    return settings


def _setting(path: Path, number: int, found: dict[str, Any]) -> Setting:
    where = f"{path}, setting {found.get('name', number)!r}"
    arms = {name: dict(choices) for name, choices in found.pop("arms", {}).items()}
    kinds = {name: choices.pop("arm", name) for name, choices in arms.items()}
    twins = {
        name: Twin(changes.pop("of", ""), changes.pop("arm", name), changes)
        for name, changes in found.pop("twins", {}).items()
    }
    kinds |= {name: twin.arm for name, twin in twins.items()}
    try:
        made = Setting(**found, arms=arms, kinds=kinds, twins=twins)
    except TypeError as error:
        raise InputError(f"{where}: {said(error).replace('Setting.__init__()', 'it')}.") from None
    _check(made, where)
    return made


def _check(setting: Setting, where: str) -> None:
    if setting.command not in COMMANDS:
        raise InputError(f"{where}: command: {setting.command!r} is not one of {', '.join(COMMANDS)}.")
    if not setting.arms:
        raise InputError(f"{where}: arms: name at least one.")
    for arm, choices in setting.arms.items():
        for name, values in choices.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{where}: {arm}: {name} must be a list of choices, got {values!r}.")
    for name, twin in setting.twins.items():
        if twin.of not in setting.arms:
            raise InputError(f"{where}: {name}: of: {twin.of!r} is not one of the arms {', '.join(setting.arms)}.")
    known = setting.all_arms
    for pair in setting.compare:
        if len(pair) != 2 or pair[0] == pair[1] or not {*pair} <= {*known}:
            raise InputError(f"{where}: compare: {pair} are not two of {', '.join(known)}.")
    if setting.trials < 1 or not setting.search_seeds or not setting.seeds:
        raise InputError(f"{where}: trials must be 1 or more, search_seeds and seeds lists of numbers.")
    if common := {*setting.search_seeds} & {*setting.seeds}:
        raise InputError(f"{where}: seeds must be fresh; {min(common)} is among search_seeds too.")
