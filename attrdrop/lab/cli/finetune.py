"""The command `attrdrop finetune`."""

from functools import partial
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import run_experiment
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import SavingRunOptions
from attrdrop.lab.text import published
from attrdrop.lab.text.settings import FILES, PRESETS, Data, Settings


def _published(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    if values["train"]:
        raise InputError("--preset: the paper's settings depend on its task names; leave it out with --train.")
    named = f"{values['task']}:{values['task_type']}"
    return published.of_task(named if named in published.KIN else values["task"])


@command(
    {**PRESETS, "paper": _published},
    "demo: the smallest encoder on a few sentences, a few minutes on two CPU cores. paper: AD-DROP's for the task. "
    "Other options override either.",
    output=Path("runs/finetune"),
)
def finetune(data: Data, settings: Settings, run: SavingRunOptions, given: set[str]) -> None:
    """Fine-tune a pre-trained model plainly, with AD-DROP and with its rivals, and compare.

    All arms see the same data in the same order from the same initial
    weights, with several seeds. The table at the end shows scores, step
    time and memory. Ctrl-C keeps every finished run; the same command
    does the rest.
    """
    check_data_options(given)
    from attrdrop.lab.text.experiment import TextExperiment

    run_experiment(partial(TextExperiment, settings, partial(load_task, data)), run)


def check_data_options(given: set[str], named: str = "task") -> None:
    """Refuse file options without files, and a named task together with files."""
    stray = given & {*FILES[1:]} - ({"encoding"} if "other" in given else set())
    if "train" not in given and stray:
        raise InputError(f"--{min(stray).replace('_', '-')} goes with your own data: name the file with --train.")
    if {"train", named} <= given:
        raise InputError(f"--{named} names a data set: give either --{named} or --train, not both.")


def load_task(data: Data) -> Any:
    """The task that the options name, reduced to the sizes that they ask for."""
    from attrdrop.lab.text import tasks

    if data.train is None:
        task = tasks.load_task(data.task, data.task_type, data.other, data.encoding)
    else:
        task = tasks.from_files(**data.files, kind=data.task_type or tasks.KINDS[0], other=data.other)
    return task.limited(data.train_size, data.dev_size, data.test_size)
