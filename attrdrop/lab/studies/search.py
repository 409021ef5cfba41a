"""Points of a space that is too large for a grid, proposed by optuna from the values of earlier points.

Raises InputError at import where optuna is not installed.
"""

import contextlib
import math
import platform
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.store import STUDY, key_of

try:
    import optuna
    import sqlalchemy
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise InputError("a search needs the package optuna: pip install optuna.") from None

DIGITS = 10  # 0.30000000000000004 of a search is the 0.3 of a grid
EVALUATED = (TrialState.COMPLETE, TrialState.PRUNED)
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds
OWNER = "owner"  # noted with a point: which of several machines evaluates it

Params = dict[str, Any]
Proposal = FrozenTrial | optuna.Trial
Space = Mapping[str, list[Any] | tuple[float, ...]]  # by name, choices, or (low, high) or (low, high, step)


@dataclass(frozen=True)
class Point:
    """A point and its value, None where it has none."""

    params: Params
    value: float | None


def search(
    space: Space,
    evaluate: Callable[[list[Params]], list[float | None]],
    folder: Path,
    trials: int,
    seed: int,
    jobs: int = 1,
    direction: Literal["maximize", "minimize"] = "maximize",
    subject: Mapping[str, Any] | None = None,
    storage: str | None = None,
) -> list[Point]:
    """Evaluate points that TPE proposes until there are so many, over all starts; returns all of them, in order.

    A proposal depends on nothing but the seed and the points before it, so a search that was killed goes on as it
    would have gone. For whoever holds the folder (`TrialStore.locked`, `open_pool`).

    Args:
        space: ranges and choices by name; a range of whole numbers has whole numbers as its points.
        evaluate: gives the values of some points; None, which counts as worse than any value, where one has none.
        folder: keeps the study, in optuna.db.
        trials: points in all.
        seed: of the sampler.
        jobs: how many points are proposed at a time, before the value of the first of them is known.
        direction: of better values.
        subject: what is evaluated, as plain values; another subject, space or direction is another study.
        storage: URL of a database, or journal:FILE on a disk in common, to keep the study instead. Searches on several
            machines, each with a folder of its own, then share their points; they may exceed `trials` by those they
            are at.

    Raises:
        InputError: the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    owner = f"{platform.node()}:{folder.resolve()}" if storage else None
    with _one_sentence(storage):
        study = _study(
            storage or sqlalchemy.URL.create("sqlite", database=str(folder / STUDY)).render_as_string(),
            study_name=key_of({"space": dict(space), "direction": direction, "subject": subject}),
            direction=direction,
            load_if_exists=True,
        )
        left = _left_by_the_dead(study, space, owner)
    while True:
        with _one_sentence(storage):
            points = study.get_trials(False, EVALUATED)
            part = sum(map(_is_of(owner), points)) % jobs  # a kill came between the first values and the last
            asked: list[Proposal] = [*left[: jobs - part]]  # also where other machines have come to `trials` meanwhile
            left = left[len(asked) :]
            room = min(jobs - part, trials - len(points)) - len(asked)
            asked += [_ask(study, space, seed, owner) for _ in range(room)]
            if not asked:
                return [Point(_rounded(point.params), point.value) for point in points]
        values = evaluate([_rounded(trial.params) for trial in asked])
        with _one_sentence(storage):
            for trial, value in zip(asked, values, strict=True):
                _tell(study, trial, value)


def _study(storage: str, **options: Any) -> optuna.Study:
    """optuna makes its tables without a lock, so of machines that start at once in an empty database all but one find
    those of another half there, and try again."""
    kind, _, path = storage.partition(":")
    if kind == "journal":
        backend = JournalFileBackend(path.removeprefix("//"))
        return optuna.create_study(storage=optuna.storages.JournalStorage(backend), **options)
    for pause in PAUSES:
        try:
            return optuna.create_study(storage=storage, **options)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            time.sleep(pause)
    return optuna.create_study(storage=storage, **options)


def _is_of(owner: str | None) -> Callable[[FrozenTrial], bool]:
    return lambda trial: trial.user_attrs.get(OWNER) == owner


def _left_by_the_dead(study: optuna.Study, space: Space, owner: str | None) -> list[FrozenTrial]:
    """Points that an earlier process did not finish, to be evaluated after all."""
    left = list(filter(_is_of(owner), study.get_trials(False, (TrialState.RUNNING,))))
    for trial in left:
        if len(trial.params) < len(space):  # it died while proposing, and will be proposed anew
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in left if len(trial.params) == len(space)]


def _ask(study: optuna.Study, space: Space, seed: int, owner: str | None) -> Proposal:
    """The next point; the seed of its sampler counts the points before it, which no kill changes."""
    place = len(study.get_trials(False, (*EVALUATED, TrialState.RUNNING)))
    entropy = [seed, place] if owner is None else [seed, place, zlib.crc32(owner.encode())]  # no two propose the same
    own_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of constant_liar, before optuna 5
        study.sampler = optuna.samplers.TPESampler(seed=own_seed, constant_liar=True)
    trial = study.ask({name: _distribution(values) for name, values in space.items()})
    trial.set_user_attr(OWNER, owner)
    return trial


def _tell(study: optuna.Study, trial: Proposal, value: float | None) -> None:
    if value is None or not math.isfinite(value):
        study.tell(trial.number, state=TrialState.PRUNED)  # TPE turns away from these, and ignores what failed
    else:
        study.tell(trial.number, value)


def _distribution(values: list[Any] | tuple[float, ...]) -> BaseDistribution:
    if isinstance(values, list):
        return CategoricalDistribution(values)
    low, high, *step = values
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), step=int(*step or [1]))
    return FloatDistribution(low, high, step=step[0] if step else None)


def _rounded(params: Params) -> Params:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in params.items()}


@contextlib.contextmanager
def _one_sentence(storage: str | None) -> Iterator[None]:
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        where = "--storage: the database" if storage else f"--output: {STUDY}"  # a URL may hold a password
        raise InputError(f"{where} cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from error
