"""Relevance kept from one epoch to a later one, by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

TOP = 10  # maps agree as far as their most relevant tenths do


@dataclass(frozen=True)
class CacheStatistics:
    """What a relevance cache saved and cost since the last reset.

    reused: samples that reused relevance of an earlier epoch; computed: attributed samples; compared: those of them
    with an older map to compare; agreement: mean overlap of the most relevant tenths of both maps (None if nothing was
    compared); samples, bytes: currently stored.
    """

    reused: int = 0
    computed: int = 0
    compared: int = 0
    agreement: float | None = None
    samples: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RelevanceCache:
    """Maps by sample, each good for so many visits of its sample, that in which it was computed among them.

    A sample is visited once an epoch. Maps are kept on the device where they are computed, summed over channels, over
    their largest magnitude, in float16: what is made of them, ranks and shares, is the same.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._visits: Counter[int] = Counter()
        self._rows: dict[int, int] = {}
        self._born: list[int] = []  # by row, the visit in which the map was computed
        self._maps: Tensor | None = None  # float16 (capacity, *shape)
        self.reset_statistics()

    def visit(self, samples: list[int]) -> None:
        """Samples of a batch come by."""
        self._visits.update(samples)

    def of(self, samples: list[int], compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        """Maps float32 (M, *shape) of M visited samples, and how many were computed.

        compute: gives the maps of those at some places, int64 (m,), on the CPU.
        """
        stale = torch.tensor([not self._is_good(sample) for sample in samples]).nonzero().squeeze(1)
        fresh = compute(stale) if len(stale) else None
        if fresh is not None:
            self._keep([samples[place] for place in stale.tolist()], fresh)
        assert self._maps is not None
        rows = torch.tensor([self._rows[sample] for sample in samples]).to(self._maps.device, non_blocking=True)
        maps = self._maps[rows].float()
        if fresh is not None:  # as it is: nothing is rounded before it is kept
            maps = maps.index_copy(0, stale.to(maps.device, non_blocking=True), fresh.float())
        self._reused += len(samples) - len(stale)
        self._computed += len(stale)
        return maps, len(stale)

    def statistics(self) -> CacheStatistics:
        """Waits for the device."""
        agreement = None if self._common is None else float(self._common) / self._compared
        size = 0 if self._maps is None else self._maps.nbytes
        return CacheStatistics(self._reused, self._computed, self._compared, agreement, len(self._rows), size)

    def reset_statistics(self) -> None:
        self._reused = self._computed = self._compared = 0
        self._common: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "visits": torch.tensor(list(self._visits.items()), dtype=torch.int64).view(-1, 2),
            "samples": torch.tensor(list(self._rows), dtype=torch.int64),
            "born": torch.tensor(self._born, dtype=torch.int64),
            "maps": None if self._maps is None else self._maps[: len(self._rows)].clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._visits = Counter(dict(state["visits"].tolist()))
        self._rows = {sample: row for row, sample in enumerate(state["samples"].tolist())}
        self._born = state["born"].tolist()
        self._maps = None if state["maps"] is None else state["maps"].clone()

    def _is_good(self, sample: int) -> bool:
        row = self._rows.get(sample)
        return row is not None and self._visits[sample] - self._born[row] < self.epochs

    def _keep(self, samples: list[int], fresh: Tensor) -> None:
        flat = fresh.detach().flatten(1)
        largest = flat.abs().amax(1, keepdim=True)
        maps = torch.where(largest > 0, flat / largest, 0).half().view_as(fresh)
        if self._maps is None:
            self._maps = maps.new_empty((0, *maps.shape[1:]))
        if self._maps.shape[1:] != maps.shape[1:]:
            raise ValueError(
                f"relevance must always have the same shape to be kept (cache_epochs), got {tuple(maps.shape[1:])} "
                f"after {tuple(self._maps.shape[1:])}"
            )
        self._maps = self._maps.to(maps.device)  # where a checkpoint comes from another device
        known = [place for place, sample in enumerate(samples) if sample in self._rows]
        if known:
            old = self._maps[torch.tensor([self._rows[samples[place]] for place in known]).to(maps.device)]
            common = _common(old.flatten(1).float(), maps[torch.tensor(known).to(maps.device)].flatten(1).float())
            self._common = common if self._common is None else self._common + common
            self._compared += len(known)
        for sample in samples:
            if sample not in self._rows:
                self._rows[sample] = len(self._born)
                self._born.append(0)
            self._born[self._rows[sample]] = self._visits[sample]
        if len(self._born) > len(self._maps):
            grown = maps.new_empty((max(len(self._born), 2 * len(self._maps)), *maps.shape[1:]))
            grown[: len(self._maps)] = self._maps
            self._maps = grown
        rows = torch.tensor([self._rows[sample] for sample in samples])
        self._maps.index_copy_(0, rows.to(maps.device, non_blocking=True), maps)


def _common(old: Tensor, new: Tensor) -> Tensor:
    """The share that the most relevant tenths of two maps (m, cells) have in common, summed over the maps."""
    count = max(1, old.shape[1] // TOP)
    tops = [torch.zeros_like(maps).scatter(1, maps.topk(count).indices, 1.0) for maps in (old, new)]
    return ((tops[0] * tops[1]).sum(1) / count).sum()
