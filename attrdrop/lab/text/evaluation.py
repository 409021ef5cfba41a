"""What a model says of examples, in their order."""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from attrdrop.lab.text.kinds import Kind, Prediction, Row

EVAL_BATCH = 64
EVAL_SEED = 0  # of what evaluation draws: the tokens that masked language modelling hides


@torch.no_grad()
def predictions(
    model: PreTrainedModel, kind: Kind, rows: list[Row], seen: Callable[[int], None] = lambda count: None
) -> Prediction:
    """Predicted and expected of each row, in their order where a row has one prediction; `seen` is told of rows.

    Rows are sorted by length on the way, to save padding.
    """
    model.eval()
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    collate, found = kind.collate(EVAL_SEED), Prediction()
    for start in range(0, len(rows), EVAL_BATCH):
        part = [rows[place] for place in order[start : start + EVAL_BATCH]]
        found += kind.predict(model, part, collate(part).to(model.device))
        seen(len(part))
    if len(found.predicted) != len(rows):  # tokens of language models
        return found
    places = sorted(range(len(rows)), key=order.__getitem__)
    return replace(
        found,
        predicted=[found.predicted[place] for place in places],
        expected=[found.expected[place] for place in places],
    )
