"""R-Drop: two predictions of a sample are pulled together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attrdrop.lab.text.methods.divergence import check_consistency, difference, symmetric_divergence
from attrdrop.lab.text.methods.rivals import Rival, check_choice
from attrdrop.lab.text.settings import R_DROP_LOSSES, Settings

if TYPE_CHECKING:
    from typing_extensions import Self


class RDrop(Rival):
    """R-Drop (Liang et al., 2021): two dropout masks on each sample, whose predictions are pulled together.

    The loss is (CE_1 + CE_2) / 2 + consistency (KL(1 || 2) + KL(2 || 1)) / 2, in which cross-entropy counts as much as
    in the other arms: half the paper's (Eq. 4) with alpha = 2 consistency. With scale "sum" it is the paper's own,
    CE_1 + CE_2 + consistency (KL(1 || 2) + KL(2 || 1)) / 2, alpha being consistency. KL is the mean over samples, or
    over tokens whose label is not -100; for regression it is the squared difference. Both halves run as one batch of
    twice the size, under the model's own dropout.

    Raises:
        TypeError, ValueError: consistency is no finite number from 0 on, or scale none of the two; in a step, the model
            is a multi-label one.
    """

    step_work = 6

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, consistency=settings.consistency, scale=settings.r_drop_loss)

    def __init__(self, model: Any, *, consistency: float, scale: str = "mean") -> None:
        super().__init__(model)
        check_choice("scale", scale, R_DROP_LOSSES)
        self.consistency = check_consistency(consistency)
        self._weight = 2 if scale == "sum" else 1  # of the mean of both

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.model(**{name: torch.cat([value, value]) for name, value in batch.items()})
        first, second = outputs.logits.chunk(2)
        divergence = difference(self.model, first, second, batch["labels"], symmetric_divergence)
        return self._weight * outputs.loss + self.consistency * divergence
