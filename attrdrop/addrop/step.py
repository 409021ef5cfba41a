"""AD-DROP (Yang et al., 2022): the two-pass training step around a transformers model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.capture import Tally, is_capturing
from attrdrop._core.checks import check_positive_int, check_size, is_int
from attrdrop._core.distributed import held_by_all, process_rank
from attrdrop._core.modules import is_compiled, outside_graphs, unwrap
from attrdrop._core.seeds import derive_seed
from attrdrop._core.sharded import is_sharded
from attrdrop._core.warning import warn
from attrdrop.addrop.attention import AttentionAttribution
from attrdrop.addrop.config import ADDropConfig
from attrdrop.addrop.gradient import GradientAttribution
from attrdrop.addrop.integrated import IntegratedGradientAttribution
from attrdrop.addrop.part import Part
from attrdrop.addrop.passes import Draws, Pass2
from attrdrop.addrop.random import RandomDropping
from attrdrop.addrop.scope import attention_scope
from attrdrop.addrop.statistics import DropCounter, DropStatistics
from attrdrop.addrop.strategy import Strategy
from attrdrop.addrop.units import COMPILED, Units
from attrdrop.schedules import scheduled

STRATEGIES: dict[str, type[Strategy]] = {
    "GA": GradientAttribution,
    "IGA": IntegratedGradientAttribution,
    "AA": AttentionAttribution,
    "RD": RandomDropping,
}

EVALUATION_MODE = (
    "the model is in evaluation mode (as from_pretrained leaves it), so AD-DROP does nothing; call model.train() "
    "before training"
)
NO_EPOCH = (
    "with cross_tuning the first epochs are plain training, and without start_epoch training stays in epoch 1: "
    "nothing will be dropped until start_epoch({}); call start_epoch(epoch) at the beginning of each epoch, or set "
    "alternate='steps' or cross_tuning=False"
)
CAPTURED = (
    "a CUDA graph is being captured, and every replay would drop the same positions; create this ADDrop with "
    "capturable=True"
)
PARTLY_SHARDED = (
    "sample_share must be 1 if parameters are sharded (FSDP, ZeRO-3), got {}: a process that draws no "
    "sample would leave the others waiting in pass 1"
)
PARTLY_IMAGES = (
    "sample_share must be 1 if the first dimension of pixel_values differs from that of the batch, {} for {} samples, "
    "got {}"
)
NOT_CAPTURABLE = "capturable must be False if {}"


class ADDrop:
    """Runs training steps of a transformers model with AD-DROP.

    ::

        addrop = attrdrop.ADDrop(model, p=0.3, q=0.3)
        for epoch in range(1, epochs + 1):
            addrop.start_epoch(epoch)
            for batch in loader:
                out = addrop(**batch)
                out.loss.backward(); optimizer.step(); optimizer.zero_grad()

    Args:
        model: a transformers model with ``attn_implementation="attrdrop"``, also inside PEFT, DistributedDataParallel
            or torch.compile, or your own module around one. In encoder-decoder models the encoder's self-attention is
            masked by default. DeBERTa (v1 to v3) and MPNet ignore that setting; their attention modules are adapted
            here instead.
        config: an :class:`ADDropConfig`; or pass its fields as keywords.
        accumulation_steps: calls per optimizer step. Samples of one optimizer step are numbered consecutively, so the
            masks do not depend on how it is split over calls and processes.
        capturable: a step may be captured in a CUDA graph, with new draws in each replay. Samples are then numbered
            across the whole training, by a counter on their device, and the seed is the same in all steps. From the
            second step on, masks differ from those without it; see docs/howto/cuda_graphs.md.
        count_dead: with GA and IGA, :meth:`statistics` counts queries without a gradient separately. This reads dO and
            the mask of every layer once more, at a tenth of the cost of the mask itself.

    Raises:
        TypeError: the model is not from transformers. ValueError: its attention cannot be reached, a field of the
            configuration is wrong, or cannot be combined with capturable.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ADDropConfig | None = None,
        *,
        accumulation_steps: int = 1,
        capturable: bool = False,
        count_dead: bool = False,
        **fields: Any,
    ):
        if config is not None and fields:
            raise TypeError(f"give either config or its fields, got both config and {', '.join(fields)}")
        self.config = config if config is not None else ADDropConfig(**fields)
        check_positive_int("accumulation_steps", accumulation_steps)
        if capturable:
            _check_capturable(self.config)
        self.model = model
        self.accumulation_steps = accumulation_steps
        self.capturable, self.count_dead = bool(capturable), bool(count_dead)
        self.epoch = 1
        self._scope = attention_scope(model, self.config.attention)
        self._counter = DropCounter(self.capturable)
        self._units = Units(self.config.units, unwrap(model))
        self._strategy = STRATEGIES[self.config.attribution](self.config, self._scope, self._counter, self._units)
        self._step = self._calls = 0
        self._samples = Tally(on_device=self.capturable)  # numbered so far, of this step or of all
        self._was_told_epoch = False
        self._warnings: set[str] = set()  # that were given

    def start_epoch(self, epoch: int) -> None:
        """Sets the current epoch, counted from 1; cross-tuning depends on it, unless it alternates by steps."""
        if not is_int(epoch) or epoch < 1:
            raise ValueError(f"epoch must be an int of at least 1, got {epoch!r}")
        self.epoch, self._was_told_epoch = int(epoch), True
        if self._calls:
            self.start_step(self._step + 1)

    def start_step(self, step: int) -> None:
        """Sets the current optimizer step; without it, every ``accumulation_steps`` calls begin a new one."""
        check_size("step", step)
        if step != self._step:
            self._step, self._calls = int(step), 0
            if not self.capturable:
                self._samples.set(0)

    @property
    def is_active(self) -> bool:
        """Whether a training step would take two passes now."""
        return self.config.has_masks(self.epoch, self._step)

    @outside_graphs
    def __call__(self, *arguments: Any, **batch: Any) -> Any:
        """The model's output for a batch of keyword arguments, under AD-DROP's masks if they apply."""
        if arguments:
            raise TypeError("pass the batch as keywords, as in addrop(**batch) or addrop(input_ids=..., labels=...)")
        masks = self.attribute(**batch)
        self._end_call()
        return self.model(**batch) if masks is None else self.model(**batch, attrdrop=masks)

    @outside_graphs
    def attribute(self, **batch: Any) -> Pass2 | None:
        """Pass 1 only: returns the object to pass to the model as ``attrdrop=...``, or None if the step is a plain one.

        A step is plain outside AD-DROP epochs, in evaluation mode, if p or q is 0, between the steps of
        ``mask_every``, and if ``sample_share`` draws no sample.
        """
        if not self.model.training:
            if torch.is_grad_enabled():
                self._warn(EVALUATION_MODE)
            return None
        size, device = _batch_size(batch)
        first = self._number(size, device) if self.is_active or self.capturable else 0
        if not self.is_active:
            is_turn = self.config.is_active(self.epoch, self._step)
            if not is_turn and self.config.alternate == "epochs" and not self._was_told_epoch:
                self._warn(NO_EPOCH.format(self.config.every + 1))
            return None
        p, q = (scheduled(name, getattr(self.config, name), self._step) for name in ("p", "q"))
        if p == 0 or q == 0:
            return None
        if is_capturing() and not self.capturable:
            raise ValueError(CAPTURED)
        if "feed-forward" in self._units and is_compiled(self.model):
            raise ValueError(COMPILED)
        seed = derive_seed(self.config.seed, 0 if self.capturable else self._step)
        part = self._part(batch, first, size, seed, device)
        if part is not None and part.count == 0:
            return None
        ids = _numbers(first, size, device)
        draws = Draws(p, q, seed, ids, self.config.keys, self.config.region, self.count_dead, self._units, part)
        if part is None:
            sites = self._strategy.attribute(unwrap(self.model), batch, draws)  # pass 1
        else:
            sites = self._strategy.attribute(unwrap(self.model), part.of(batch), draws.of_part())
        masks = self._strategy.mask(sites, draws)  # pass 2, but for running it
        self._counter.steps.add(1, device)
        return masks

    def statistics(self) -> DropStatistics:
        """What was dropped on this process since the last reset. Synchronises with the device."""
        return self._counter.statistics()

    def reset_statistics(self) -> None:
        self._counter.reset()

    def state_dict(self) -> dict[str, int]:
        """The position in training, to resume with the same masks. With capturable it synchronises with the device."""
        return {"epoch": self.epoch, "step": self._step, "calls": self._calls, "samples": int(self._samples)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self._step, self._calls = state["epoch"], state["step"], state["calls"]
        self._samples.set(state["samples"])
        self._was_told_epoch = True

    def _part(
        self, batch: Mapping[str, Any], first: int | Tensor, size: int, seed: int, device: torch.device
    ) -> Part | None:
        """The samples that pass 1 attributes, None where it is all of them."""
        if self.config.sample_share == 1:
            return None
        if is_sharded(self.model):
            raise ValueError(PARTLY_SHARDED.format(self.config.sample_share))
        images = batch.get("pixel_values")
        if isinstance(images, Tensor) and images.shape[0] != size:
            raise ValueError(PARTLY_IMAGES.format(images.shape[0], size, self.config.sample_share))
        part = Part.drawn(self.config.sample_share, seed, torch.arange(int(first), int(first) + size), device)
        return None if part.count == size else part

    def _number(self, size: int, device: torch.device) -> int | Tensor:
        """The number of this call's first sample, among those of the step on all processes."""
        held = held_by_all(size, self.model)
        first = self._samples.at(device) + sum(held[: process_rank()])
        self._samples.add(sum(held), device)
        return first

    def _end_call(self) -> None:
        if self.model.training:
            self._calls += 1
            if self._calls >= self.accumulation_steps:
                self.start_step(self._step + 1)

    def _warn(self, message: str) -> None:
        """Once."""
        if message not in self._warnings:
            self._warnings.add(message)
            warn(message)


def _check_capturable(config: ADDropConfig) -> None:
    """Refuses what replays of a captured step would get wrong."""
    scheduled_names = [name for name in ("p", "q") if callable(getattr(config, name))]
    if config.attribution == "IGA":
        raise ValueError(NOT_CAPTURABLE.format("attribution is 'IGA', which resets torch's generator"))
    if config.sample_share < 1:
        raise ValueError(NOT_CAPTURABLE.format("sample_share is below 1: the host draws how many samples that is"))
    if scheduled_names:
        what = f"{scheduled_names[0]} changes" if len(scheduled_names) == 1 else "p and q change"
        raise ValueError(NOT_CAPTURABLE.format(f"{what} with the step: replays would keep the captured value"))


def _numbers(first: int | Tensor, size: int, device: torch.device) -> Tensor:
    """first, first + 1 and so on, int64 (size,), without waiting for the device."""
    if isinstance(first, Tensor):
        return first + torch.arange(size, device=device)
    return torch.arange(first, first + size, device=device)


def _batch_size(batch: Mapping[str, Any]) -> tuple[int, torch.device]:
    main_inputs = (batch.get(name) for name in ("input_ids", "inputs_embeds", "pixel_values", "input_features"))
    for value in (*main_inputs, *batch.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0], value.device
    raise ValueError(f"the batch needs at least one tensor with a batch dimension, got {', '.join(batch) or 'nothing'}")
