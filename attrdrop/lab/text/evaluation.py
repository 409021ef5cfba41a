"""A model's predictions for examples, in order, and its performance as tokens are removed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from attrdrop.lab.text.kinds import Kind, Prediction, Row
from attrdrop.lab.text.kinds.base import IGNORED

EVAL_BATCH = 64
EVAL_SEED = 0  # of what evaluation draws: the tokens that masked language modelling hides, and those that are deleted
DELETED = (0.2, 0.4, 0.6)  # shares of the tokens
Seen = Callable[[int], None]  # is told how many rows were evaluated


@torch.no_grad()
def predictions(model: PreTrainedModel, kind: Kind, rows: list[Row], seen: Seen = lambda count: None) -> Prediction:
    """Predicted and expected of each row, in their order where a row has one prediction."""
    order, found = _by_length(rows), Prediction()
    for part, batch in _batches(model, kind, rows, order, seen):
        found += kind.predict(model, part, batch)
    if len(found.predicted) != len(rows):  # tokens of language models
        return found
    places = sorted(range(len(rows)), key=order.__getitem__)
    return replace(
        found,
        predicted=[found.predicted[place] for place in places],
        expected=[found.expected[place] for place in places],
        log_p=[found.log_p[place] for place in places] if found.log_p else [],
    )


@torch.no_grad()
def mean_loss(model: PreTrainedModel, kind: Kind, rows: list[Row], seen: Seen = lambda count: None) -> float:
    """The model's own loss in evaluation mode, without dropout or masks: a mean over labels."""
    total, count = 0.0, 0
    for _, batch in _batches(model, kind, rows, _by_length(rows), seen):
        labels = int((batch["labels"] != IGNORED).sum())
        total, count = total + labels * model(**batch).loss.item(), count + labels
    return total / count


def without_tokens(rows: list[Row], share: float, special: set[int]) -> list[Row]:
    """The rows without that share of their tokens, at random; `special` ones stay, and one other in each row.

    What is gone at a share is gone at every larger one.
    """
    draws = torch.Generator().manual_seed(EVAL_SEED)
    found = []
    for row in rows:
        ranks = torch.rand(len(row["input_ids"]), generator=draws).tolist()
        places = [place for place, token in enumerate(row["input_ids"]) if token not in special]
        last = max(places, key=ranks.__getitem__, default=None)
        gone = {place for place in places if ranks[place] < share and place != last}
        found.append({name: _without(value, gone) for name, value in row.items()})
    return found


def _without(value: Any, gone: set[int]) -> Any:
    """A column of a row: one of tokens, or the label of all of them."""
    return [one for place, one in enumerate(value) if place not in gone] if isinstance(value, list) else value


def _by_length(rows: list[Row]) -> list[int]:
    """The order in which batches need the least padding."""
    return sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))


def _batches(
    model: PreTrainedModel, kind: Kind, rows: list[Row], order: list[int], seen: Seen
) -> Iterator[tuple[list[Row], Any]]:
    """Rows and what the model, in evaluation mode, gets of them."""
    model.eval()
    collate = kind.collate(EVAL_SEED)
    for start in range(0, len(rows), EVAL_BATCH):
        part = [rows[place] for place in order[start : start + EVAL_BATCH]]
        yield part, collate(part).to(model.device)
        seen(len(part))
