"""Names that rooms of the lab have in common, without any heavy import."""

from typing import Any

PLAIN, ADDROP = "plain", "ad-drop"  # arms
DROPS = ("high", "low", "random", "none")  # what the prior experiment of the AD-DROP paper drops (Fig. 2)
Trial = dict[str, Any]  # plain values by name; the same names and values are the same trial
Record = dict[str, Any]  # "trial", "finished" (ISO time), and "result", "seconds", "jobs", or "message" where it failed


def name_of(trial: Trial) -> str:
    """A trial of an arm at a seed, for a message."""
    task = f"{trial['task']}, " if "task" in trial else ""
    return f"{task}{trial['arm']}, seed {trial['seed']}"
