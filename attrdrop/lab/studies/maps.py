"""Attention maps of one example, and the positions that vanilla dropout and AD-DROP would drop (Fig. 1)."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from attrdrop.addrop.targets import attribution_target
from attrdrop.lab.errors import InputError
from attrdrop.lab.text.methods import ADDropMethod, make_method
from attrdrop.lab.text.settings import ADDROP
from attrdrop.lab.text.training import Trainer
from attrdrop.ops import unpack_mask

LENGTH = range(8, 21)  # tokens that a figure can show


def draw(trainer: Trainer, seed: int) -> dict[str, Any]:
    """Fine-tunes with AD-DROP and explains one development example: the tokens, the lowest layer that is masked (from
    0), the attribution of its first head (n, n), which positions are candidates, and which are dropped by chance and
    by AD-DROP. Of an encoder-decoder model the encoder is shown."""
    _, model = trainer.trained(ADDROP, seed)
    settings = dataclasses.replace(
        trainer.settings, attribution="GA", attention="encoder", units=("attention",), pass1="eval", cross_tuning=False
    )
    rows = [row for row in trainer.dev_rows if len(row["input_ids"]) in LENGTH] or trainer.dev_rows
    batch = trainer.kind.collate(seed)(rows[:1]).to(trainer.device)
    model.train()  # AD-DROP does nothing outside of training; its first pass runs without dropout here
    kept = {}
    for name, q in (("candidates", 1.0), ("dropped", settings.q)):
        method = make_method(ADDROP, model, dataclasses.replace(settings, q=q), seed)
        assert isinstance(method, ADDropMethod)
        masks = method.addrop.attribute(**batch)
        assert masks is not None
        layer, keep = next((site.index, site.keep) for site in masks.sites if site.keep is not None)
        kept[name] = unpack_mask(keep.rows, n=batch["input_ids"].shape[1])[0, 0]
    attribution = _attribution(model, batch, layer)
    chance = torch.rand(attribution.shape, generator=torch.Generator().manual_seed(seed)) < settings.p * settings.q
    return {
        "layer": layer,
        "tokens": trainer.kind.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()),
        "attribution": attribution.tolist(),
        "candidates": (~kept["candidates"]).tolist(),
        "dropped": (~kept["dropped"]).tolist(),
        "dropped_by_chance": chance.tolist(),
    }


def _attribution(model: Any, batch: dict[str, Tensor], layer: int) -> Tensor:
    """dF/dA of the first head of a layer, (n, n), by eager attention without dropout."""
    model.set_attn_implementation("eager")
    model.eval()
    outputs = model(**batch, output_attentions=True)
    weights = outputs.get("attentions", outputs.get("encoder_attentions"))
    if not weights or weights[layer] is None:
        raise InputError(
            f"--studies: maps needs a model that returns its attention, and {type(model).__name__} does not."
        )
    target = attribution_target(outputs, batch, "pseudo", model)
    return torch.autograd.grad(target, weights[layer])[0][0, 0].cpu()
