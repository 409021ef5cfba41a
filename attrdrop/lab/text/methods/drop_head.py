"""DropHead: attention heads are dropped whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrdrop.addrop.passes import AttentionCall
from attrdrop.addrop.scope import attention_scope, unreachable
from attrdrop.lab.text.methods.rivals import RandomRival


class DropHead(RandomRival):
    """DropHead (Zhou et al., 2020): attention heads dropped whole, without the paper's schedule of the rate.

    Each head of each sample and layer is dropped with probability ``rate``; the others are scaled by all heads over
    kept ones. A sample that would lose all heads of a layer keeps them. Of an encoder-decoder model the encoder's
    self-attention, as in AD-DROP. The statistics count heads.

    Raises:
        TypeError, ValueError: as :class:`attrdrop.ADDrop`; in a step, the attention cannot be reached, or gradient
            checkpointing is on.
    """

    ATTENTION = "attrdrop"

    def __init__(self, model: Any, *, rate: float, seed: int = 0) -> None:
        self._scope = attention_scope(model, ("encoder",))
        super().__init__(model, rate, seed)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        """The heads' outputs (B, n, H, d), called by the model."""
        out = plain()
        if call.module not in self._scope:
            return out
        keep = self._draw(out.shape[0], out.shape[2])
        self._count(keep.numel(), (~keep).sum())
        factor = keep * (keep.shape[1] / keep.sum(-1, keepdim=True, dtype=torch.float64))
        return out * factor[:, None, :, None].to(out.dtype)

    def _draw(self, batch: int, heads: int) -> Tensor:
        """Bool (B, H): the heads that stay."""
        keep = self._uniform(batch, heads) >= self.rate
        return keep | ~keep.any(-1, keepdim=True)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.model(**batch, attrdrop=self).loss
        if self._counts is None:
            raise ValueError(unreachable(self.model))
        return loss
