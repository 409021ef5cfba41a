"""The settings of AD-DROP's paper, by task: its Section 3.2, and what its released scripts start from.

Its Appendix C.2 has more of them than these; whatever stands in neither is the command's own default.
"""

from typing import Any

from attrdrop.lab.errors import InputError

COMMON: dict[str, Any] = {"lr": 1e-5, "batch_size": 16, "weight_decay": 0.01, "max_length": 128, "seeds": 5}
ALL, FIRST = {"layers": "all"}, {"layers": "first"}
TASKS: dict[str, dict[str, Any]] = {
    "cola": {**ALL, "max_length": 47},
    "mrpc": {**ALL, "max_length": 100},
    "rte": ALL,
    "stsb": {**FIRST, "max_length": 100},
    "sst2": FIRST,
    "mnli": FIRST,
    "qnli": FIRST,
    "qqp": FIRST,
    "conll2003": {**ALL, "p": 0.8, "q": 0.1, "lr": 2e-5, "batch_size": 32, "epochs": 9},
    "wmt16-en-ro": {**ALL, "p": 0.2, "q": 0.2},
    "wmt16-tr-en": {**ALL, "p": 0.6, "q": 0.1},
}
KIN = {  # of the shipped sets
    "rotten-tomatoes": "sst2", "rotten-tomatoes:regression": "stsb", "squad-questions": "qnli",
    "brown-names": "conll2003", "bible-en-es": "wmt16-en-ro",
}  # fmt: skip


def of_task(task: str) -> dict[str, Any]:
    """The settings of a task, or of the one that a shipped set is kin to: task or task:type.

    Raises InputError for any other.
    """
    name = KIN.get(task, task)
    if name not in TASKS:
        raise InputError(f"--preset: the paper has no settings for {task}; it has for {', '.join([*TASKS, *KIN])}.")
    return {**COMMON, **TASKS[name]}


def of_tasks(tasks: tuple[str, ...], given: set[str]) -> dict[str, Any]:
    """What holds for all of some tasks that are swept together, but for what is given; the layers go by task.

    The longest of their lengths is taken. Raises InputError where they differ in something else.
    """
    found = {task: of_task(task) for task in tasks}
    shared: dict[str, Any] = {"layers": "paper", "max_length": max(one["max_length"] for one in found.values())}
    for name in {name for one in found.values() for name in one} - {*shared, *given}:
        values = {one.get(name) for one in found.values()}
        if len(values) > 1:
            raise InputError(
                f"--preset: the paper's --{name.replace('_', '-')} differs among {', '.join(tasks)}; sweep them "
                "separately, or give the option."
            )
        shared[name] = values.pop()
    return shared
