"""What AD-DROP really dropped, and the counting of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from attrdrop._core.capture import Tally


@dataclass(frozen=True)
class DropStatistics:
    """What was really dropped since the last reset, over all masked layers and heads.

    valid: positions that could be attended to; candidates: those in the discard region (Eq. 6); dropped: those
    dropped (Eq. 7); rescued_rows: queries that would have lost all their keys and kept them; steps: two-pass steps.

    Queries on which the target does not depend have a row of zeros: it ties everywhere, so all its keys are candidates.
    Padded queries are such, and all queries but the first in the last layer of a classifier on the first token. Hence
    fraction_dropped may lie above p q; what those queries attend to does not reach the target.
    """

    valid: int = 0
    candidates: int = 0
    dropped: int = 0
    rescued_rows: int = 0
    steps: int = 0

    @property
    def fraction_dropped(self) -> float:
        return self.dropped / self.valid if self.valid else 0.0

    @property
    def fraction_candidates(self) -> float:
        return self.candidates / self.valid if self.valid else 0.0

    def as_dict(self) -> dict[str, float]:
        return {
            **asdict(self),
            "fraction_dropped": self.fraction_dropped,
            "fraction_candidates": self.fraction_candidates,
        }


class DropCounter:
    """Sums what masks dropped, on the device, until it is asked; always in the same tensor, as CUDA graphs want it.

    capturable: steps are counted there too.
    """

    def __init__(self, capturable: bool = False) -> None:
        self.steps = Tally(on_device=capturable)
        self._counts: Tensor | None = None

    def reset(self) -> None:
        self.steps.set(0)
        if self._counts is not None:
            self._counts.zero_()

    def add(self, counts: Tensor) -> None:
        """counts: int64 (4,), as :class:`attrdrop.KeepMask` has them."""
        if self._counts is None:
            self._counts = torch.zeros_like(counts)
        self._counts += counts

    def statistics(self) -> DropStatistics:
        """Waits for the device."""
        valid, candidates, dropped, rescued = [0] * 4 if self._counts is None else self._counts.tolist()
        return DropStatistics(valid, candidates, dropped, rescued, int(self.steps))
