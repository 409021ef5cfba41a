"""Saved models: the best one of each arm, each in a folder that is complete or absent."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import MODELS
from attrdrop.lab.runs.results import read_object, readable

CARD = "attrdrop.json"


class ModelStore:
    """The folder `models` of an experiment: one folder an arm, and hidden ones of runs that may yet be its best.

    A run's model is written before its result is kept, so that whoever ends an experiment, the model of each finished
    run that may be its arm's best is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / MODELS

    def save(self, arm: str, seed: int, write: Callable[[Path], None], card: Mapping[str, Any]) -> None:
        """Keep the model of a run, which `write` writes into a folder, beside a card that says what it is."""
        target = self._candidate(arm, seed)
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        try:
            write(draft)
            (draft / CARD).write_text(json.dumps({**card, "arm": arm, "seed": seed}, indent=1), encoding="utf-8")
            for path in filter(Path.is_file, draft.rglob("*")):
                _flush(path)  # or the new name could outlive a power cut and the content not
            _replace(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def has(self, arm: str, seed: int) -> bool:
        """Whether the model of a run is there, as the best of its arm or as one that may be."""
        return self._candidate(arm, seed).is_dir() or self._seed(arm) == seed

    def settle(self, arm: str, ranked: Iterable[int]) -> None:
        """Make the best of an arm the one that is there; the models of its other finished runs go.

        ranked: the seeds of the finished runs, the best first.
        """
        finished = list(ranked)
        best = next((seed for seed in finished if self.has(arm, seed)), None)
        if best is not None and self._seed(arm) != best:
            _replace(self._candidate(arm, best), self.folder / arm)
        for seed in finished:
            shutil.rmtree(self._candidate(arm, seed), ignore_errors=True)

    def tidy(self) -> None:
        """Removes what a killed process was writing or replacing."""
        for draft in self.folder.glob(".*.*"):
            if draft.suffix[1:].isdigit():  # the process; a setting in an arm's name may hold a point too
                shutil.rmtree(draft)

    def _seed(self, arm: str) -> int | None:
        """Of the run that is the best of an arm so far."""
        with contextlib.suppress(OSError, ValueError):
            return int(read_object(self.folder / arm / CARD)["seed"])
        return None

    def _candidate(self, arm: str, seed: int) -> Path:
        return self.folder / f".{arm}-{seed}"


def card_of(folder: Path) -> dict[str, Any]:
    """What a saved model's card says; nothing where it has none, as a model from elsewhere.

    Raises InputError where it cannot be read.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    with readable(folder):
        return read_object(path)


def check_model(folder: Path) -> None:
    """Refuse anything but a folder with a saved model."""
    if not folder.is_dir():
        raise InputError(f"MODEL: {folder} is {'a file' if folder.exists() else 'not there'}; give a model's folder.")


def _replace(source: Path, target: Path) -> None:
    """Rename a folder, even to a name that is in use."""
    old = target.with_name(f".{target.name.lstrip('.')}.{os.getpid()}")
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
