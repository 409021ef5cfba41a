"""Tables and figures of a sweep, from its files, finished or not."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from attrdrop.lab.errors import InputError, said
from attrdrop.lab.figures import sweeps as sweep_plots
from attrdrop.lab.names import ADDROP, PLAIN, Record
from attrdrop.lab.runs.layout import WideTable
from attrdrop.lab.runs.report import jobs_of, split_sizes
from attrdrop.lab.runs.results import readable, replace_file, spoilt_times, unwritable
from attrdrop.lab.runs.store import TrialStore, key_of
from attrdrop.lab.runs.times import UNSTEADY, is_steady
from attrdrop.lab.studies import tables
from attrdrop.lab.studies.frames import curves_frame, runs_frame
from attrdrop.lab.studies.plan import COSTS, MAPS, PROBE, Plan

if TYPE_CHECKING:
    from rich.console import Group

RUNS, CURVES, REPORT = "runs.csv", "curves.csv", "report.md"
SEEDS, ABLATION, SHOTS, RIVALS = "Repeated seeds (Table 3)", "Ablation (Table 2)", "Few shots (Table 5)", "Rivals"


class SweepReport:
    """The finished trials of each study."""

    kind: ClassVar = "sweep"

    def __init__(self, store: TrialStore) -> None:
        self.store, self.header = store, store.header
        self.files: list[str] = []  # written by `save`
        self.plans = list(map(_plan, self.header["plans"]))
        self.runs = store.results()

    @classmethod
    def load(cls, folder: Path) -> "SweepReport":
        """The sweep in a folder, finished or not."""
        with readable(folder, cls.kind):
            report = cls(TrialStore.load(folder))
            _ = report.tables, report.verdicts, report.title  # need all that this version writes
            return report

    @property
    def title(self) -> str:
        return Path(self.header["settings"]["model"]).name

    def of(self, study: str) -> list[Record]:
        """The finished trials of a study, over all plans that asked for it."""
        trials = [trial for plan in self.plans if study in plan.studies for trial in plan.trials(study)]
        wanted = {key_of(trial) for trial in trials}
        return [record for record in self.runs if key_of(record["trial"]) in wanted]

    @functools.cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables of formatted cells by title."""
        made = {
            SEEDS: ("seeds", tables.repeated_seeds),
            "Other data sets (Table 6)": ("seeds", tables.other_sets),
            ABLATION: ("ablation", tables.ablation),
            SHOTS: ("shots", tables.few_shot),
            RIVALS: ("rivals", tables.baselines),
        }
        tried = {title: self._made(study, make) for title, (study, make) in made.items()}
        found = {title: table for title, table in tried.items() if table is not None and len(table.columns)}
        if timed := self.of(COSTS):
            found["Costs (Table 7)"] = tables.costs(cost_frame(timed), runs_frame(self.of("ablation")))
        runs = runs_frame(self.of("grid") + self._searched())
        if len(probed := probe_frame(self.of(PROBE))):
            found["Masks without training"] = tables.probe(probed)
        grid = runs_frame(self.of("grid"))
        if len(grid) and set(grid["method"]) >= {PLAIN, ADDROP}:
            found["Every p and q (Figure 4)"] = tables.every_setting(grid)
        if len(runs) and len(runs.loc[runs["method"] == ADDROP, ["p", "q"]].drop_duplicates()) > 1:
            found["Best p and q by the development split"] = tables.best_setting(runs)
        return found

    @functools.cached_property
    def verdicts(self) -> dict[str, list[str]]:
        """What the tables show in words, by title."""
        ablated = {label: name for name, label in tables.ABLATED.items()}
        said = {"seeds": SEEDS, "ablation": ABLATION, "shots": SHOTS, "rivals": RIVALS}
        sizes = {name: task["sizes"] for name, task in self.header["tasks"].items()}
        found = {}
        for study, title in said.items():
            frame = runs_frame(self.of(study))
            if study == "shots" and len(frame):
                frame = frame[frame["shots"].notna()]
            if len(frame):
                found[title] = tables.verdicts(frame, sizes, ablated if study == "ablation" else None)
        return found

    def figures(self) -> dict[str, bytes]:
        """PNGs by file name."""
        drawn: dict[str, tuple[Callable[..., None], Any, str]] = {}
        for task, rows in _by_task(runs_frame(self.of("grid"))).items():
            if set(rows["method"]) >= {PLAIN, ADDROP}:
                head = self._head(task, rows[rows["method"] == ADDROP])  # plain may have been run at more seeds
                drawn[f"pq_heatmap_{_file_name(task)}.png"] = (sweep_plots.pq_heatmap, rows, head)
                drawn[f"cross_tuning_{_file_name(task)}.png"] = (sweep_plots.cross_tuning_distribution, rows, head)
        if len(sizes := runs_frame(self.of("size"))) and sizes["share"].notna().any():
            counted = [f"{task}: {self._sizes(task)}" for task in sizes["task"].unique()]
            drawn["size.png"] = (sweep_plots.size_curve, sizes, "\n".join([f"{self.title}, {_seeds(sizes)}", *counted]))
        for task, rows in _by_task(region_curves(self.of("regions"))).items():
            if rows["drop"].nunique() > 1:
                rate = ", ".join(f"{100 * p:g} %" for p in sorted(rows["p"].dropna().unique()))
                head = f"{self._head(task, rows)}\n{rate} of the first layer's positions dropped"
                drawn[f"regions_{_file_name(task)}.png"] = (sweep_plots.region_curves, rows, head)
        for record in self.of(MAPS):
            task, seed = record["trial"]["task"], record["trial"]["seed"]
            maps, layer = attention_maps(record["result"]), record["result"].get("layer", 0) + 1
            head = f"{self.title} on {task}, seed {seed}; layer {layer}, head 1\n{self._sizes(task)}"
            drawn[f"attention_{_file_name(task)}.png"] = (sweep_plots.attention_maps, maps, head)
        for task, rows in _by_task(probe_frame(self.of(PROBE))).items():
            head = f"{self.title}, fine-tuned on {task}, seed {rows['seed'].iloc[0]}\n{self._sizes(task)}"
            drawn[f"probe_{_file_name(task)}.png"] = (sweep_plots.probe_curves, rows, head)
        return {name: _drawn(*parts) for name, parts in drawn.items()}

    def _head(self, task: str, rows: pd.DataFrame) -> str:
        """The title of a figure of one task."""
        return f"{self.title} on {task}, {_seeds(rows)}\n{self._sizes(task)}"

    def _sizes(self, task: str) -> str:
        return f"{split_sizes(self.header['tasks'][task]['sizes'])} examples"

    def save(self) -> None:
        """Write everything into the folder of the sweep. Raises InputError where it cannot be written."""
        runs, curves = runs_frame(self.runs), curves_frame(self.runs)
        files = {RUNS: runs.to_csv(index=False).encode(), CURVES: curves.to_csv(index=False).encode()}
        figures = self.figures()
        files |= figures | {REPORT: self._markdown(list(figures)).encode()}
        try:
            for name, content in files.items():
                replace_file(self.store.folder / name, content)
        except OSError as error:
            raise unwritable(self.store.folder, error) from error
        self.files = list(files)

    def table(self) -> "Group":
        """The tables for a terminal."""
        from rich.console import Group
        from rich.text import Text

        shown: list[Any] = []
        for title, frame in self.tables.items():
            rows = [(str(label), list(map(str, cells))) for label, *cells in frame.itertuples()]
            table = WideTable(title, list(map(str, frame.columns)), rows)
            shown += [table, "", *map(Text, self.verdicts.get(title, [])), ""]
        return Group(*shown, Text(self._caption(), "dim"))

    @functools.cached_property
    def _planned(self) -> set[str]:
        return {key_of(trial) for plan in self.plans for trial in plan.trials()}

    def _searched(self) -> list[Record]:
        """The finished trials that no plan asked for: a search proposed them."""
        return [record for record in self.runs if key_of(record["trial"]) not in self._planned]

    def _made(self, study: str, make: Callable[[pd.DataFrame], pd.DataFrame | None]) -> pd.DataFrame | None:
        frame = runs_frame(self.of(study))
        return make(frame) if len(frame) else None

    def _caption(self) -> str:
        failed = len(self.store.failures())
        done = len(self.runs) - len(self._searched())
        return (
            f"{done} of {len(self._planned)} planned runs are done"
            + (f", {failed} failed" if failed else "")
            + ". Mean ± standard deviation over seeds; the development split chose the best epoch of each run."
            + (UNSTEADY if any(map(_is_unsteady, cost_frame(self.of(COSTS)).to_dict("records"))) else "")
            + spoilt_times(max((jobs_of(record) for record in self.of(COSTS)), default=1))
        )

    def _markdown(self, figures: list[str]) -> str:
        parts = [f"# Sweep of {self.title}", self._caption()]
        for title, frame in self.tables.items():
            parts += [f"## {title}\n\n{tables.markdown(frame)}", *self.verdicts.get(title, [])]
        parts += [f"## {name.removesuffix('.png')}\n\n![{name}]({name})" for name in figures]
        return "\n\n".join(parts) + "\n"


def _plan(fields: dict[str, Any]) -> Plan:
    try:
        return Plan.from_json(fields)
    except (InputError, TypeError, AttributeError) as error:
        raise ValueError(f"a plan in it cannot be read: {said(error)}") from None


def region_curves(records: list[Record]) -> pd.DataFrame:
    """Curves with the column `drop`: high, low, random or none (Fig. 2)."""
    curves = curves_frame(records)
    if curves.empty:
        return curves
    drop = curves["region"].where(curves["attribution"] != "RD", "random").where(curves["method"] == ADDROP, "none")
    return curves.assign(drop=drop)


def cost_frame(records: list[Record]) -> pd.DataFrame:
    """One row per task, attribution and scope: the time of a step over a plain one, median and quartiles."""
    return pd.DataFrame(
        [
            {"task": record["trial"]["task"], "jobs": jobs_of(record), **row}
            for record in records
            for row in record["result"]["rows"]
            if row["attribution"]  # the plain step itself has none
        ]
    )


def probe_frame(records: list[Record]) -> pd.DataFrame:
    """One row per task, layers, what is dropped and how much of it."""
    return pd.DataFrame(
        [
            {name: record["trial"][name] for name in ("task", "seed")}
            | {"metric": metric["name"], "percent": metric["percent"], **row}
            for record in records
            for metric in [record["result"]["metric"]]
            for row in record["result"]["rows"]
        ]
    )


def _is_unsteady(row: dict[str, Any]) -> bool:
    return not is_steady(row["low"], row["ratio"], row["high"])


def attention_maps(result: dict[str, Any]) -> list[sweep_plots.AttentionMap]:
    """What chance and what AD-DROP dropped in one map (Fig. 1)."""
    import numpy as np

    arrays = {name: np.asarray(value) for name, value in result.items() if isinstance(value, list)}
    common = (result["tokens"], arrays["attribution"])
    return [
        sweep_plots.AttentionMap("vanilla dropout", *common, None, arrays["dropped_by_chance"]),
        sweep_plots.AttentionMap("AD-DROP", *common, arrays["candidates"], arrays["dropped"]),
    ]


def _drawn(draw: Callable[..., None], data: Any, title: str) -> bytes:
    figure = io.BytesIO()
    draw(data, figure, title=title)
    return figure.getvalue()


def _by_task(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {} if frame.empty else {str(task): rows for task, rows in frame.groupby("task", sort=False)}


def _seeds(rows: pd.DataFrame) -> str:
    count = rows["seed"].nunique()
    return f"{count} seed{'s' if count != 1 else ''}"


def _file_name(task: str) -> str:
    return task.replace(":", "_").replace("/", "_")
