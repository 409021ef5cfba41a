"""The command `attrdrop finetune`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from attrdrop.lab.cli import options
from attrdrop.lab.cli.terminal import (
    ADDROP,
    DATA,
    OUTPUT,
    TRAINING,
    arm_settings,
    console,
    given_options,
    one_sentence,
    option,
    run_experiment,
    values_under,
)
from attrdrop.lab.errors import InputError
from attrdrop.lab.text.settings import ARMS, PRESETS, Settings

FILE_OPTIONS = ("train", "dev", "test", "text_column", "text_pair_column", "label_column")


class Preset(str, Enum):
    """Names of PRESETS."""

    demo = "demo"


def finetune(
    context: typer.Context,
    preset: Annotated[
        Preset | None,
        option(OUTPUT, "demo: small sizes, about four minutes on two CPU cores; other options override it."),
    ] = None,
    task: Annotated[
        str, option(DATA, "rotten-tomatoes or another shipped set, or one of the hub such as rte (package datasets).")
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
    arms: Annotated[str, option(TRAINING, f"What to compare, with commas between: {', '.join(ARMS)}.")] = ",".join(
        Settings.arms
    ),
    metric: options.MetricName = Settings.metric,
    p: options.P = Settings.p,
    q: options.Q = Settings.q,
    attribution: Annotated[
        str, option(ADDROP, "What ranks: gradient (GA), its integral (IGA), attention (AA), or nothing (RD).")
    ] = Settings.attribution,
    iga_steps: options.IGASteps = Settings.iga_steps,
    layers: options.Layers = Settings.layers,
    attention: options.Attention = Settings.attention,
    target: Annotated[
        str, option(ADDROP, "What is attributed: the logit of the pseudo (predicted) or gold label.")
    ] = Settings.target,
    pass1: options.Pass1 = Settings.pass1,
    region: Annotated[
        str, option(ADDROP, "Which attributions are candidates: high, or low as in the paper's prior experiment.")
    ] = Settings.region,
    cross_tuning: Annotated[
        bool, option(ADDROP, "Train plainly in odd epochs and with AD-DROP in even ones, or with AD-DROP in all.")
    ] = Settings.cross_tuning,
    rate: options.Rate = Settings.rate,
    consistency: options.Consistency = Settings.consistency,
    seeds: options.Seeds = Settings.seeds,
    first_seed: options.FirstSeed = Settings.first_seed,
    epochs: options.Epochs = Settings.epochs,
    batch_size: options.BatchSize = Settings.batch_size,
    lr: options.LearningRate = Settings.lr,
    weight_decay: options.WeightDecay = Settings.weight_decay,
    early_stopping_patience: options.Patience = Settings.early_stopping_patience,
    device: options.Device = Settings.device,
    threads: options.Threads = None,
    output: Annotated[Path, option(OUTPUT, "Folder for results.json, runs.csv, curves.csv and curves.png.")] = Path(
        "runs/finetune"
    ),
    overwrite: options.Overwrite = False,
) -> None:
    """Fine-tune a pre-trained model plainly, with AD-DROP or its rivals, and compare.

    All arms see the same data in the same order from the same initial
    weights, at each of several seeds. The table at the end shows scores,
    step time and memory. Ctrl-C keeps every finished run.
    """
    values = values_under(context, PRESETS[preset.value] if preset else {})
    with one_sentence():
        settings = arm_settings(Settings, values)
        check_data_options(given_options(context))
        from attrdrop.lab.runs.results import check_output
        from attrdrop.lab.text import report
        from attrdrop.lab.text.experiment import Experiment

        check_output(values["output"], values["overwrite"])
        if values["threads"]:
            import torch

            torch.set_num_threads(values["threads"])
        with console.status("Reading the data and checking the model"):
            experiment = Experiment(settings, load_task(values), values["output"], values["overwrite"])
        run_experiment(experiment, report.FILES)


def check_data_options(given: set[str], named: str = "task") -> None:
    """Refuse options of files without files, and a named task beside files."""
    stray = given & {*FILE_OPTIONS[1:]}
    if "train" not in given and stray:
        raise InputError(f"--{min(stray).replace('_', '-')} goes with your own data: name the file with --train.")
    if {"train", named} <= given:
        raise InputError(f"--{named} names a data set of its own: give either --{named} or --train.")


def listed(text: str | None) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def load_task(values: dict[str, Any]) -> Any:
    """The task that the options name, cut down to the sizes they ask for."""
    from attrdrop.lab.text import tasks

    kind, other = values["task_type"], listed(values["other"])
    if values["train"] is None:
        task = tasks.load_task(values["task"], kind, other)
    else:
        files = {name: values[name] for name in FILE_OPTIONS}
        task = tasks.from_files(**files, kind=kind or tasks.KINDS[0], other=other)
    return task.limited(values["train_size"], values["dev_size"], values["test_size"])
