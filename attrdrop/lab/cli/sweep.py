"""The command `attrdrop sweep`."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from attrdrop.lab.cli import options
from attrdrop.lab.cli.finetune import FILE_OPTIONS, check_data_options, listed
from attrdrop.lab.cli.terminal import (
    DATA,
    OUTPUT,
    TRAINING,
    console,
    given_options,
    one_sentence,
    option,
    progress_bar,
    values_under,
)
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.text.settings import PRESETS, Settings

SWEEP = "Sweep"
TENTHS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"

# The smallest encoder on few examples: some minutes on two CPU cores.
DEMO = PRESETS["demo"] | {
    "model": "bert-tiny",
    "studies": "seeds,ablation,rivals,regions,costs,maps",
    "lr": 3e-4,
}


class SweepPreset(str, Enum):
    """Names of presets."""

    demo = "demo"


def sweep(
    context: typer.Context,
    preset: Annotated[
        SweepPreset | None,
        option(OUTPUT, "demo: the smallest encoder on few examples, some minutes on two CPU cores."),
    ] = None,
    studies: Annotated[
        str,
        option(SWEEP, "seeds, ablation, grid, size, shots, regions, rivals, costs, maps; several with commas between."),
    ] = "seeds",
    tasks: Annotated[
        str,
        option(
            DATA,
            "Data sets as of finetune, several with commas between; name:type, as in rotten-tomatoes:regression, "
            "where the type is not the set's own.",
        ),
    ] = "rotten-tomatoes",
    task_type: options.TaskType = None,
    train: options.Train = None,
    dev: options.Dev = None,
    test: options.Test = None,
    other: options.Other = None,
    text_column: options.TextColumn = None,
    text_pair_column: options.TextPairColumn = None,
    label_column: options.LabelColumn = None,
    train_size: options.TrainSize = None,
    dev_size: options.DevSize = None,
    test_size: options.TestSize = None,
    model: options.Model = Settings.model,
    max_length: options.MaxLength = Settings.max_length,
    metric: options.MetricName = Settings.metric,
    p: options.P = Settings.p,
    q: options.Q = Settings.q,
    layers: options.Layers = Settings.layers,
    p_values: Annotated[str, option(SWEEP, "Values of p in the grid, with commas between.")] = TENTHS,
    q_values: Annotated[str, option(SWEEP, "Values of q in the grid, with commas between.")] = TENTHS,
    grid_seeds: Annotated[int, option(SWEEP, "Seeds of each point of the grid.", min=1)] = 1,
    shares: Annotated[
        str, option(SWEEP, "Parts of the training examples for the study of size.")
    ] = "0.1,0.2,0.4,0.6,0.8,1",
    shots: Annotated[str, option(SWEEP, "Training examples of each class for the study of shots.")] = "16,64,256",
    search: Annotated[
        int | None, option(SWEEP, "In the place of studies: let optuna choose p and q, so many times.", min=1)
    ] = None,
    storage: Annotated[
        str | None,
        option(SWEEP, "Database URL of the search, for several machines; without it a file in the folder."),
    ] = None,
    iga_steps: options.IGASteps = Settings.iga_steps,
    attention: options.Attention = Settings.attention,
    pass1: options.Pass1 = Settings.pass1,
    rate: options.Rate = Settings.rate,
    consistency: options.Consistency = Settings.consistency,
    seeds: options.Seeds = 5,
    first_seed: options.FirstSeed = 0,
    epochs: options.Epochs = Settings.epochs,
    batch_size: options.BatchSize = Settings.batch_size,
    lr: options.LearningRate = Settings.lr,
    weight_decay: options.WeightDecay = Settings.weight_decay,
    early_stopping_patience: options.Patience = Settings.early_stopping_patience,
    device: options.Device = Settings.device,
    jobs: Annotated[int, option(TRAINING, "Runs at the same time, each in a process of its own.", min=1)] = 1,
    threads: options.Threads = None,
    output: options.Resumed = Path("runs/sweep"),
    overwrite: options.Overwrite = False,
) -> None:
    """Repeat the analyses of the AD-DROP paper: many runs, then tables and figures.

    Each study is a set of runs; what they share is done once. Results are
    on disk after each run, so the same command again, after Ctrl-C or a
    crash, does what is left, and another study or more seeds add to it.
    Draw them again with 'attrdrop report'.
    """
    values = values_under(context, DEMO if preset else {})
    with one_sentence():
        check_data_options(given_options(context), "tasks")
        _sweep(values)


def _sweep(values: dict[str, Any]) -> None:
    import torch

    from attrdrop.lab.studies.run import Sweep

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    plan, prepare = _plan(values), _prepare(values)
    with console.status("Reading the data and checking the model"):
        sweep = Sweep(plan, prepare, values["output"], values["overwrite"])
    total, left = len(plan.trials()), len(sweep.pending)
    if total > left:
        console.print(f"{total - left} of {total} runs are in {escape(str(values['output']))} already.")
    failures, points = 0, (values["search"] or 0) * len(plan.tasks) * plan.seeds
    try:
        with sweep.pool(values["jobs"], values["threads"]) as pool, _progress(left + points) as notices:
            failures += pool.run(plan.trials(), **notices)
            if values["search"]:
                failures += sweep.search(pool, values["search"], values["storage"], **notices)
    finally:
        if sweep.store.results():
            _show(sweep.report())
    if failures:
        raise RunError(f"{failures} runs failed; the same command tries them again.")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[dict[str, Any]]:
    """A bar over trials, and what to call when one starts, ends or fails."""
    with progress_bar(disable=not total) as progress:
        bar = progress.add_task("", total=total)
        numbers = itertools.count(1)

        def starting(trial: dict[str, Any]) -> None:
            description = f"{trial['task']}, {trial['arm']}, seed {trial['seed']}"
            progress.update(bar, description=description)
            if not console.is_terminal:
                console.print(f"run {next(numbers)} of {total}: {description}")

        def finished(record: dict[str, Any]) -> None:
            progress.advance(bar)

        def failed(trial: dict[str, Any], message: str) -> None:
            console.print(f"[yellow]{escape(f'{trial}: {message}')}[/]")
            progress.advance(bar)

        yield {"starting": starting, "finished": finished, "failed": failed}


def _show(report: Any) -> None:
    files = report.save()
    console.print(report.table())
    console.print(f"Results are in [bold]{escape(str(report.store.folder))}[/]: {', '.join(files)}")


def _plan(values: dict[str, Any]) -> Any:
    from attrdrop.lab.studies.plan import Plan

    if not (listed(values["studies"]) or values["search"]):
        raise InputError("--studies: name at least one, or give --search.")
    chosen = {name: values[name] for name in ("seeds", "first_seed", "p", "q", "layers", "rate", "consistency")}
    tasks = (values["train"].name,) if values["train"] else listed(values["tasks"])
    if values["task_type"] and not values["train"]:
        tasks = tuple(f"{task.partition(':')[0]}:{values['task_type']}" for task in tasks)
    return Plan(
        studies=() if values["search"] else listed(values["studies"]),
        tasks=tasks,
        p_values=_numbers("p_values", values["p_values"], float),
        q_values=_numbers("q_values", values["q_values"], float),
        grid_seeds=values["grid_seeds"],
        shares=_numbers("shares", values["shares"], float),
        shots=_numbers("shots", values["shots"], int),
        **chosen,
    )


def _prepare(values: dict[str, Any]) -> Any:
    from attrdrop.lab.studies.workbench import Prepare

    names = {field.name for field in dataclasses.fields(Settings)} & values.keys()
    files = None
    if values["train"]:
        files = {name: values[name] for name in FILE_OPTIONS} | {"kind": values["task_type"] or "classification"}
    return Prepare(
        Settings(**{name: values[name] for name in names}),
        files=files,
        other=listed(values["other"]),
        train_size=values["train_size"],
        dev_size=values["dev_size"],
        test_size=values["test_size"],
    )


def _numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in listed(text))
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option}: {text!r} is no list of numbers with commas between.") from None
