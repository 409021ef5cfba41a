"""The command `attrdrop`. Heavy imports wait inside the commands, so that help is instant."""

import importlib
import sys
from collections.abc import Callable
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

try:
    import typer
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:
    sys.exit(f"The attrdrop command needs {error.name}: pip install 'attrdrop[lab]' (ops and ADDrop work without it).")

from attrdrop import __version__
from attrdrop.lab.cli.evaluate import evaluate
from attrdrop.lab.cli.evaluate_images import evaluate_images
from attrdrop.lab.cli.evaluate_points import evaluate_points
from attrdrop.lab.cli.explain import explain
from attrdrop.lab.cli.finetune import finetune
from attrdrop.lab.cli.images import train_images
from attrdrop.lab.cli.maps import maps, maps_points
from attrdrop.lab.cli.points import train_points
from attrdrop.lab.cli.study import study
from attrdrop.lab.cli.sweep import sweep
from attrdrop.lab.cli.terminal import FAILED, OK, PLAIN_LETTERS, console, errors, one_sentence
from attrdrop.lab.errors import InputError

app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"attrdrop {__version__}")
        raise typer.Exit(OK)


FIRST_STEPS = """Five things to do first:

  attrdrop doctor                        what is active here, and what is not
  attrdrop finetune --preset demo        text: plain training against AD-DROP
  attrdrop train-images --preset demo    images: plain training against RelDrop
  attrdrop finetune --train FILE.csv     the comparison on your own texts
  attrdrop explain --help                what a prediction relies on

All commands: attrdrop --help. Options of one: attrdrop COMMAND --help."""


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Attribution-driven dropout (AD-DROP, RelDrop): try it, check the installation, measure the kernels."""
    if context.invoked_subcommand is None:
        console.print(FIRST_STEPS, highlight=False, soft_wrap=True)


def _examples(*commands: str) -> str:
    """The text below a command's options; each paragraph becomes a line."""
    return "\n\n".join(("Examples:" if len(commands) > 1 else "Example:", *commands))


COMMANDS: dict[Callable[..., None], str] = {
    finetune: _examples(
        "attrdrop finetune --preset demo",
        "attrdrop finetune --train train.csv --dev dev.csv --output runs/mine",
        "attrdrop finetune --task rte --arms plain,ad-drop,r-drop --seeds 5",
    ),
    evaluate: _examples(
        "attrdrop evaluate runs/finetune/models/ad-drop --on tweets,reviews.csv",
    ),
    sweep: _examples(
        "attrdrop sweep --preset demo",
        "attrdrop sweep --studies seeds,ablation --tasks squad-questions --jobs 2",
        "attrdrop sweep --search 40 --seeds 3 --output runs/search",
    ),
    study: _examples(
        "attrdrop study plan.toml --output runs/study",
        "attrdrop study plan.toml --output runs/study --draw",
    ),
    train_images: _examples(
        "attrdrop train-images --preset demo",
        "attrdrop train-images --dataset folder --data images --model resnet50",
        'attrdrop train-images --vary "alpha=0,0.5; max_area=0.2,0.4" --seeds 3',
    ),
    train_points: _examples(
        "attrdrop train-points --preset demo --save",
        "attrdrop train-points --dataset npz --data mine.npz --beta 0.3",
    ),
    explain: _examples(
        'attrdrop explain --model runs/finetune/models/ad-drop --text "a fine film"',
        "attrdrop explain --model timm:resnet26 --weights pretrained --image cat.jpg",
    ),
    maps: _examples(
        "attrdrop maps --dataset planted --train --epochs 5",
        "attrdrop maps --rules epsilon,epsilon-plus --epsilons 0.001,0.01",
    ),
    maps_points: _examples("attrdrop maps-points --preset demo --train"),
    evaluate_images: _examples(
        "attrdrop evaluate-images --weights runs/images/models/reldrop",
    ),
    evaluate_points: _examples(
        "attrdrop evaluate-points runs/points/models/reldrop",
    ),
}
for _body, _epilog in COMMANDS.items():
    app.command(_body.__name__.replace("_", "-"), epilog=_epilog)(_body)


@app.command(epilog=_examples("attrdrop report runs/finetune"))
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of an experiment.")] = Path("runs/finetune"),
) -> None:
    """Show the tables of a finished, interrupted or running 'finetune', 'sweep', 'train-images' or 'train-points'.

    For a sweep, tables and figures are drawn again.
    """
    with one_sentence():
        from attrdrop.lab.images.report import ImageReport
        from attrdrop.lab.points.report import PointReport
        from attrdrop.lab.runs.results import kind_of
        from attrdrop.lab.studies.report import SweepReport
        from attrdrop.lab.text.report import TextReport

        reports: list[Any] = [TextReport, ImageReport, PointReport, SweepReport]
        found = {report.kind: report for report in reports}.get(kind_of(folder), TextReport).load(folder)
        if isinstance(found, SweepReport):
            try:
                found.save()
            except InputError as error:  # the tables can be read all the same
                errors.print(f"[yellow]Not drawn anew:[/] {escape(str(error))}", soft_wrap=True)
        elif found.unfinished:
            console.print(found.unfinished)
        console.print(found.table())


@app.command(epilog=_examples("attrdrop doctor", "attrdrop doctor --json"))
def doctor(json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Show what is active on this machine, and why the rest is not."""
    from attrdrop.doctor import facts, next_step

    found = facts()
    if json:
        print(dumps(found, indent=1))
    else:
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column()
        table.add_column()
        table.add_column(overflow="fold")
        marks = {True: "[green]active[/]", False: "[yellow]absent[/]", None: ""}
        rows = []
        for name, fact in found.items():
            why = f" [dim]({escape(fact['why'])})[/]" if fact["why"] else ""
            rows.append((marks[fact["active"]], name, escape(fact["value"]) + why))
        for row in rows:
            table.add_row(*row)
        if console.is_terminal:
            console.print(table)
        else:  # one line a fact, whatever it is read by
            for mark, name, value in rows:
                console.print(f"{mark or ' ' * 6} {name:{max(map(len, found))}} {value}", soft_wrap=True)
        console.print(f"Next: {next_step(found)}", highlight=False, soft_wrap=True)
    raise typer.Exit(OK if found["torch"]["active"] else FAILED)


@app.command(epilog=_examples("attrdrop bench keep_mask --quick", "attrdrop bench --output bench/results"))
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="Ops to measure, such as keep_mask; by default all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="CSV file to append the timings to, or a folder for it; by default they are only shown."),
    ] = None,
    quick: Annotated[bool, typer.Option(help="Few sizes and repetitions.")] = False,
) -> None:
    """Measure the kernels against plain PyTorch (in a source checkout)."""
    with one_sentence():
        raise typer.Exit(_bench_module().bench(ops, output, quick))


@app.command(epilog=_examples("attrdrop verify keep_mask"))
def verify(op: Annotated[str, typer.Argument(help="The op, such as keep_mask.")]) -> None:
    """Run an op's tests, then its benchmark (in a source checkout)."""
    with one_sentence():
        raise typer.Exit(_bench_module().verify(op))


def main() -> None:
    """Everything except the import of PyTorch, which takes seconds."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=PLAIN_LETTERS)
    app()


def _bench_module() -> ModuleType:
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / "bench" / "run.py").is_file():
        raise InputError("bench and verify need a source checkout of attrdrop, installed with 'pip install -e .'.")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("bench.run")


if __name__ == "__main__":
    main()
