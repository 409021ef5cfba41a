"""DropKey: attention positions are dropped at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrdrop.addrop.config import ADDropConfig
from attrdrop.lab.text.methods.base import ADDropMethod
from attrdrop.lab.text.methods.rivals import check_rate
from attrdrop.lab.text.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self


class DropKey(ADDropMethod):
    """DropKey (Li et al., 2023): each attention position dropped before the softmax, at one rate in all layers.

    That is AD-DROP's RD with p = 1 in every epoch. The paper's decreasing rates are left out; a query that would lose
    all its keys keeps them. The statistics are those of :class:`attrdrop.ADDrop`.

    Raises:
        TypeError, ValueError: as :class:`attrdrop.ADDrop`.
    """

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate, seed=seed)

    @classmethod
    def work(cls, settings: Settings, epoch: int) -> float:
        return cls.step_work  # RD attributes nothing

    def __init__(self, model: Any, *, rate: float, seed: int = 0) -> None:
        rate = check_rate(rate)
        super().__init__(model, ADDropConfig(attribution="RD", p=1.0, q=rate, cross_tuning=False, seed=seed))
