"""Tasks by name, shipped or of Hugging Face's hub, and from the user's files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import hub, shipped
from attrdrop.lab.text.examples import KINDS, Examples, Task
from attrdrop.lab.text.files import examples_of, from_files, labelled_like
from attrdrop.lab.text.others import aligned, parse, regrouped
from attrdrop.lab.text.settings import Evaluation
from attrdrop.lab.text.shipped import rotten_tomatoes

__all__ = ["KINDS", "TASKS", "Examples", "Task", "from_files", "load_task", "rotten_tomatoes", "set_of"]

TASKS = [*shipped.TASKS, *hub.TASKS]
OTHERS = [name for source in (shipped, hub) for task in source.TASKS.values() for name in task.other]


def load_task(name: str, kind: str | None = None, other: Sequence[str] = (), encoding: str = "utf-8") -> Task:
    """A task of TASKS, as `kind` where it may be read as several, with out-of-distribution sets.

    `other` are names of sets that the task knows, or files in that encoding, as :func:`others.parse` takes them. Raises
    InputError for a name, kind or set that is not there.
    """
    if name not in TASKS:
        raise InputError(f"--task: {name!r} is not one of {', '.join(TASKS)}.")
    source = _source(name)
    kinds, known = source.TASKS[name].kinds, source.TASKS[name].other
    if kind is not None and kind not in kinds:
        raise InputError(f"--task-type: {name} is not a task of type {kind}; it can be {' or '.join(kinds)}.")
    wanted = [parse(one) for one in other]
    for unknown in (one.name for one in wanted if one.name not in known and not Path(one.name).is_file()):
        raise InputError(f"--other: {unknown!r} is not a file{' or one of ' + ', '.join(known) if known else ''}.")
    task = source.load(name, kind or kinds[0], [one.name for one in wanted if one.name in known])
    sets = {
        one.name: regrouped(task.other[one.name], one, task.label_names)
        if one.name in known
        else labelled_like(task, Path(one.name), encoding, one.classes)
        for one in wanted
    }
    return replace(task, other=sets)


def fitting(name: str, other: Sequence[str]) -> list[str]:
    """Those of the out-of-distribution sets that a task knows, and all that are files."""
    known = _source(name).TASKS[name].other if name in TASKS else {}
    names = {one: parse(one).name for one in other}
    return [one for one in other if names[one] in known or Path(names[one]).is_file()]


def set_of(text: str, task: Task, options: Evaluation) -> tuple[str, Examples]:
    """Name and examples of a set that a saved model is scored on: a file, a task's split, or another set of a task.

    task: the model's type and classes. Raises InputError for anything else, or where the classes do not fit.
    """
    one = parse(text, "--on")
    if Path(one.name).is_file():
        columns = (options.text_column, options.text_pair_column, options.label_column)
        found = examples_of(Path(one.name), task.kind, task.label_names, *columns, options.encoding, one.classes)
        return one.name, found
    if one.name in TASKS:
        named = load_task(one.name, task.kind)
        if options.split not in named.sets:
            raise InputError(f"--split: {one.name} has no {options.split} split.")
        what = f"--on: {one.name}"
        return one.name, aligned(named.sets[options.split], named.label_names, task.label_names, one.classes, what)
    for source in (shipped, hub):
        if any(one.name in known.other for known in source.TASKS.values()):
            found = source.load_other(one.name, task.kind, task.label_names)
            return one.name, regrouped(found, one, task.label_names, "--on")
    raise InputError(f"--on: {one.name!r} is not a file or one of {', '.join([*TASKS, *OTHERS])}.")


def _source(name: str) -> Any:
    return shipped if name in shipped.TASKS else hub
