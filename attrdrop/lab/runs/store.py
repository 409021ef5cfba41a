"""Trials on disk, one file each: what is done already is not done again, whatever ends an experiment."""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from attrdrop.lab.errors import InputError, said
from attrdrop.lab.names import MODELS, Record, Trial
from attrdrop.lab.runs.results import (
    RESULTS,
    SWEEP,
    check_output,
    read_object,
    readable,
    replace_file,
    unwritable,
)

if TYPE_CHECKING:
    from typing_extensions import Self

TRIALS, FAILED, STUDY, LOCK = "trials", "failed", "optuna.db", ".lock"
SHARED = ("settings", "task", "checksums")  # parts of a header that all trials of a folder have in common
ADVICE = "; give another folder, or --overwrite"
DRAFTS = ("json", "csv", "png", "md")  # endings of files whose drafts a kill may leave


def key_of(trial: Trial) -> str:
    """16 hexadecimal digits that stand for the names and values, in whatever order they come."""
    canonical = json.dumps(trial, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class TrialStore:
    """A folder with a header, a file per finished trial, and one per failed trial.

    The header has whatever is true of the whole experiment; its parts SHARED are what every trial has in common, so a
    longer or shorter plan finds what another left. It is kept in `file`, SWEEP or RESULTS. Validates everything at
    construction and writes nothing before `locked`. Reading needs no lock.

    Raises InputError for a folder with an experiment of other settings, data or kind in it, or with anything else.
    """

    def __init__(self, folder: Path, header: dict[str, Any], overwrite: bool = False, file: str = SWEEP) -> None:
        self.folder, self.header, self._overwrite, self._file = folder, dict(header), overwrite, file
        self._adopt()

    @classmethod
    def load(cls, folder: Path, advice: str = "") -> "Self":
        """The sweep in a folder, finished or not, to be read; advice ends the error where there is none."""
        return cls(folder, _header(folder / SWEEP, "sweep", advice))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder, which one experiment does at a time, and writes the header; a dead process holds nothing.

        Raises InputError where another one holds it, or where it cannot be written.
        """
        lock = filelock.FileLock(self.folder / LOCK)
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(blocking=False)
                held.callback(lock.release)
                self._adopt()  # it may have changed before it was held
                self._tidy()
                replace_file(self.folder / self._file, json.dumps(self.header, indent=1).encode())
            except filelock.Timeout:
                what = "sweep" if self._file == SWEEP else "experiment"
                raise InputError(
                    f"--output: another {what} is running in {self.folder}; wait until it ends, or give another folder."
                ) from None
            except OSError as error:
                raise unwritable(self.folder, error) from error
            yield

    def pending(self, trials: Iterable[Trial]) -> list[Trial]:
        """The trials without a result, each once; those that failed are among them."""
        distinct = {key_of(trial): trial for trial in trials}
        return [trial for trial in distinct.values() if self.record(trial) is None]

    def record(self, trial: Trial) -> Record | None:
        """What is kept of a finished trial; None where it has no result.

        Raises InputError for a file that cannot be read: it may be repaired, so it is not silently replaced.
        """
        return None if self._overwrite else _read(self._path(TRIALS, trial))

    def results(self, trials: Iterable[Trial] | None = None) -> list[Record]:
        """The records of these trials as far as they are finished, in their order; of all, in that of finishing."""
        if trials is None:
            return self._all(TRIALS)
        return [record for trial in trials if (record := self.record(trial))]

    def failures(self) -> list[Record]:
        """The records of trials that failed and have had no result since."""
        return self._all(FAILED)

    def save(self, trial: Trial, result: Any, seconds: float, jobs: int = 1) -> None:
        """Keep the result of a trial: from here on no kill takes it away, and a power cut leaves no half of it."""
        self._write(TRIALS, trial, {"result": result, "seconds": seconds, "jobs": jobs})
        self._path(FAILED, trial).unlink(missing_ok=True)

    def fail(self, trial: Trial, message: str) -> None:
        """Keep why a trial has no result."""
        self._write(FAILED, trial, {"message": message})

    def forget(self, trial: Trial) -> None:
        """Drop the result of a trial, which is then to be done again."""
        self._path(TRIALS, trial).unlink(missing_ok=True)

    def _adopt(self) -> None:
        """Refuses what the folder must not hold; of an experiment that goes on, takes over when it started."""
        path, kind = self.folder / self._file, self.header.get("kind", "sweep")
        if self._overwrite or not os.path.exists(path):
            check_output(self.folder, self._overwrite)
            return
        found = _header(path, kind, ADVICE)
        is_older = bool(found.get("runs")) and not (self.folder / TRIALS).exists()
        if found.get("kind") != self.header.get("kind") or is_older:
            raise InputError(
                f"--output: {self.folder} holds no results of 'attrdrop {kind}': they belong to another command or "
                f"version{ADVICE}."
            )
        if other := _first_difference(found, self.header):
            raise InputError(f"--output: {self.folder} holds results of other settings or data: {other}{ADVICE}.")
        if "started" in found:
            self.header["started"] = found["started"]

    def _tidy(self) -> None:
        """Removes what is overwritten, and drafts of files in whose midst a process was killed."""
        if self._overwrite:
            for name in (TRIALS, FAILED, MODELS):
                if (self.folder / name).exists():
                    shutil.rmtree(self.folder / name)
            for name in (STUDY, SWEEP, RESULTS):
                (self.folder / name).unlink(missing_ok=True)
            self._overwrite = False
        for draft in self.folder.rglob(".*.*.*"):
            if draft.name.split(".")[-2] in DRAFTS:
                draft.unlink(missing_ok=True)

    def _all(self, kind: str) -> list[Record]:
        paths = [] if self._overwrite else (self.folder / kind).glob("*.json")
        return sorted(filter(None, map(_read, paths)), key=lambda record: record["finished"])

    def _write(self, kind: str, trial: Trial, content: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
        path = self._path(kind, trial)
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, json.dumps({"trial": trial, **content, "finished": now}, indent=1).encode())
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _path(self, kind: str, trial: Trial) -> Path:
        return self.folder / kind / f"{key_of(trial)}.json"


def _header(path: Path, command: str, advice: str = "") -> dict[str, Any]:
    with readable(path.parent, command, advice):
        return read_object(path)


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Words for the first value of the shared parts that is not what it was, None where all are."""
    for part in SHARED:
        before, now = ({"": header.get(part)} for header in (found, json.loads(json.dumps(wanted))))
        for name, (old, new) in _differences(before, now):
            what = f"--{name.replace('_', '-')}" if part == "settings" else " ".join(filter(None, (part, name)))
            return f"{what} was {_shown(old)}, is now {_shown(new)}"
    return None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for inner, values in _differences(old, new):
                yield " ".join(filter(None, (name, inner))), values
        elif old != new:
            yield name, (old, new)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "not given" if value is None else "given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> Record | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if key_of(record["trial"]) != path.stem or "finished" not in record:
            raise ValueError("it holds a different trial than its name says")
        if not (isinstance(record.get("result"), dict) or "message" in record):
            raise ValueError("it has no result")
    except FileNotFoundError:  # perhaps this moment: a trial that failed once has a result now
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--output: {path} is not a record of a trial: {said(error)}; delete the file to do the trial again."
        ) from None
    return record
