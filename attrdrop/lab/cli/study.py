"""The command `attrdrop study`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import console, run_experiment
from attrdrop.lab.runs.settings import Option, Options, Panel, RunOptions


@dataclass(frozen=True)
class StudyOptions(Options):
    """Which study."""

    plan: Annotated[Path, Option(Panel.RESULTS, "TOML file, such as docs/evidence/plan.toml.", is_argument=True)]
    draw: Annotated[
        bool,
        Option(
            Panel.RESULTS,
            "Draw the report again from the tables search.csv and runs.csv in the output folder; nothing is trained.",
            names=("--draw",),
        ),
    ] = False


@command(output=Path("runs/study"))
def study(options: StudyOptions, run: RunOptions) -> None:
    """Compare arms as a sceptic would: equal budgets, fresh seeds, one test.

    PLAN names settings: data, arms, what each arm may try, and seeds.
    Every arm, plain training too, tries as many points, which the
    development split chooses among. What was chosen trains anew with
    fresh seeds and is scored on the test split. The report has paired
    differences with intervals, a permutation test with Holm's
    correction, and what so few seeds could not have shown. The same
    command goes on after a stop or a crash.
    """
    if options.draw:
        from attrdrop.lab.protocol.plan import load
        from attrdrop.lab.protocol.report import StudyReport

        report = StudyReport.from_tables(load(options.plan), run.output)
        report.save(run.output)
        console.print(report.table())
        return
    from attrdrop.lab.protocol.run import Study

    run_experiment(partial(Study, options.plan), run, goes_on=True)
