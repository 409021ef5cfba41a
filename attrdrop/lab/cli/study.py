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
            "Only draw the report again, from search.csv and runs.csv in the output folder.",
            names=("--draw",),
        ),
    ] = False


@command(output=Path("runs/study"))
def study(options: StudyOptions, run: RunOptions) -> None:
    """Compare arms as a sceptic would: equal budgets, fresh seeds, one test.

    PLAN defines settings: data, arms, what each arm may try, and seeds.
    Every arm, including plain training, tries the same number of points,
    and the development split chooses among them. The chosen points train
    anew with fresh seeds and are scored on the test split. The report has
    paired differences with intervals, a permutation test with Holm's
    correction, and the differences too small for so few seeds to detect.
    After a stop or a crash, the same command continues.
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
