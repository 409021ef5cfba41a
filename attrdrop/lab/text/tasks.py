"""Tasks by name, shipped or of Hugging Face's hub, and from the user's files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import hub, shipped
from attrdrop.lab.text.examples import KINDS, Examples, Task
from attrdrop.lab.text.files import from_files, labelled_like
from attrdrop.lab.text.shipped import rotten_tomatoes

__all__ = ["KINDS", "TASKS", "Examples", "Task", "from_files", "load_task", "rotten_tomatoes"]

TASKS = [*shipped.TASKS, *hub.TASKS]


def load_task(name: str, kind: str | None = None, other: Sequence[str] = (), encoding: str = "utf-8") -> Task:
    """A task of TASKS, as `kind` where it may be read as several, with out-of-distribution sets.

    `other` are names of sets that the task knows, or files in that encoding. Raises InputError for a name, kind or set
    that is not there.
    """
    if name not in TASKS:
        raise InputError(f"--task: {name!r} is none of {', '.join(TASKS)}.")
    source = _source(name)
    kinds, known = source.TASKS[name].kinds, source.TASKS[name].other
    if kind is not None and kind not in kinds:
        raise InputError(f"--task-type: {name} is no task of {kind}; it may be {' or '.join(kinds)}.")
    for unknown in (one for one in other if one not in known and not Path(one).is_file()):
        raise InputError(f"--other: {unknown!r} is no file{' and none of ' + ', '.join(known) if known else ''}.")
    task = source.load(name, kind or kinds[0], [one for one in other if one in known])
    files = {one: labelled_like(task, Path(one), encoding) for one in other if one not in known}
    return replace(task, other={**task.other, **files})


def fitting(name: str, other: Sequence[str]) -> list[str]:
    """Those of the out-of-distribution sets that a task knows, and all that are files."""
    known = _source(name).TASKS[name].other if name in TASKS else {}
    return [one for one in other if one in known or Path(one).is_file()]


def _source(name: str) -> Any:
    return shipped if name in shipped.TASKS else hub
