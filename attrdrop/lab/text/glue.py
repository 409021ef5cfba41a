"""GLUE's hidden test splits, and the files that its server takes."""

from collections.abc import Sequence
from typing import Any

from attrdrop.lab.errors import InputError, listed

FILES: dict[str, dict[str, str]] = {  # of a task: the splits that the server scores, by file
    "ax": {"AX": "test"},
    "cola": {"CoLA": "test"},
    "mnli": {"MNLI-m": "test_matched", "MNLI-mm": "test_mismatched"},
    "mrpc": {"MRPC": "test"},
    "qnli": {"QNLI": "test"},
    "qqp": {"QQP": "test"},
    "rte": {"RTE": "test"},
    "sst2": {"SST-2": "test"},
    "stsb": {"STS-B": "test"},
    "wnli": {"WNLI": "test"},
}
_THREE, _TWO = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
NAMED = {"ax": _THREE, "mnli": _THREE, "qnli": _TWO, "rte": _TWO}  # classes by name; the others go by number
MOST = 5.0  # of STS-B's similarity


def submission(task: str, predicted: Sequence[Any], label_names: Sequence[str]) -> bytes:
    """The table that GLUE's server takes: index and prediction, parted by tabs.

    predicted: class indices of label_names, or numbers. Raises InputError where these are not the task's classes.
    """
    if task == "stsb":
        shown = [f"{min(max(float(number), 0.0), MOST):.3f}" for number in predicted]
    elif task in NAMED:
        names = _ordered(task, label_names)
        shown = [names[index] for index in predicted]
    else:
        if len(label_names) != 2:
            raise InputError(f"--glue: {task} has two classes, the model {len(label_names)}: {listed(label_names)}.")
        shown = [str(index) for index in predicted]
    return "".join(f"{first}\t{second}\n" for first, second in [("index", "prediction"), *enumerate(shown)]).encode()


def _ordered(task: str, label_names: Sequence[str]) -> Sequence[str]:
    """What the server calls the classes of a model, which may be numbered."""
    usual = NAMED[task]
    if set(label_names) == set(usual):
        return label_names
    if len(label_names) == len(usual) and all(name.removeprefix("LABEL_").isdigit() for name in label_names):
        return usual
    raise InputError(f"--glue: {task} has the classes {listed(usual)}, the model {listed(label_names)}.")
