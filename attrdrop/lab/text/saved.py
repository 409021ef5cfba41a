"""A saved model: its task, and its scores on any set."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from attrdrop.lab.device import resolve_device
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.layout import WideTable
from attrdrop.lab.runs.models import card_of
from attrdrop.lab.runs.results import check_output, replace_files
from attrdrop.lab.runs.settings import check_choice
from attrdrop.lab.text import glue, hub
from attrdrop.lab.text.evaluation import predictions
from attrdrop.lab.text.examples import CAUSAL_LM, MASKED_LM, REGRESSION, SEQ2SEQ, TOKEN_CLASSIFICATION, Examples, Task
from attrdrop.lab.text.kinds import KINDS, Kind, Prediction
from attrdrop.lab.text.kinds.base import Metric
from attrdrop.lab.text.models import loaded, quiet
from attrdrop.lab.text.settings import Evaluation
from attrdrop.lab.text.tasks import TASKS, set_of

LENGTH = 128  # tokens, where nothing says more


@dataclass(frozen=True)
class Scored:
    """A model's predictions for a set, and their scores; None if the set has no labels."""

    kind: Kind
    found: Prediction
    score: float | None


class SavedModel:
    """Loads a model, of an experiment or from elsewhere, and finds out what it predicts.

    Raises InputError where it cannot be loaded, or nothing says which task type it is of.
    """

    def __init__(self, options: Evaluation) -> None:
        quiet()
        self.options = options
        self.card = card_of(Path(options.model).expanduser())
        config = loaded(AutoConfig, options.model)
        made_for = options.task_type or self.card.get("task", {}).get("kind") or _kind_of(config)
        check_choice("task-type", made_for, KINDS)
        names = [config.id2label[index] for index in range(config.num_labels)]
        tokenizer = loaded(
            AutoTokenizer, options.model, **({"add_prefix_space": True} if KINDS[made_for].splits_words else {})
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        longest = options.max_length or self.card.get("settings", {}).get("max_length") or LENGTH
        nothing = Examples([], None, [])
        task = Task(self.task_name or options.model, made_for, names, nothing, nothing, None)
        self.kind = KINDS[made_for](task, tokenizer, min(longest, tokenizer.model_max_length))
        self.metric_name, self.metric = self.kind.metric(options.metric or self._metric())
        self.model: PreTrainedModel = loaded(self.kind.factory, options.model, dtype="float32")
        self.model.config.pad_token_id = tokenizer.pad_token_id
        self.model.to(resolve_device(options.device))

    @property
    def task_name(self) -> str | None:
        """The data set that it was trained on, where one is known by name."""
        name = self.card.get("task", {}).get("name")
        return name if name in TASKS else None

    def sets(self) -> dict[str, Examples]:
        """The sets that the options name, that of the model's own task where they name none."""
        wanted = self.options.on or ((self.task_name,) if self.task_name else ())
        if not wanted:
            raise InputError("--on: name a data set or a file; the model does not say what it was trained on.")
        found: dict[str, Examples] = {}
        for name, examples in (set_of(text, self.kind.task, self.options) for text in wanted):
            if _file_of(name) in map(_file_of, found):
                raise InputError(f"--on: two sets are called {Path(name).stem}; score them separately.")
            found[name] = self.kind.task.sample(examples, self.options.test_size)
        return found

    def scored(self, examples: Examples) -> Scored:
        """Its predictions for some examples."""
        kind = self.kind.on(examples)
        is_scored = examples.labels is not None or kind.name in (MASKED_LM, CAUSAL_LM)
        found = predictions(self.model, kind, kind.encode(examples if is_scored else _with_labels(examples, kind.name)))
        return Scored(kind, found, kind.score(self.metric_name, found) if is_scored else None)

    def _metric(self) -> str | None:
        """That of the experiment, by its name in a table."""
        name = self.card.get("task", {}).get("metric", {}).get("name")
        return next((key for key, metric in self.kind.metrics.items() if metric.name == name), None)


def evaluate(options: Evaluation) -> Iterator[Any]:
    """Scores the sets, writes the requested files, and returns what is shown."""
    if options.glue and not options.output:
        raise InputError("--glue: name a folder for the files with --output.")
    if options.output:
        check_output(options.output, options.overwrite)
    saved = SavedModel(options)
    if options.glue:
        check_choice("glue", options.glue, glue.FILES)
    sets = {} if options.glue and not options.on else saved.sets()
    submitted = _submitted(options.glue, sets) if options.glue else {}
    found = {name: saved.scored(examples) for name, examples in sets.items()}
    if sets:
        yield _table(options.model, found, saved.metric)
    if not options.output:
        return
    files = _files(saved, sets, found)
    for name, examples in submitted.items():
        said = found[name] if name in found else saved.scored(examples)
        file = next(iter(glue.FILES[options.glue or ""])) if name in found else name
        files[f"{file}.tsv"] = glue.submission(str(options.glue), said.found.predicted, saved.kind.task.label_names)
    replace_files(options.output, files)
    yield f"Written to {options.output}: {', '.join(files)}"


def _submitted(task: str, sets: dict[str, Examples]) -> dict[str, Examples]:
    """What goes to GLUE's server: a file without labels, or the hidden splits of the hub."""
    if not sets:
        return hub.load_hidden(task)
    if len(sets) > 1:
        raise InputError(f"--glue: --on names {len(sets)} sets; name the one whose predictions are to be submitted.")
    return sets


def _files(saved: SavedModel, sets: dict[str, Examples], found: dict[str, Scored]) -> dict[str, bytes]:
    """Predictions of each set, and scores."""
    scores: dict[str, Any] = {"model": saved.options.model, "metric": saved.metric.name, "sets": {}}
    files: dict[str, bytes] = {}
    for name, said in found.items():
        loss = said.found.mean_loss if said.score is not None else None
        scores["sets"][name] = {"examples": len(sets[name]), "score": said.score, "loss": loss}
        if saved.kind.name in (MASKED_LM, CAUSAL_LM):
            continue
        table = pd.DataFrame({"prediction": said.kind.written(said.found.predicted)})
        if said.score is not None:
            table["label"] = said.kind.written(said.found.expected)
        buffer = io.StringIO()
        table.to_csv(buffer, index_label="index")
        files[_file_of(name)] = buffer.getvalue().encode()
    return {"scores.json": json.dumps(scores, indent=1).encode(), **files} if found else files


def _file_of(name: str) -> str:
    return f"predictions_{Path(name).stem}.csv"


def _table(model: str, found: dict[str, Scored], metric: Metric) -> WideTable:
    scale, digits = (100, 1) if metric.percent else (1, 4)
    rows = []
    for name, said in found.items():
        is_scored = said.score is not None
        cells = [
            str(len(said.found.predicted)),
            f"{scale * said.score:.{digits}f}" if said.score is not None else "-",
            f"{said.found.mean_loss:.4f}" if is_scored else "-",
        ]
        rows.append((name, cells))
    return WideTable(model, ["predictions", f"{metric.name}{', %' if metric.percent else ''}", "loss"], rows)


def _with_labels(examples: Examples, kind: str) -> Examples:
    """Some in the place of labels that are not there, which no score looks at."""
    blank: dict[str, Any] = {REGRESSION: 0.0, SEQ2SEQ: ""}
    labels: list[Any] = [blank.get(kind, 0)] * len(examples)
    if kind == TOKEN_CLASSIFICATION:
        labels = [[0] * len(words) for words in examples.texts]
    return replace(examples, labels=labels)


def _kind_of(config: Any) -> str:
    """The task type that a configuration's architecture serves."""
    for architecture in config.architectures or ():
        for name, kind in KINDS.items():
            mapping = kind.factory._model_mapping
            made = mapping.get(type(config), ())
            if architecture in [one.__name__ for one in (made if isinstance(made, tuple) else (made,))]:
                return REGRESSION if name == "classification" and config.num_labels == 1 else name
    raise InputError("--task-type: the model's configuration does not specify it; name it.")
