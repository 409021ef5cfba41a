"""Data frames of sweeps, one row per trial: columns, the score that counts, and choices made on the dev split."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from attrdrop.lab.names import ADDROP, PLAIN, TUNED, USUAL, WORDS
from attrdrop.ops.keep_mask import REGIONS
from attrdrop.plots.panels import check_columns

OTHER = "other:"  # begins the columns of out-of-distribution scores
SETTING = ["p", "q", "layers"]  # of AD-DROP; these are chosen, and the variants compared
VARIANT = ["attribution", "target", "region", "cross_tuning"]
DATA = ["shots", "share", "train_size"]
TRIALS = [
    "task", "metric", "better", "percent", "method", "seed", *SETTING, *TUNED, *VARIANT, *DATA, "dev_score",
    "test_score",
]  # fmt: skip

DROPS = (*REGIONS, "random", "none")  # the curves of Fig. 2


def score_column(frame: pd.DataFrame) -> str:
    """test_score if every trial with a dev score has one, else dev_score; call it on trials that are compared."""
    finite = frame.loc[frame["dev_score"].notna(), "test_score"]
    return "test_score" if finite.notna().all() else "dev_score"


def scored(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared on one task, with their `score` as it is shown and the `split` it is of."""
    column = score_column(frame)
    return frame.assign(score=shown(frame, column), split=column.removesuffix("_score"))


def shown(frame: pd.DataFrame, column: str) -> pd.Series:
    """The scores in a column, in percent if their metric is a share."""
    return frame[column].astype(float) * frame["percent"].map({True: 100.0, False: 1.0})


def metric_label(frame: pd.DataFrame) -> str:
    """Such as "accuracy (%)"."""
    return frame["metric"].iloc[0] + (" (%)" if frame["percent"].iloc[0] else "")


def score_label(frame: pd.DataFrame) -> str:
    """Such as "test accuracy (%)", of scored rows."""
    return f"{frame['split'].iloc[0]} {metric_label(frame)}"


def difference_label(frame: pd.DataFrame) -> str:
    """Such as "test accuracy - plain (points)", of scored rows."""
    unit = " (points)" if frame["percent"].iloc[0] else ""
    return f"{frame['split'].iloc[0]} {frame['metric'].iloc[0]} - plain{unit}"


def digits(frame: pd.DataFrame) -> int:
    """How many digits are shown after the point."""
    return 1 if frame["percent"].iloc[0] else 2


def data_parts(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows trained on the same examples, scored, and named by their task and how many examples were left."""
    for task, rows in frame.reset_index(drop=True).groupby("task", sort=False):
        keys = rows[DATA].astype(float)
        keys["share"] = keys["share"].where(keys["share"] < 1)
        whole = keys["train_size"] == keys["train_size"].max()
        keys["train_size"] = keys["train_size"].mask(whole | keys[["shots", "share"]].notna().any(axis=1))
        for key, found in keys.groupby(DATA, dropna=False):
            name = ", ".join([str(task), *_unusual(dict(zip(DATA, key, strict=True)), DATA)])
            yield name, scored(rows.loc[found.index])


def variants(frame: pd.DataFrame, columns: Sequence[str] = VARIANT) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each variant of AD-DROP, named by how it differs from the default."""
    for _, rows in frame[frame["method"] == ADDROP].groupby(list(columns), sort=False, dropna=False):
        yield ", ".join(_unusual(rows.iloc[0], columns)), rows


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `label`: the method, and how a variant of AD-DROP differs from the default."""
    labels = [variant_label(row) if row["method"] == ADDROP else row["method"] for row in frame.to_dict("records")]
    return frame.assign(label=pd.Series(labels, index=frame.index, dtype=object))


def variant_label(row: Mapping[str, Any]) -> str:
    """AD-DROP, and how a variant differs from the default."""
    return ", ".join([ADDROP, *_unusual(row, [name for name in VARIANT if name in row])])


def ordered(labels: Iterable[str]) -> list[str]:
    """Each label once: plain, AD-DROP, its variants, the rest."""
    return sorted(
        dict.fromkeys(labels), key=lambda label: (label != PLAIN, label != ADDROP, not label.startswith(f"{ADDROP},"))
    )


def at_best_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of AD-DROP at the p, q and layers of the best mean dev score, those of each method at its best learning
    rate and batch size where these were varied, and all rows of other methods.

    Every task, size of its training split and variant has a choice of its own, the first of equals. Only settings that
    were tried with the most seeds compete: the best of many single runs is a lucky one.
    """
    frame = frame.reset_index(drop=True)
    kept = frame["method"] != ADDROP
    for _, part in data_parts(frame):
        choices = [(rows, [*SETTING, *TUNED]) for _, rows in variants(part)]
        choices += [(rows, TUNED) for method, rows in part.groupby("method", sort=False) if method != ADDROP]
        for rows, names in choices:
            keys = rows[names].fillna(dict.fromkeys(TUNED, -1))
            scores = (rows["better"] * rows["dev_score"]).groupby([keys[name] for name in names])
            if len(means := scores.mean()[scores.count() == scores.count().max()].dropna()):
                kept[rows.index] = (keys == list(means.idxmax())).all(axis=1)
    return frame[kept]


class Outcome(NamedTuple):
    """How AD-DROP did over all settings that were tried: of each, the mean over seeds.

    settings: how many. better: how many scored better than plain. median: of the differences to plain. deviation,
    lowest, highest: of the scores.
    """

    settings: int
    better: int
    median: float
    deviation: float
    lowest: float
    highest: float
    digits: int

    @property
    def gain(self) -> str:
        """The median, formatted."""
        return f"{self.median:+.{self.digits}f}"

    @property
    def counted(self) -> str:
        """Such as "median -1.4, 4 of 25 above plain"."""
        return f"median {self.gain} to plain\n{self.better} of {self.settings} better"


def outcome(addrop: pd.DataFrame) -> Outcome:
    """From rows with a gain, as :func:`against_plain` returns them."""
    by_setting = addrop.groupby(SETTING)[["gain", "score"]].mean()
    gains, scores = by_setting["gain"], by_setting["score"]
    better = int((addrop["better"].iloc[0] * gains > 0).sum())
    return Outcome(len(gains), better, gains.median(), scores.std(ddof=0), scores.min(), scores.max(), digits(addrop))


def against_plain(frame: pd.DataFrame, columns: list[str]) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(name, rows of AD-DROP, rows of plain) of each variant at the seeds of both, with their `score` as it is shown.

    `gain` of AD-DROP is its difference to plain at the same seed: over few seeds, luck would be most of another one.
    """
    check_columns(frame, *TRIALS)
    frame = frame.round({"p": 6, "q": 6})  # 0.1 + 0.2 is 0.3
    found = []
    for data, rows in data_parts(frame):
        rows = rows.dropna(subset="score")
        plain = rows[rows["method"] == PLAIN]
        by_seed = plain.groupby("seed")["score"].mean()
        for name, addrop in variants(rows, columns):
            addrop = addrop.assign(gain=addrop["score"] - addrop["seed"].map(by_seed)).dropna(subset="gain")
            if len(addrop):
                found.append((", ".join(filter(None, (data, name))), addrop, plain[plain["seed"].isin(addrop["seed"])]))
    if not found:
        raise ValueError(
            "frame must have scores of the methods 'plain' and 'ad-drop' on the same examples and seeds, got those of "
            f"{sorted(set(frame['method']))}"
        )
    return found


def _unusual(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [WORDS[name](row[name]) for name in columns if not (pd.isna(row[name]) or row[name] == USUAL.get(name))]
