"""AD-DROP in Lightning's Trainer, with automatic and manual optimisation."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attrdrop.addrop import ADDrop, ADDropConfig


class ADDropCallback(Callback):
    """Adds ``addrop`` to a LightningModule, whose ``training_step`` calls it in place of the model.

    ::

        class Classifier(LightningModule):
            def training_step(self, batch, index):
                return self.addrop(**batch).loss
            ...

        Trainer(callbacks=[ADDropCallback(p=0.3, q=0.3)])

    Epoch and step are Lightning's, so a resumed run draws the same masks, and samples are numbered consecutively over
    accumulated batches. The fraction dropped in an epoch, over all processes, is logged as ``addrop_fraction_dropped``.

    Args:
        config: an :class:`attrdrop.ADDropConfig`; or pass its fields as keywords.
        model: name of the attribute of the LightningModule that holds the transformers model.
    """

    def __init__(self, config: ADDropConfig | None = None, *, model: str = "model", **fields: Any):
        if config is not None and fields:
            raise TypeError(f"give either config or its fields, got both config and {', '.join(fields)}")
        self.config = config if config is not None else ADDropConfig(**fields)
        self.name = model

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, self.name):
            raise ValueError(
                f"model must name the attribute of {type(pl_module).__name__} with the model, got {self.name!r}"
            )
        never = sys.maxsize  # Lightning says when a step ends
        pl_module.addrop = ADDrop(getattr(pl_module, self.name), self.config, accumulation_steps=never)
        pl_module.addrop.start_epoch(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module.addrop.epoch != trainer.current_epoch + 1:  # not by its own hook, which a resumed epoch skips
            pl_module.addrop.start_epoch(trainer.current_epoch + 1)
        pl_module.addrop.start_step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = pl_module.addrop.statistics()
        pl_module.addrop.reset_statistics()
        counts = torch.tensor([found.dropped, found.valid], dtype=torch.float64, device=pl_module.device)
        dropped, valid = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        pl_module.log("addrop_fraction_dropped", dropped / max(valid, 1), sync_dist=True)


__all__ = ["ADDropCallback"]
