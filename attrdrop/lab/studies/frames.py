"""Results of trials as data frames: one row per run, one row per run and epoch."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from attrdrop.lab.figures.frames import OTHER
from attrdrop.lab.names import PLAIN, TUNED
from attrdrop.lab.runs.report import jobs_of
from attrdrop.lab.studies.plan import METHOD
from attrdrop.lab.text.report import fraction_dropped, step_times

Result = dict[str, Any]  # with the keys trial and result


def runs_frame(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run: what was varied (NaN where it does not apply), scores, times.

    step_ms is the median of the steps in which the method was at work, plain_step_ms that of the plain run at the same
    seed on the same examples.
    """
    runs = [entry for entry in results if "epochs" in entry["result"]]
    plain = {
        _place(entry["trial"]): step_times(entry["result"]["epochs"])["plain_step_ms"]
        for entry in runs
        if entry["trial"]["arm"] == PLAIN
    }
    rows = []
    for entry in runs:
        trial, run = entry["trial"], entry["result"]
        times = step_times(run["epochs"])
        metric = run["metric"]
        rows.append(
            {
                **_varied(trial),
                "metric": metric["name"],
                "better": metric["better"],
                "percent": metric["percent"],
                "train_size": run["train_size"],
                "dev_score": run["dev_score"],
                "test_score": run["test_score"],
                **{OTHER + name: score for name, score in run["other_scores"].items()},
                "best_epoch": run["best_epoch"],
                "step_ms": times["active_step_ms"] or times["plain_step_ms"],
                "plain_step_ms": plain.get(_place(trial)),
                "fraction_dropped": fraction_dropped(run["epochs"]),
                "seconds": run["seconds"],
                "jobs": jobs_of(entry),
            }
        )
    return pd.DataFrame(rows)


def curves_frame(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and epoch."""
    rows = [
        {
            **_varied(entry["trial"]),
            "epoch": epoch["number"],
            "active": epoch["active"],
            "train_loss": epoch["train_loss"],
            "dev_loss": epoch["dev_loss"],
            "dev_score": epoch["dev_score"],
        }
        for entry in results
        for epoch in entry["result"].get("epochs", [])
    ]
    return pd.DataFrame(rows)


def _varied(trial: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": trial["task"],
        "method": trial["arm"],
        "seed": trial["seed"],
        **{name: trial.get(name) for name in (*METHOD, *TUNED, "share", "shots")},
    }


def _place(trial: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(trial.get(name) for name in ("task", "seed", "share", "shots"))
