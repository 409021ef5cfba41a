"""Some samples of a batch, drawn, which pass 1 attributes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attrdrop._core.seeds import derive_seed
from attrdrop.addrop.replay import mapped
from attrdrop.ops import draw_images


@dataclass(frozen=True, eq=False)
class Part:
    """index: int64 (k,), the places of these samples in a batch of so many."""

    index: Tensor
    size: int

    @classmethod
    def drawn(cls, share: float, seed: int, sample_ids: Tensor, device: torch.device) -> Part:
        """Each sample with this probability, by its id alone. sample_ids: on the CPU, lest a device be waited for."""
        chosen = draw_images(len(sample_ids), share, seed=derive_seed(seed, 4), sample_ids=sample_ids)
        return cls(chosen.nonzero().flatten().to(device, non_blocking=True), len(sample_ids))

    @property
    def count(self) -> int:
        return len(self.index)

    def of(self, tree: Any) -> Any:
        """A tree, where what has the batch as its first dimension has these samples alone."""
        return mapped(lambda x: x[self.index] if self._is_batch(x) else x, tree)

    def _is_batch(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == self.size

    def spread(self, bits: Tensor) -> Tensor:
        """Packed bits of these samples in those of the whole batch, where the others have all bits set.

        bits: int32 (k w, ...), where a model that attends in windows has w entries for each sample, in order.
        """
        windows = len(bits) // self.count
        whole = bits.new_full((self.size, windows, *bits.shape[1:]), -1)
        whole[self.index] = bits.unflatten(0, (self.count, windows))
        return whole.flatten(0, 1)
