"""Tasks of Hugging Face's hub, read where the package `datasets` is installed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import glue
from attrdrop.lab.text.examples import CLASSIFICATION, REGRESSION, SEQ2SEQ, TOKEN_CLASSIFICATION, Examples, Task, split
from attrdrop.lab.text.others import merged


@dataclass(frozen=True)
class HubTask:
    """Where a task is and which of its columns and splits are what; `dev` None takes a tenth of the training split.

    In seq2seq `text` and `label` are the languages of the column `translation`. `classes` are those of another set that
    several of the task count as; without them its labels are the task's, in the same order.
    """

    path: str
    subset: str | None
    kind: str
    text: str
    pair: str | None = None
    label: str = "label"
    dev: str | None = None
    test: str = "validation"
    metric: str | None = None
    revision: str | None = None
    other: dict[str, "HubTask"] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)


def _glue(subset: str, text: str, pair: str | None = None, kind: str = CLASSIFICATION, **options: Any) -> HubTask:
    """GLUE hides the labels of its test splits, so the validation split is the test."""
    return HubTask("nyu-mll/glue", subset, kind, text, pair, **options)


PAWS_X = HubTask("google-research-datasets/paws-x", "en", CLASSIFICATION, "sentence1", "sentence2", test="test")
HANS = HubTask(
    "jhu-cogsci/hans", None, CLASSIFICATION, "premise", "hypothesis", revision="refs/convert/parquet",
    classes={"non-entailment": ("neutral", "contradiction")},
)  # fmt: skip
AX = _glue("ax", "premise", "hypothesis", test="test")  # GLUE's diagnostic set, of MNLI's classes
MISMATCHED = _glue("mnli", "premise", "hypothesis", test="validation_mismatched")
TASKS = {
    "cola": _glue("cola", "sentence", metric="matthews"),
    "mnli": _glue(
        "mnli", "premise", "hypothesis", test="validation_matched", other={"hans": HANS, "mnli-mm": MISMATCHED}
    ),
    "mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "qnli": _glue("qnli", "question", "sentence"),
    "qqp": _glue("qqp", "question1", "question2", other={"paws-x": PAWS_X}),
    "rte": _glue("rte", "sentence1", "sentence2"),
    "sst2": _glue("sst2", "sentence"),
    "stsb": _glue("stsb", "sentence1", "sentence2", REGRESSION, metric="pearson"),
    "wnli": _glue("wnli", "sentence1", "sentence2"),
    "conll2003": HubTask(
        "eriktks/conll2003", None, TOKEN_CLASSIFICATION, "tokens", label="ner_tags", dev="validation", test="test",
        revision="refs/convert/parquet",  # the hub's own conversion: datasets 4 runs no loading scripts
    ),
    "wmt16-en-ro": HubTask("wmt/wmt16", "ro-en", SEQ2SEQ, "en", label="ro", dev="validation", test="test"),
    "wmt16-tr-en": HubTask("wmt/wmt16", "tr-en", SEQ2SEQ, "tr", label="en", dev="validation", test="test"),
}  # fmt: skip


def load(name: str, kind: str, other: list[str]) -> Task:
    """One of TASKS with these of its `other` sets; `kind` is the one it has."""
    sources = {set_name: TASKS[name].other[set_name] for set_name in other}
    return read(
        name,
        _download(name, TASKS[name], "--task"),
        {set_name: _download(set_name, source, "--other") for set_name, source in sources.items()},
    )


def read(name: str, raw: Mapping, other: Mapping[str, Mapping] | None = None) -> Task:
    """One of TASKS from its raw splits, and its `other` sets from theirs."""
    task = TASKS[name]
    train = _examples(task, raw["train"])
    train, dev = (train, _examples(task, raw[task.dev])) if task.dev else split(train, 0.1, task.kind)
    label_names = _label_names(task, raw["train"])
    others = {key: _other(task.other[key], splits, label_names) for key, splits in (other or {}).items()}
    return Task(
        name,
        task.kind,
        label_names,
        train,
        dev,
        _examples(task, raw[task.test]),
        task.metric,
        others,
    )


def _examples(task: HubTask, rows: Any) -> Examples:
    if task.kind == SEQ2SEQ:
        translations = rows["translation"]
        texts, labels = ([row[language] for row in translations] for language in (task.text, task.label))
        return Examples(texts, None, labels)
    return Examples(list(rows[task.text]), list(rows[task.pair]) if task.pair else None, list(rows[task.label]))


def load_other(name: str, kind: str, label_names: Sequence[str]) -> Examples:
    """The `other` set of that name, of whichever task, for these classes of the task."""
    source = next(task.other[name] for task in TASKS.values() if name in task.other)
    if kind != source.kind:
        raise InputError(f"--on: {name} is a set of {source.kind}, and the model is one of {kind}.")
    return _other(source, _download(name, source, "--on"), label_names)


def load_hidden(name: str) -> dict[str, Examples]:
    """The splits of a task of GLUE whose labels its server alone knows, by the file that goes there."""
    source = AX if name == "ax" else TASKS[name]
    return hidden(name, _download(name, source, "--glue"))


def hidden(name: str, raw: Mapping) -> dict[str, Examples]:
    """The same of the raw splits."""
    source = AX if name == "ax" else TASKS[name]
    return {file: replace(_examples(source, raw[split]), labels=None) for file, split in glue.FILES[name].items()}


def _other(task: HubTask, splits: Mapping, label_names: Sequence[str]) -> Examples:
    """Another set of a task with these classes."""
    rows = splits[task.test]
    examples = _examples(task, rows)
    if not task.classes:
        return examples
    own, names = merged(task.classes, label_names, f"--other: {task.path}"), _label_names(task, rows)
    assert examples.labels is not None
    return replace(examples, labels=[own.names.index(names[label]) for label in examples.labels], merged=own)


def _label_names(task: HubTask, rows: Any) -> list[str]:
    if task.kind == CLASSIFICATION:
        return rows.features[task.label].names
    return rows.features[task.label].feature.names if task.kind == TOKEN_CLASSIFICATION else []


def _download(name: str, task: HubTask, option: str) -> Mapping:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{option}: {name} comes from Hugging Face's hub, which needs the package datasets: pip install datasets."
        ) from None
    try:
        return datasets.load_dataset(task.path, task.subset, revision=task.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{option}: {name} could not be loaded from {task.path}: {str(error).splitlines()[0]}"
        ) from None
