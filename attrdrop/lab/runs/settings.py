"""Settings are dataclasses whose fields say, once, how they stand on a command line and what they may be."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import RULES

Check = Callable[[str, Any], None]  # of the name and value of an option; raises InputError


class Panel(str, Enum):
    """Panels of the help, in their order."""

    RESULTS = "Results"
    SWEEP = "Sweep"
    DATA = "Data"
    MODEL = "Model"
    TRAINING = "Training"
    ADDROP = "AD-DROP"
    RELDROP = "RelDrop"
    RIVALS = "Rivals of AD-DROP"


@dataclass(frozen=True)
class Option:
    """A field on the command line; stands in its annotation.

    min is shown in the help and refused by the command line itself; check refuses with a sentence of its own. names
    are given where those made of the field's do not fit. is_argument: it stands without a name.
    """

    panel: Panel
    help: str
    min: float | None = None
    check: Check | None = None
    names: tuple[str, ...] = ()
    is_argument: bool = False

    def validate(self, name: str, value: Any) -> None:
        """Refuse a value outside the limits; None is no value."""
        name = name.replace("_", "-")
        if value is None:
            return
        if self.min is not None and value < self.min:
            raise InputError(f"--{name}: {value} should be greater than or equal to {self.min}.")
        if self.check is not None:
            self.check(name, value)


class Options:
    """Base of dataclasses whose fields are options: what the command line refuses, they refuse in Python too."""

    def __post_init__(self) -> None:
        for name, (_, option) in options_of(type(self)).items():
            option.validate(name, getattr(self, name))


class SeededOptions(Options):
    """Those of runs that are repeated under several seeds."""

    seeds: int
    first_seed: int

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))


def options_of(kind: type) -> dict[str, tuple[Any, Option]]:
    """Type and Option of the fields of a dataclass that have one, by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (hints[field.name].__origin__, part)
        for field in dataclasses.fields(kind)
        for part in getattr(hints[field.name], "__metadata__", ())
        if isinstance(part, Option)
    }


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse an option that is not one of its choices."""
    if value not in choices:
        raise InputError(f"--{option}: {value!r} is not one of {', '.join(choices)}.")


def one_of(choices: Iterable[str]) -> Check:
    """Refuses what is not one of the choices."""
    return lambda option, value: check_choice(option, value, choices)


def arms_of(choices: Iterable[str]) -> Check:
    """Refuses arms that are none of the choices, none at all, or one twice; settings may stand behind an arm."""

    def check(option: str, arms: Sequence[str]) -> None:
        for arm in arms:
            check_choice(option, arm.partition(" ")[0], choices)
        if not arms or len(set(arms)) < len(arms):
            raise InputError(f"--{option}: name at least one arm, each once, got {', '.join(arms) or 'none'}.")

    return check


def share(what: str = "probability") -> Check:
    """Refuses what is not within 0 and 1."""
    return _number(what, "from 0 to 1", lambda value: 0 <= value <= 1)


def positive(what: str, example: str = "") -> Check:
    """Refuses what is not a finite number above 0."""
    return _number(what, f"above 0{_for_instance(example)}", lambda value: 0 < value < float("inf"))


def non_negative(what: str, example: str = "") -> Check:
    """Refuses what is not 0 or a finite number above it."""
    return _number(what, f"from 0 on{_for_instance(example)}", lambda value: 0 <= value < float("inf"))


def alternatives(names: Sequence[str]) -> str:
    """'a, b or c'."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_rules(option: str, rules: tuple[str, ...]) -> None:
    for rule in rules:
        check_choice(option, rule, RULES)
    if not rules or len(set(rules)) < len(rules):
        raise InputError(f"--{option}: name at least one rule, each once, got {', '.join(rules) or 'none'}.")


def _check_epsilons(option: str, values: tuple[float, ...]) -> None:
    check = positive("stabiliser", "0.001")
    for value in values:
        check(option, value)
    if not values:
        raise InputError(f"--{option}: name at least one.")


def _number(what: str, wanted: str, fits: Callable[[float], bool]) -> Check:
    def check(option: str, value: float) -> None:
        if not fits(value):
            raise InputError(f"--{option}: {value} is not a {what}; give a number {wanted}.")

    return check


def _for_instance(example: str) -> str:
    return f", {example} for instance" if example else ""


Seeds = Annotated[int, Option(Panel.TRAINING, "Runs per arm, each with its own seed.", min=1)]
FirstSeed = Annotated[int, Option(Panel.TRAINING, "The first seed; the others follow it.", min=0)]
Device = Annotated[str, Option(Panel.TRAINING, "auto, cpu or cuda.")]
Epochs = Annotated[int, Option(Panel.TRAINING, "Epochs of a run.", min=1)]
WeightDecay = Annotated[float, Option(Panel.TRAINING, "Weight decay.", min=0)]
MeasureEvery = Annotated[
    int | None,
    Option(
        Panel.TRAINING,
        "Also measure flipping after every n-th epoch, for its curve; takes the time of a few steps.",
        min=1,
    ),
]
Rule = Annotated[str, Option(Panel.RELDROP, f"{alternatives(RULES)}.", check=one_of(RULES))]
Epsilon = Annotated[
    float, Option(Panel.RELDROP, "Stabiliser of the epsilon rule.", check=positive("stabiliser", "0.001"))
]
AlphaEnd = Annotated[
    float | None,
    Option(Panel.RELDROP, "Move alpha linearly to this value during training.", check=share()),
]
Every = Annotated[int, Option(Panel.RELDROP, "Attribute only in every n-th step; the others drop at random.", min=1)]


@dataclass(frozen=True)
class Variation(Options):
    """A grid of settings, each point of which is an arm."""

    vary: Annotated[
        str,
        Option(
            Panel.SWEEP,
            'Settings of RelDrop and its rivals to try in all combinations, such as "beta=0.15,0.3; alpha=0,0.5". The '
            "development split chooses among them.",
        ),
    ] = ""


@dataclass(frozen=True)
class MapOptions(Options):
    """Which relevance is compared, on how many images, and where it is drawn."""

    output: Annotated[Path, Option(Panel.RESULTS, "Folder for the figures and the table.")] = Path("runs/maps")
    overwrite: Annotated[
        bool, Option(Panel.RESULTS, "Replace earlier results in the output folder.", names=("--overwrite",))
    ] = False
    train: Annotated[
        bool, Option(Panel.TRAINING, "Draw before training, train plainly, and draw again.", names=("--train",))
    ] = False
    samples: Annotated[int, Option(Panel.DATA, "Validation examples to draw.", min=1)] = 20
    rules: Annotated[
        tuple[str, ...],
        Option(Panel.RELDROP, f"Rules to compare, separated by commas: {', '.join(RULES)}.", check=_check_rules),
    ] = RULES[:5]
    epsilons: Annotated[
        tuple[float, ...],
        Option(Panel.RELDROP, "Stabilisers to compare, for rules that have one.", check=_check_epsilons),
    ] = (1e-3,)


@dataclass(frozen=True)
class RunOptions(Options):
    """How the runs of an experiment are done, and where their results go; each command names its own folder."""

    output: Annotated[
        Path,
        Option(Panel.RESULTS, "Folder for tables and figures. Runs of the same experiment in it are not repeated."),
    ]
    jobs: Annotated[
        int,
        Option(Panel.TRAINING, "Runs at a time, each in its own process; times are then not comparable.", min=1),
    ] = 1
    threads: Annotated[int | None, Option(Panel.TRAINING, "CPU threads; by default PyTorch chooses.", min=1)] = None
    overwrite: Annotated[
        bool, Option(Panel.RESULTS, "Replace earlier results in the output folder.", names=("--overwrite",))
    ] = False


@dataclass(frozen=True)
class Machines(Options):
    """Where the runs of an experiment are done."""

    executor: Annotated[
        str,
        Option(
            Panel.TRAINING,
            "Where runs execute: local (this machine) or ray (a Ray cluster; extra sweep-ray).",
            check=one_of(("local", "ray")),
        ),
    ] = "local"
    address: Annotated[
        str | None,
        Option(
            Panel.TRAINING, "Address of the Ray cluster, such as auto or 10.0.0.1:6379; by default one is started here."
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address and self.executor != "ray":
            raise InputError("--address: only --executor ray takes one.")


@dataclass(frozen=True)
class SavingRunOptions(RunOptions):
    """Those of experiments whose models are worth keeping."""

    save: Annotated[
        bool,
        Option(Panel.RESULTS, "Keep the best model of each arm, in the folder models.", names=("--save",)),
    ] = False
