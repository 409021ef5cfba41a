"""The command `attrdrop`. Heavy imports wait inside the commands, so that help is instant."""

import dataclasses
import importlib
import sys
from enum import Enum
from json import dumps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:
    sys.exit(f"The attrdrop command needs {error.name}: pip install 'attrdrop[lab]' (ops and ADDrop work without it).")

from attrdrop._terminal import (
    DATA,
    FAILED,
    MODEL,
    OK,
    OUTPUT,
    TRAINING,
    console,
    given_options,
    one_sentence,
    option,
    run_experiment,
    values_under,
)
from attrdrop.cli_images import train_images
from attrdrop.cli_points import train_points
from attrdrop.lab.errors import InputError
from attrdrop.lab.settings import PRESETS, Settings

if TYPE_CHECKING:
    from attrdrop.lab.experiment import Experiment

app = typer.Typer(
    help="Attribution-driven dropout (AD-DROP, RelDrop): try it, check the installation, measure the kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Preset(str, Enum):
    """Names of PRESETS."""

    demo = "demo"


ADDROP = "AD-DROP"


@app.command()
def finetune(
    context: typer.Context,
    preset: Annotated[
        Preset | None,
        option(OUTPUT, "demo: small sizes, about four minutes on two CPU cores; other options override it."),
    ] = None,
    task: Annotated[
        str, option(DATA, "rotten-tomatoes (shipped), or a GLUE task such as rte (needs the package datasets).")
    ] = "rotten-tomatoes",
    train: Annotated[
        Path | None, option(DATA, "Your own data: .csv, .tsv or .jsonl, also .gz; one example a row.")
    ] = None,
    dev: Annotated[
        Path | None, option(DATA, "Development file, used for early stopping; without it a tenth of --train.")
    ] = None,
    test: Annotated[Path | None, option(DATA, "Test file; without it the development accuracy is reported.")] = None,
    text_column: Annotated[
        str | None, option(DATA, "Column with the text; text, sentence and sentence1 are found by themselves.")
    ] = None,
    text_pair_column: Annotated[str | None, option(DATA, "Column with the second text, for tasks on pairs.")] = None,
    label_column: Annotated[
        str | None, option(DATA, "Column with the class, any string or number; label is found by itself.")
    ] = None,
    train_size: Annotated[int | None, option(DATA, "Use only so many training examples.", min=2)] = None,
    dev_size: Annotated[int | None, option(DATA, "Use only so many development examples.", min=1)] = None,
    test_size: Annotated[int | None, option(DATA, "Use only so many test examples.", min=1)] = None,
    model: Annotated[
        str, option(MODEL, "minilm (a package, no download), a model folder, or a hub id.")
    ] = Settings.model,
    max_length: Annotated[int, option(MODEL, "Longer texts are cut to so many tokens.", min=4)] = Settings.max_length,
    p: Annotated[
        float, option(ADDROP, "Share of each row's positions that are candidates, highest attribution first.")
    ] = Settings.p,
    q: Annotated[float, option(ADDROP, "Probability with which a candidate is dropped.")] = Settings.q,
    attribution: Annotated[
        str, option(ADDROP, "What ranks: gradient (GA), its integral (IGA), attention (AA), or nothing (RD).")
    ] = Settings.attribution,
    iga_steps: Annotated[
        int, option(ADDROP, "Steps of the integral of IGA; each costs a pass per layer.", min=1)
    ] = Settings.iga_steps,
    layers: Annotated[
        str, option(ADDROP, "Layers to drop in: all, first, or numbers from 0 such as 0,1,2.")
    ] = Settings.layers,
    target: Annotated[
        str, option(ADDROP, "What is attributed: the logit of the pseudo (predicted) or gold label.")
    ] = Settings.target,
    pass1: Annotated[
        str, option(ADDROP, "Attribution pass with ordinary dropout (train) or without (eval).")
    ] = Settings.pass1,
    cross_tuning: Annotated[
        bool, option(ADDROP, "Train plainly in odd epochs and with AD-DROP in even ones, or with AD-DROP in all.")
    ] = Settings.cross_tuning,
    seeds: Annotated[int, option(TRAINING, "Runs per arm, each with its own seed.", min=1)] = Settings.seeds,
    first_seed: Annotated[int, option(TRAINING, "The first seed; the others follow it.", min=0)] = Settings.first_seed,
    epochs: Annotated[int, option(TRAINING, "Most epochs a run takes.", min=1)] = Settings.epochs,
    batch_size: Annotated[int, option(TRAINING, "Examples per step.", min=1)] = Settings.batch_size,
    lr: Annotated[float, option(TRAINING, "Learning rate of AdamW.")] = Settings.lr,
    weight_decay: Annotated[float, option(TRAINING, "Weight decay of AdamW.", min=0)] = Settings.weight_decay,
    early_stopping_patience: Annotated[
        int, option(TRAINING, "Stop after so many epochs without a better development accuracy.", min=1)
    ] = Settings.early_stopping_patience,
    device: Annotated[str, option(TRAINING, "auto, cpu or cuda.")] = Settings.device,
    threads: Annotated[int | None, option(TRAINING, "CPU threads; PyTorch chooses without it.", min=1)] = None,
    output: Annotated[Path, option(OUTPUT, "Folder for results.json, runs.csv, curves.csv and curves.png.")] = Path(
        "runs/finetune"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in the output folder.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Fine-tune a pre-trained encoder twice, plainly and with AD-DROP, and compare.

    Both arms see the same data in the same order from the same initial
    weights, at each of several seeds. The table at the end shows accuracy,
    step time and memory. Ctrl-C keeps every finished run.
    """
    given = given_options(context)
    values = values_under(context, PRESETS[preset.value] if preset else {})
    with one_sentence():
        settings = Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})
        if train is None and (stray := given & {"dev", "test", "text_column", "text_pair_column", "label_column"}):
            raise InputError(f"--{min(stray).replace('_', '-')} goes with your own data: name the file with --train.")
        if train is not None and "task" in given:
            raise InputError("--task names a data set of its own: give either --task or --train.")
        _finetune(settings, values)


app.command("train-images")(train_images)
app.command("train-points")(train_points)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of an experiment.")] = Path("runs/finetune"),
) -> None:
    """Show the table of an earlier or interrupted 'finetune', 'train-images' or 'train-points'."""
    with one_sentence():
        from attrdrop.lab.images.report import ImageReport
        from attrdrop.lab.points.report import PointReport
        from attrdrop.lab.report import Report
        from attrdrop.lab.results import kind_of

        kinds: dict[str | None, Any] = {report.kind: report for report in (ImageReport, PointReport)}
        console.print(kinds.get(kind_of(folder), Report).load(folder).table())


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Show what is active on this machine and why something is not."""
    from attrdrop.doctor import facts

    found = facts()
    if json:
        print(dumps(found, indent=1))
    else:
        table = Table(box=None, padding=(0, 1), show_header=False)
        marks = {True: "[green]active[/]", False: "[yellow]absent[/]", None: ""}
        for name, fact in found.items():
            why = f" [dim]({escape(fact['why'])})[/]" if fact["why"] else ""
            table.add_row(marks[fact["active"]], name, escape(fact["value"]) + why)
        console.print(table)
    raise typer.Exit(OK if found["torch"]["active"] else FAILED)


@app.command()
def bench(
    ops: Annotated[
        list[str] | None, typer.Argument(help="Ops to measure, keep_mask for instance; all of them by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to append the timings to.")] = None,
    quick: Annotated[bool, typer.Option(help="Few sizes and repetitions.")] = False,
) -> None:
    """Measure the kernels against plain PyTorch (in a source checkout)."""
    with one_sentence():
        raise typer.Exit(_bench_module().bench(ops, output, quick))


@app.command()
def verify(op: Annotated[str, typer.Argument(help="The op, keep_mask for instance.")]) -> None:
    """Run one op's tests, then its timing (in a source checkout)."""
    with one_sentence():
        raise typer.Exit(_bench_module().verify(op))


def main() -> None:
    """Entry point of the `attrdrop` script."""
    app()


def _finetune(settings: Settings, values: dict[str, Any]) -> None:
    from attrdrop.lab import report

    with console.status("Reading the data and checking the model"):
        experiment = _prepare(settings, values)
    run_experiment(experiment, report.FILES)


def _prepare(settings: Settings, values: dict[str, Any]) -> "Experiment":
    from attrdrop.lab import tasks
    from attrdrop.lab.experiment import Experiment
    from attrdrop.lab.results import check_output

    check_output(values["output"], values["overwrite"])
    if values["train"] is None:
        task = tasks.load_task(values["task"])
    else:
        names = ("train", "dev", "test", "text_column", "text_pair_column", "label_column")
        task = tasks.from_files(**{name: values[name] for name in names})
    if values["threads"]:
        import torch

        torch.set_num_threads(values["threads"])
    task = task.limited(values["train_size"], values["dev_size"], values["test_size"])
    return Experiment(settings, task, values["output"], values["overwrite"])


def _bench_module() -> ModuleType:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "bench" / "run.py").is_file():
        raise InputError("bench and verify need a source checkout of attrdrop, installed with 'pip install -e .'.")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("bench.run")


if __name__ == "__main__":
    main()
