"""Names that several packages of the lab share, without heavy imports."""

from collections.abc import Callable
from typing import Any

PLAIN, ADDROP = "plain", "ad-drop"  # arms
RULES = (  # of relevance, the first is the default on images
    "epsilon-plus-flat", "epsilon", "epsilon-flat", "epsilon-plus", "gradient-times-input", "abs-gradient",
)  # fmt: skip
TUNED = ["lr", "batch_size"]  # chosen for every arm, where a search varies them
MODELS = "models"  # the folder of saved ones
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
SHARES = {"p": 0.3, "q": 0.3}  # those that the settings start from
WORDS: dict[str, Callable[[Any], str]] = {  # for what is unusual in a trial
    "shots": lambda value: f"{value:.0f} shots",
    "share": lambda value: f"{100 * value:g} % of the examples",
    "train_size": lambda value: f"{value:.0f} examples",
    "p": lambda value: f"p {value:g}",
    "q": lambda value: f"q {value:g}",
    "lr": lambda value: f"learning rate {value:g}",
    "batch_size": lambda value: f"batches of {value:.0f}",
    "layers": lambda value: {"all": "all layers", "first": "first layer"}.get(value, f"layers {value}"),
    "attribution": str,
    "target": lambda value: f"{value} labels",
    "region": lambda value: f"{value} attribution",
    "cross_tuning": lambda value: f"{'with' if value else 'without'} cross-tuning",
}
Trial = dict[str, Any]  # plain values by name; the same names and values are the same trial
Record = dict[str, Any]  # "trial", "finished" (ISO time), and "result", "seconds", "jobs", or "message" where it failed


def name_of(trial: Trial) -> str:
    """A trial for a message: arm, seed, and how it differs from the default."""
    usual = USUAL | SHARES
    unusual = [word(trial[name]) for name, word in WORDS.items() if name in trial and trial[name] != usual.get(name)]
    task = [trial["task"]] if "task" in trial else []
    return ", ".join([*task, trial["arm"], *unusual, f"seed {trial['seed']}"])
