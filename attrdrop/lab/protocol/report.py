"""Tables and the figure of a study, from its runs on disk or from tables saved earlier."""

import functools
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from attrdrop.lab.errors import InputError, said
from attrdrop.lab.figures import intervals
from attrdrop.lab.names import Record
from attrdrop.lab.protocol.comparison import LEVEL, compare, holm
from attrdrop.lab.protocol.plan import LOWER, Point, Setting
from attrdrop.lab.runs.layout import WideTable
from attrdrop.lab.runs.results import cell, replace_files, spread
from attrdrop.lab.studies.tables import markdown

if TYPE_CHECKING:
    from rich.console import Group

SEARCHED, RUNS, COMPARISONS, REPORT, FIGURE = "search.csv", "runs.csv", "comparisons.csv", "report.md", "study.png"
KEYS = ["setting", "arm", "point", "seed"]
SHARES = {  # measures that are shown in percent
    "test_score", "dev_score", "test_accuracy", "accuracy", "calibration_error", "deletion_score", "class_accuracy",
    "rank_accuracy", "flipping_descending", "flipping_random", "flipping_ascending", "point_loss_auc",
}  # fmt: skip
HIDDEN = {"peak_memory_bytes", "seconds", "cache_bytes", "best_epoch"}  # they do not measure the model
UNCOMPARED = {  # what a run did, and the measures that chose its settings
    "dev_score", "dev_accuracy", "fraction_dropped", "fraction_dead", "erased", "dropped", "attributed", "reused",
    "agreement",
}  # fmt: skip
COLUMNS = {  # of a comparison, with their headings
    "difference": "difference", "student": "Student, 95 %", "bootstrap": "bootstrap, 95 %", "p": "p", "holm": "p, Holm",
    "detectable": "detectable",
}  # fmt: skip


def rows_of(records: Iterable[Record], phase: str) -> pd.DataFrame:
    """One row for each finished trial of a phase, with its measures."""
    rows = [
        {
            "setting": trial["task"],
            "arm": trial["arm"],
            "point": json.dumps(trial["point"], sort_keys=True),
            "seed": trial["seed"],
        }
        | {name: value for name, value in record["result"].items() if name not in HIDDEN}
        for record in records
        for trial in [record["trial"]]
        if trial["phase"] == phase
    ]
    frame = pd.DataFrame(rows, columns=None if rows else KEYS)
    return frame.sort_values(KEYS, kind="stable", ignore_index=True)


def chosen(setting: Setting, search: pd.DataFrame) -> dict[str, Point]:
    """Each arm's point with the best development mean, among those with all seeds, and its twins' points."""
    found: dict[str, Point] = {}
    for arm, rows in search[search["setting"] == setting.name].groupby("arm", sort=False):
        values = rows[rows["seed"].isin(setting.search_seeds)].groupby("point")[setting.chosen_by]
        means = values.mean()[values.count() == len(setting.search_seeds)]
        if arm in setting.arms and len(means):
            found[str(arm)] = json.loads(means.idxmin() if setting.chosen_by in LOWER else means.idxmax())
    twins = {
        name: twin.point(found[twin.of], setting.options) for name, twin in setting.twins.items() if twin.of in found
    }
    return found | twins


class StudyReport:
    """A study as far as it has run; `search` and `fresh` have a row for each run."""

    kind: ClassVar = "study"

    def __init__(self, settings: Sequence[Setting], search: pd.DataFrame, fresh: pd.DataFrame) -> None:
        self.settings, self.search, self.fresh = settings, search, fresh
        self.files: list[str] = []  # written by `save`

    @classmethod
    def from_tables(cls, settings: Sequence[Setting], folder: Path) -> "StudyReport":
        """From the tables in a folder. Raises InputError if they are missing."""
        try:
            return cls(settings, *(pd.read_csv(folder / name) for name in (SEARCHED, RUNS)))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no tables of a study: {said(error)}.") from None

    @property
    def runs(self) -> int:
        """How many runs are finished."""
        return len(self.search) + len(self.fresh)

    def save(self, folder: Path) -> None:
        """Write all tables and the figure. Raises InputError if they cannot be written."""
        files = {SEARCHED: self._searched().to_csv(index=False), RUNS: self.fresh.to_csv(index=False)}
        compared = self.comparisons
        files |= {COMPARISONS: _flat(compared).to_csv(index=False, float_format="%.6g"), REPORT: self.markdown()}
        content = {name: text.encode() for name, text in files.items()}
        decided = compared[compared["primary"] & compared["p"].notna()] if len(compared) else compared
        if len(decided):
            figure = io.BytesIO()
            intervals.forest(decided, figure)
            content[FIGURE] = figure.getvalue()
        replace_files(folder, content)
        self.files = list(content)

    @functools.cached_property
    def comparisons(self) -> pd.DataFrame:
        """One row for each pair of arms and measure that the plan compares; Holm's correction covers the primary
        measures of all settings."""
        rows = [
            {"setting": setting.name, "first": first, "second": second, "measure": measure}
            | {"primary": measure == setting.primary, "lower": measure in LOWER}
            | compare(*self._pairs(setting, first, second, measure))
            for setting in self.settings
            for first, second in setting.compare
            for measure in self._measures(setting)
            if measure not in UNCOMPARED
        ]
        frame = pd.DataFrame(rows)
        if len(frame):
            decided = frame["primary"] & frame["p"].notna()
            frame.loc[decided, "holm"] = holm(frame.loc[decided, "p"].to_list())
        return frame

    def verdict(self, row: Any) -> str:
        """The result of a primary comparison in words."""
        if row["holm"] < LEVEL:
            is_better = (row["difference"] < 0) == row["lower"]
            return f"{row['first']} is {'better' if is_better else 'worse'} than {row['second']}"
        shown = shown_as(row["measure"])
        return (
            f"no difference between {row['first']} and {row['second']} shown; {row['n']} seeds would detect one of "
            f"{shown(row['detectable'])} in 4 of 5 cases"
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables of formatted cells by title."""
        found: dict[str, pd.DataFrame] = {}
        compared = self.comparisons
        for setting in self.settings:
            runs = self.fresh[self.fresh["setting"] == setting.name]
            if runs.empty:
                continue
            arms = [arm for arm in setting.all_arms if arm in set(runs["arm"])]
            measures = self._measures(setting)
            cells = [[_spread(runs, arm, measure) for arm in arms] for measure in measures]
            labels = [_label(measure, setting) for measure in measures]
            found[f"{setting.name}: mean ± standard deviation"] = pd.DataFrame(cells, labels, arms)
            rows = compared[(compared["setting"] == setting.name) & compared["p"].notna()]
            primary = setting.primary.replace("_", " ")
            for is_primary, title in ((True, f"difference in {primary}"), (False, "other differences")):
                part = rows[rows["primary"] == is_primary]
                if len(part):
                    found[f"{setting.name}: {title}"] = _compared(part, is_primary)
        return found

    def verdicts(self) -> list[str]:
        """A sentence for each primary comparison."""
        compared = self.comparisons
        if compared.empty:
            return []
        decided = compared[compared["primary"] & compared["p"].notna()].to_dict("records")
        return [f"{row['setting']}, {row['measure'].replace('_', ' ')}: {self.verdict(row)}." for row in decided]

    def choices(self) -> pd.DataFrame:
        """What was chosen for each arm, and from how many points."""
        found = {}
        for setting in self.settings:
            tried = self.search[self.search["setting"] == setting.name].groupby("arm")["point"].nunique()
            for arm, point in chosen(setting, self.search).items():
                count = f"as {setting.twins[arm].of}" if arm in setting.twins else str(tried[arm])
                words = ", ".join(f"{name} {value}" for name, value in point.items())
                found[f"{setting.name}: {arm}"] = [count, words]
        return pd.DataFrame(list(found.values()), list(found), ["settings tried", "chosen"])

    def markdown(self) -> str:
        """The report as a page."""
        parts = ["# Study", self.state(), *(f"* {verdict}" for verdict in self.verdicts())]
        parts.append(f"## Settings chosen on the development split\n\n{markdown(self.choices())}")
        parts += [f"## {title}\n\n{markdown(frame)}" for title, frame in self.tables().items()]
        parts.append(f"![Primary differences with their intervals]({FIGURE})")
        return "\n\n".join(parts) + "\n"

    def state(self) -> str:
        """How much is done, and how to read the tables."""
        wanted = sum(len(setting.all_arms) * len(setting.seeds) for setting in self.settings)
        return (
            f"{len(self.search)} search runs and {len(self.fresh)} of {wanted} runs with fresh seeds are finished. "
            "Differences are paired by seed. p is from a two-sided permutation test; Holm's correction covers the "
            "primary measures of all settings, and other measures are not corrected. Detectable is the difference that "
            "this many seeds would detect in 4 of 5 cases."
        )

    def table(self) -> "Group":
        """The tables for a terminal."""
        from rich.console import Group
        from rich.text import Text

        shown: list[Any] = []
        for title, frame in self.tables().items():
            rows = [(str(label), list(map(str, cells))) for label, *cells in frame.itertuples()]
            shown += [WideTable(title, list(map(str, frame.columns)), rows), ""]
        return Group(*shown, *map(Text, self.verdicts()), Text(self.state(), "dim"))

    def _measures(self, setting: Setting) -> list[str]:
        """Measures that have values, the primary one first."""
        rows = self.fresh[self.fresh["setting"] == setting.name]
        names = [name for name in rows.columns if name not in KEYS and rows[name].notna().any()]
        return sorted(names, key=lambda name: name != setting.primary)

    def _pairs(self, setting: Setting, first: str, second: str, measure: str) -> tuple[list[float], list[float]]:
        """Both arms' values at the seeds that they share."""
        rows = self.fresh[(self.fresh["setting"] == setting.name) & self.fresh["arm"].isin([first, second])]
        by_seed = (
            rows.pivot_table(index="seed", columns="arm", values=measure).reindex(columns=[first, second]).dropna()
        )
        return by_seed[first].to_list(), by_seed[second].to_list()

    def _searched(self) -> pd.DataFrame:
        """The search, with the measures that decided it."""
        names = dict.fromkeys(setting.chosen_by for setting in self.settings)
        return self.search[[*KEYS, *(name for name in names if name in self.search)]]


def shown_as(measure: str) -> Any:
    """Formats a value of a measure."""
    return (lambda value: f"{100 * value:.1f}") if measure in SHARES else (lambda value: f"{value:.3f}")


def _label(measure: str, setting: Setting) -> str:
    words = measure.replace("_", " ") + (", %" if measure in SHARES else "")
    return f"{words} (primary)" if measure == setting.primary else words


def _spread(runs: pd.DataFrame, arm: str, measure: str) -> str:
    return cell(spread(runs.loc[runs["arm"] == arm, measure].dropna()), shown_as(measure))


def _compared(rows: pd.DataFrame, is_primary: bool) -> pd.DataFrame:
    """Formatted comparisons."""
    table, labels = [], []
    for row in rows.to_dict("records"):
        show = shown_as(row["measure"])
        signed = lambda value, show=show: ("+" if value >= 0 else "") + show(value)  # noqa: E731
        ranges = [f"{signed(low)} to {signed(high)}" for low, high in (row["student"], row["bootstrap"])]
        odds = [f"{row[name]:.2g}" for name in (("p", "holm") if is_primary else ("p",))]
        table.append([signed(row["difference"]), *ranges, *odds, show(row["detectable"])])
        what = "" if is_primary else f"{row['measure'].replace('_', ' ')}: "
        labels.append(f"{what}{row['first']} - {row['second']}{', points' if row['measure'] in SHARES else ''}")
    names = [label for name, label in COLUMNS.items() if is_primary or name != "holm"]
    return pd.DataFrame(table, labels, names)


def _flat(compared: pd.DataFrame) -> pd.DataFrame:
    """With the ends of each interval in separate columns."""
    for name in ("student", "bootstrap"):
        if name in compared:
            ends = pd.DataFrame([pair or (None, None) for pair in compared[name]], compared.index)
            compared = compared.assign(**{f"{name}_low": ends[0], f"{name}_high": ends[1]}).drop(columns=name)
    return compared
