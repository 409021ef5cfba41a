"""What AD-DROP really dropped, and the counting of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from attrdrop._core.capture import Tally
from attrdrop.addrop.units import HEADS
from attrdrop.ops import KeepMask, pack_mask


@dataclass(frozen=True)
class UnitCounts:
    """Of one kind of units: how many there were, candidates (Eq. 6), dropped ones (Eq. 7), and rows kept whole because
    all would have been dropped. A feed-forward unit counts by token, padding included, a head by sample."""

    valid: int = 0
    candidates: int = 0
    dropped: int = 0
    rescued_rows: int = 0

    @property
    def fraction_dropped(self) -> float:
        return self.dropped / self.valid if self.valid else 0.0


@dataclass(frozen=True)
class DropStatistics:
    """What was really dropped since the last reset, over all masked layers and heads.

    valid: positions that could be attended to; candidates: those in the discard region (Eq. 6); dropped: those
    dropped (Eq. 7). With ``ADDrop(count_dead=True)`` these three are of live queries, on which the target depends;
    dead_valid and dead_dropped count the positions of the others, which have a row of zeros: it ties everywhere, so all
    its keys are candidates, and what they attend to does not reach the target. Padded queries are dead, and all queries
    but the first in the last layer of a classifier on the first token. Otherwise, and in AA and RD, which look at no
    gradient, every query counts as live.

    rescued_rows: queries, live or dead, that would have lost all their keys and kept them; steps: two-pass steps.
    feed_forward, heads: other units, where they are dropped.
    """

    valid: int = 0
    candidates: int = 0
    dropped: int = 0
    rescued_rows: int = 0
    steps: int = 0
    dead_valid: int = 0
    dead_dropped: int = 0
    feed_forward: UnitCounts = UnitCounts()
    heads: UnitCounts = UnitCounts()

    @property
    def fraction_dropped(self) -> float:
        """Of the positions of live queries."""
        return self.dropped / self.valid if self.valid else 0.0

    @property
    def fraction_candidates(self) -> float:
        """Of the positions of live queries."""
        return self.candidates / self.valid if self.valid else 0.0

    @property
    def fraction_dead(self) -> float:
        """The share of all positions that are those of dead queries."""
        return self.dead_valid / (self.valid + self.dead_valid) if self.dead_valid else 0.0

    def as_dict(self) -> dict[str, float]:
        fractions = ("fraction_dropped", "fraction_candidates", "fraction_dead")
        found = {name: value for name, value in asdict(self).items() if not isinstance(value, dict)}
        found |= {name: getattr(self, name) for name in fractions}
        for kind in ("feed_forward", "heads"):
            counts = getattr(self, kind)
            if counts.valid:
                found |= {f"{kind}_{name}": value for name, value in asdict(counts).items()}
                found[f"{kind}_fraction_dropped"] = counts.fraction_dropped
        return found


class DropCounter:
    """Sums what masks dropped, on the device, until it is asked; always in the same tensor, as CUDA graphs want it.

    capturable: steps are counted there too.
    """

    def __init__(self, capturable: bool = False) -> None:
        self.steps = Tally(on_device=capturable)
        self._counts: Tensor | None = None
        self._dead: Tensor | None = None
        self._units: dict[str, Tensor] = {}

    def reset(self) -> None:
        self.steps.set(0)
        for sums in (self._counts, self._dead, *self._units.values()):
            if sums is not None:
                sums.zero_()

    def add(self, counts: Tensor, dead: Tensor | None = None) -> None:
        """counts: int64 (4,), as :class:`attrdrop.KeepMask` has them. dead: int64 (2,), of the dead queries among them
        the valid positions and the dropped ones."""
        if self._counts is None:
            self._counts = torch.zeros_like(counts)
        self._counts += counts
        if dead is not None:
            if self._dead is None:
                self._dead = torch.zeros_like(dead)
            self._dead += dead

    def add_units(self, unit: int, counts: Tensor) -> None:
        """counts: int64 (4,), as :class:`attrdrop.KeptScores` has them."""
        kind = "heads" if unit == HEADS else "feed_forward"
        if kind not in self._units:
            self._units[kind] = torch.zeros_like(counts)
        self._units[kind] += counts

    def statistics(self) -> DropStatistics:
        """Waits for the device."""
        valid, candidates, dropped, rescued = [0] * 4 if self._counts is None else self._counts.tolist()
        dead, dead_dropped = [0] * 2 if self._dead is None else self._dead.tolist()
        units = {kind: UnitCounts(*sums.tolist()) for kind, sums in self._units.items()}
        return DropStatistics(
            valid - dead,
            candidates - dead,
            dropped - dead_dropped,
            rescued,
            int(self.steps),
            dead,
            dead_dropped,
            **units,
        )


def live_queries(x: Tensor) -> Tensor:
    """Bool (B, H, n) of the rows of x (B, H, n, d), gradients of head outputs, that are not all zero."""
    return x.detach().abs().amax(-1) != 0


def dead_counts(live: Tensor, keep: KeepMask, valid: Tensor | None, is_causal: bool) -> Tensor:
    """Int64 (2,): the valid and the dropped positions of dead queries.

    live: bool (B, H, n_q). keep, valid, is_causal: as of :func:`attrdrop.keep_mask`.
    """
    n_q, n_k = keep.shape[2:]
    if is_causal:
        allowed = pack_mask(torch.ones(n_q, n_k, dtype=torch.bool, device=live.device).tril())
        valid = allowed if valid is None else valid & allowed
    could = torch.full_like(live, n_k, dtype=torch.int64) if valid is None else set_bits(valid).expand(live.shape)
    lost = could - set_bits(keep.rows)
    return torch.stack([could.masked_fill(live, 0).sum(), lost.masked_fill(live, 0).sum()])


def set_bits(words: Tensor) -> Tensor:
    """How many bits are set in each row of int32 words: (..., words) -> int64 (...)."""
    counts = words - (words >> 1).bitwise_and_(0x55555555)  # of each two bits
    upper = (counts >> 2).bitwise_and_(0x33333333)
    counts.bitwise_and_(0x33333333).add_(upper)  # of four
    counts.add_(counts >> 4).bitwise_and_(0x0F0F0F0F)  # of eight
    return counts.mul_(0x01010101).bitwise_right_shift_(24).sum(-1)
