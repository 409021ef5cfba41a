"""Names that rooms of the lab have in common, without any heavy import."""

from typing import Any

PLAIN, ADDROP = "plain", "ad-drop"  # arms
USUAL = {"attribution": "GA", "layers": "all", "target": "pseudo", "region": "high", "cross_tuning": True}
ABLATIONS: dict[str, dict[str, Any] | None] = {  # rows of Table 2: what is unusual in a variant of AD-DROP
    "plain": None,
    "ad-drop (GA)": {},
    "r/w IGA": {"attribution": "IGA"},
    "r/w AA": {"attribution": "AA"},
    "r/w RD": {"attribution": "RD"},
    "r/w gold labels": {"target": "gold"},
    "w/o cross-tuning": {"cross_tuning": False},
}
Trial = dict[str, Any]  # plain values by name; the same names and values are the same trial
Record = dict[str, Any]  # "trial", "finished" (ISO time), and "result", "seconds", "jobs", or "message" where it failed


def name_of(trial: Trial) -> str:
    """A trial of an arm at a seed, for a message."""
    task = f"{trial['task']}, " if "task" in trial else ""
    return f"{task}{trial['arm']}, seed {trial['seed']}"
