"""Tables of a sweep, from its frame of one row per trial: data frames of text, mean ± standard deviation over seeds.

Every score is of the test split where there is one, else of the dev split (`score_column`), and AD-DROP's is at the p,
q and layers that the dev split chose (`best_setting`). Columns are one per task and size of its training split; "-"
stands where nothing was run. All raise ValueError where a column is missing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from attrdrop.lab.figures.frames import (
    OTHER,
    SETTING,
    TRIALS,
    VARIANT,
    against_plain,
    at_best_setting,
    data_parts,
    difference_label,
    digits,
    labelled,
    metric_label,
    ordered,
    outcome,
    score_column,
    score_label,
    shown,
    variant_label,
)
from attrdrop.lab.names import ABLATIONS, ADDROP, PLAIN, TUNED, WORDS
from attrdrop.lab.runs.results import TIME_MARK, cell, paired, spread, widest
from attrdrop.lab.runs.times import is_steady
from attrdrop.lab.runs.verdict import verdict
from attrdrop.lab.text.kinds.sequence import Regression
from attrdrop.plots.panels import check_columns

__all__ = [
    "ablation", "baselines", "best_setting", "costs", "every_setting", "few_shot", "markdown", "other_sets", "probe",
    "repeated_seeds", "score_column", "verdicts",
]  # fmt: skip

COSTS = {name: ADDROP if name == "GA" else f"{ADDROP}, {name}" for name in ("RD", "AA", "GA", "IGA")}
Show = Callable[[float], str]
ABLATED = {name: PLAIN if changes is None else variant_label(changes) for name, changes in ABLATIONS.items()}
# Its pseudo labels are the gold ones.
REGRESSION = {metric.name for metric in Regression.metrics.values()}


def repeated_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks; beside each score its difference to plain, paired by seed, with Student's 95 % interval."""
    chosen, columns = _chosen(frame), {}
    for name, rows in data_parts(chosen):
        columns[f"{name}: {score_label(rows)}"] = _scores(rows)
        columns[f"{name}: {difference_label(rows)}, 95 % interval"] = _differences(rows, _with_interval)
    return _table(columns, _labels(chosen))


def baselines(frame: pd.DataFrame) -> pd.DataFrame:
    """The same as `repeated_seeds`, the best method first: by its mean rank over the tasks."""
    ranks = [
        (rows["better"].iloc[0] * _by_seed(rows, "score").mean()).rank(ascending=False)
        for _, rows in data_parts(_chosen(frame))
    ]
    table = repeated_seeds(frame)
    order = pd.DataFrame(ranks).mean().reindex(table.index).sort_values(kind="stable").index
    return table.loc[order]


def ablation(frame: pd.DataFrame) -> pd.DataFrame:
    """What AD-DROP scores with other attributions (r/w: replaced with), with gold labels and without cross-tuning."""
    columns = {}
    for name, rows in data_parts(_chosen(frame)):
        if rows["metric"].iloc[0] in REGRESSION:
            rows = rows[rows["label"] != ABLATED["r/w gold labels"]]
        columns[f"{name}: {score_label(rows)}"] = _scores(rows)
    return _table(columns, ABLATED)


def few_shot(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks and shots, of the trials that had a number of shots."""
    chosen = _chosen(frame)
    chosen = chosen[chosen["shots"].notna()]
    return _table({f"{name}: {score_label(rows)}": _scores(rows) for name, rows in data_parts(chosen)}, _labels(chosen))


def other_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods by out-of-distribution sets, each task's own score first; tasks without such sets are left out."""
    chosen, columns = _chosen(frame), {}
    for name, rows in data_parts(chosen):
        sets = [column for column in rows.columns if column.startswith(OTHER) and rows[column].notna().any()]
        if sets:
            columns[f"{name}: {score_label(rows)}"] = _scores(rows)
        for column in sets:
            head = f"{name} on {column.removeprefix(OTHER)}: {metric_label(rows)}"
            columns[head] = _scores(rows.assign(score=shown(rows, column)))
    return _table(columns, _labels(chosen))


def costs(timed: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Attributions by tasks and layers: the time of a training step over a plain one, and what the trials gained.

    timed has the columns task, attribution, layers, low, ratio and high, the quartiles of a ratio. frame has the
    trials, for the difference of their score to plain, where they dropped in these layers. Times are marked where the
    column jobs says that several runs were at work.
    """
    check_columns(timed, "task", "attribution", "layers", "low", "ratio", "high", argument="timed")
    columns = {}
    for (task, layers), times in timed.groupby(["task", "layers"], sort=False):
        head = f"{task}, {WORDS['layers'](layers)}"
        for name, gains in _gains(frame, str(task), str(layers)).items():
            columns[f"{head}: {name}"] = gains
        columns[f"{head}: step time / plain"] = {
            COSTS[row.attribution]: _time_ratio(row.low, row.ratio, row.high) + (TIME_MARK if spoilt else "")
            for row, spoilt in zip(times.itertuples(), _is_spoilt(times), strict=True)
        }
    return _table(columns, COSTS)


def _time_ratio(low: float, ratio: float, high: float) -> str:
    if not is_steady(low, ratio, high):
        return "-"
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def _is_spoilt(timed: pd.DataFrame) -> list[bool]:
    """Whether other runs were at work beside each."""
    return list(timed["jobs"] > 1) if "jobs" in timed else [False] * len(timed)


def _gains(frame: pd.DataFrame, task: str, layers: str) -> dict[str, dict[str, str]]:
    """By the name of the difference; empty where no such trials are."""
    if frame.empty:
        return {}
    rows = frame[(frame["task"] == task) & ((frame["method"] == PLAIN) | (frame["layers"] == layers))]
    if not (rows["method"] == ADDROP).any():
        return {}
    return {difference_label(part): _differences(part, cell) for _, part in data_parts(_chosen(rows))}


def best_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """What the dev split chose for each variant of AD-DROP, by the mean over seeds, and how that choice scored; other
    methods too where their learning rate or batch size was varied.

    The test score is that of this choice, not the best one on the test split. Only settings that were tried with the
    most seeds compete.
    """
    found = {}
    is_tuned = bool(frame[TUNED].notna().any(axis=None))
    for name, rows in data_parts(_chosen(frame)):
        for label, tried in rows.groupby("label", sort=False):
            setting = tried[[*SETTING, *TUNED]].iloc[0]
            if tried["method"].iloc[0] != ADDROP and setting[TUNED].isna().all():
                continue  # nothing was chosen
            splits = {
                split: _scores(tried.assign(score=shown(tried, f"{split}_score")))[str(label)]
                for split in ("dev", "test")
            }
            chosen = {key: "-" if pd.isna(value) else _setting(value) for key, value in setting.items()}
            found[f"{name}: {label}"] = {**chosen, "metric": metric_label(rows), **splits}
    columns = [*SETTING, *(TUNED if is_tuned else []), "metric", "dev", "test"]
    return pd.DataFrame(list(found.values()), index=list(found), columns=columns, dtype=object)


def every_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """How AD-DROP did over all p and q that were tried, with and without cross-tuning, chosen or not (Fig. 4).

    The gain is the median over pairs of the difference to plain at the same seed; the deviation is that of the scores
    over pairs.
    """
    check_columns(frame, *TRIALS)
    found = {}
    compared = [] if frame.empty else against_plain(frame, [name for name in VARIANT if name != "cross_tuning"])
    for name, addrop, _ in compared:
        for crossed, rows in addrop.groupby("cross_tuning", sort=False):
            one = outcome(rows)
            scores = (one.deviation, one.lowest, one.highest)
            shown = [f"{value:.{one.digits}f}" for value in scores]
            cells = [metric_label(rows), one.gain, f"{one.better} of {one.settings}", *shown]
            found[f"{name}, {WORDS['cross_tuning'](crossed)}"] = cells
    columns = ["metric", "median gain", "better than plain", "deviation", "lowest", "highest"]
    return pd.DataFrame(list(found.values()), index=list(found), columns=columns, dtype=object)


def probe(rows: pd.DataFrame) -> pd.DataFrame:
    """Development score of a plainly fine-tuned model by what masks drop of it, from rows of the probe."""
    check_columns(rows, "task", "layers", "drop", "rate", "score", "metric", "percent", argument="rows")
    found: dict[str, dict[str, str]] = {}
    for row in rows.sort_values("rate", kind="stable").to_dict("records"):
        scale, count = (100, 1) if row["percent"] else (1, 2)
        head = f"{row['task']}, {WORDS['layers'](row['layers'])}: {row['drop']}"
        shown = f"{scale * row['score']:.{count}f}"
        found.setdefault(head, {"metric": row["metric"]})[f"{100 * row['rate']:g} %"] = shown
    return pd.DataFrame(list(found.values()), index=list(found), dtype=object).fillna("-")


def verdicts(
    frame: pd.DataFrame, sizes: Mapping[str, Mapping[str, int]], names: Mapping[str, str] | None = None
) -> list[str]:
    """A sentence for each task: which methods are better or worse than plain, and what so few seeds cannot show.

    sizes: how many examples each split of a task has. names: of methods, where the table does not call them by their
    labels.
    """
    found, names = [], names or {}
    for name, rows in data_parts(_chosen(frame)):
        split = rows["split"].iloc[0]
        examples = f"{sizes[rows['task'].iloc[0]][split]} {split} examples"
        measures = {names.get(label, label): measure for label, measure in _paired(rows).items()}
        metric, better, percent = rows[["metric", "better", "percent"]].iloc[0]
        words = verdict(measures, _signed(rows), metric, examples, better, "points" if percent else "")
        found.append(f"{name}: {words}")
    return found


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table."""
    rows = [["", *frame.columns], ["---", *["---:"] * frame.shape[1]], *frame.itertuples(name=None)]
    lines = [" | ".join(str(text).replace("|", r"\|") for text in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _chosen(frame: pd.DataFrame) -> pd.DataFrame:
    check_columns(frame, *TRIALS)
    return labelled(at_best_setting(frame))


def _labels(chosen: pd.DataFrame) -> dict[str, str]:
    return {label: label for label in ordered(chosen["label"])}


def _by_seed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Seeds by labels; a trial that was run twice counts once."""
    return rows.groupby(["seed", "label"])[column].mean().unstack()


def _cells(by_seed: pd.DataFrame, show: Show) -> dict[str, str]:
    return {label: cell(spread(by_seed[label].dropna()), show) for label in by_seed}


def _scores(rows: pd.DataFrame) -> dict[str, str]:
    return _cells(_by_seed(rows, "score"), f"{{:.{digits(rows)}f}}".format)


def _differences(rows: pd.DataFrame, text: Callable[[dict[str, Any], Show], str]) -> dict[str, str]:
    """By label, paired by seed to plain; none where plain was not run."""
    return {label: text(measure, _signed(rows)) for label, measure in _paired(rows).items()}


def _paired(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What `paired` says of each label."""
    scores = _by_seed(rows, "score")
    limit = widest(rows["metric"].iloc[0], rows["percent"].iloc[0]) * (100 if rows["percent"].iloc[0] else 1)
    others = [label for label in scores if label != PLAIN and PLAIN in scores]
    return {label: paired((scores[label] - scores[PLAIN]).dropna(), limit) for label in others}


def _signed(rows: pd.DataFrame) -> Show:
    return f"{{:+.{digits(rows)}f}}".format


def _with_interval(measure: dict[str, Any], show: Show) -> str:
    if measure["interval_95"] is None:
        return cell(measure, show)
    low, high = map(show, measure["interval_95"])
    return f"{show(measure['mean'])} ({low} to {high})"


def _table(columns: dict[str, dict[str, str]], rows: dict[str, str]) -> pd.DataFrame:
    """columns: cells by label. rows: their names, and the labels they show."""
    cells = {name: [found.get(label, "-") for label in rows.values()] for name, found in columns.items()}
    return pd.DataFrame(cells, index=list(rows), dtype=object)
