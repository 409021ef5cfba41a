"""AD-DROP (Yang et al., 2022): the two-pass training step around a transformers model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._adapters import adapt
from attrdrop._distributed import process_count, process_rank
from attrdrop._modules import evaluation_mode, uncompiled, unwrap
from attrdrop._passes import AttributionPass, Draws, MaskedPass, Site, derive_seed
from attrdrop.ops.keep_mask import KEYS, REGIONS
from attrdrop.schedules import Schedule, check_schedule, scheduled

Target = str | Callable[[Any, Mapping[str, Any]], Tensor]

ATTRIBUTIONS = ("GA",)
TARGETS = ("pseudo", "gold")
PASS1_MODES = ("train", "eval")


@dataclass(frozen=True)
class ADDropConfig:
    """Settings of AD-DROP.

    Attributes:
        p: share of each row in the candidate discard region, or a callable from the optimizer step to it.
        q: probability that a candidate is dropped, or such a callable.
        attribution: "GA", the gradient of the target with respect to the attention probabilities (Eq. 5).
        layers: "all", "first", or indices of attention layers, counted from the input, negative from the end.
        target: what is attributed. "pseudo": the logit of the predicted class (Eq. 4; for token-level logits minus
            the cross-entropy to the model's own prediction, for regression minus the loss). "gold": the same with the
            labels. Or a callable from (outputs, batch) to a scalar.
        pass1: "train" keeps dropout on in pass 1, as published; "eval" turns it off: cheaper and deterministic.
        cross_tuning: AD-DROP in even epochs only, plain training in odd ones (Alg. 1); epochs count from 1.
        keys: precision that ranks, see :func:`attrdrop.keep_mask`.
        region: "high", or "low" for the paper's prior experiment (Section 2.2).
        seed: seed of all draws.

    Raises:
        ValueError, TypeError: a field is not as said above; the message names it.
    """

    p: Schedule = 0.3
    q: Schedule = 0.3
    attribution: str = "GA"
    layers: str | Sequence[int] = "all"
    target: Target = "pseudo"
    pass1: str = "train"
    cross_tuning: bool = True
    keys: str = "auto"
    region: str = "high"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p", "q"):
            check_schedule(name, getattr(self, name))
        _check_choice("attribution", self.attribution, ATTRIBUTIONS)
        _check_choice("pass1", self.pass1, PASS1_MODES)
        _check_choice("keys", self.keys, KEYS)
        _check_choice("region", self.region, REGIONS)
        if not callable(self.target):
            _check_choice("target", self.target, TARGETS, " or a callable")
        if isinstance(self.layers, str):
            _check_choice("layers", self.layers, ("all", "first"), " or a list of indices")
        else:
            layers = tuple(self.layers)
            if not layers or any(isinstance(i, bool) or not isinstance(i, int) for i in layers):
                raise ValueError(f"layers must be 'all', 'first' or a non-empty list of indices, got {self.layers!r}")
            object.__setattr__(self, "layers", layers)


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
            or torch.compile. In encoder-decoder models the encoder's self-attention is masked. DeBERTa (v1 to v3) and
            MPNet ignore that setting; their attention modules are adapted here instead.
        config: an :class:`ADDropConfig`; or give its fields as keywords.
        accumulation_steps: calls per optimizer step. Samples of one optimizer step are numbered through, so the masks
            do not depend on how it is split over calls and processes.

    Raises:
        TypeError: the model is not from transformers. ValueError: its attention cannot be reached, or a field of the
            configuration is wrong.
    """

    def __init__(
        self, model: nn.Module, config: ADDropConfig | None = None, *, accumulation_steps: int = 1, **fields: Any
    ):
        if config is not None and fields:
            raise TypeError(f"give either config or its fields, got both config and {', '.join(fields)}")
        self.config = config if config is not None else ADDropConfig(**fields)
        if isinstance(accumulation_steps, bool) or not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be a positive int, got {accumulation_steps!r}")
        self.model = model
        self.accumulation_steps = accumulation_steps
        self.epoch = 1
        self._scope = _attention_scope(model)
        self._step = self._calls = self._samples = 0
        self._has_warned = False
        self._counts: Tensor | None = None
        self._two_pass_steps = 0

    def start_epoch(self, epoch: int) -> None:
        """Tells which epoch runs, counted from 1; cross-tuning depends on it."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
            raise ValueError(f"epoch must be an int from 1 on, got {epoch!r}")
        self.epoch = epoch
        if self._calls:
            self.start_step(self._step + 1)

    def start_step(self, step: int) -> None:
        """Tells which optimizer step runs; without it, every ``accumulation_steps`` calls begin a new one."""
        if step != self._step:
            self._step, self._calls, self._samples = step, 0, 0

    @property
    def is_active(self) -> bool:
        """Whether a training step would take two passes now."""
        return self.epoch % 2 == 0 or not self.config.cross_tuning

    def __call__(self, *arguments: Any, **batch: Any) -> Any:
        """The model's output for a batch of keyword arguments, under AD-DROP's masks where they apply."""
        if arguments:
            raise TypeError("give the batch as keywords, as in addrop(**batch) or addrop(input_ids=..., labels=...)")
        masks = self.attribute(**batch)
        self._end_call()
        return self.model(**batch) if masks is None else self.model(**batch, attrdrop=masks)

    def attribute(self, **batch: Any) -> MaskedPass | None:
        """Pass 1 alone: what to hand to the model as ``attrdrop=...``, or None where the step is a plain one.

        It is plain outside AD-DROP epochs, in evaluation mode, and where p or q is 0.
        """
        size, device = _batch_size(batch)
        first = self._samples + process_rank() * size
        self._samples += process_count() * size
        if not self.model.training:
            self._warn_about_evaluation_mode()
            return None
        if not self.is_active:
            return None
        p, q = (scheduled(name, getattr(self.config, name), self._step) for name in ("p", "q"))
        if p == 0 or q == 0:
            return None
        sample_ids = torch.arange(first, first + size, device=device)
        draws = Draws(p, q, derive_seed(self.config.seed, self._step), sample_ids, self.config.keys, self.config.region)
        sites = self._run_pass1(draws, batch)
        counts = torch.stack([site.keep.counts for site in sites if site.keep is not None]).sum(0)
        self._counts = counts if self._counts is None else self._counts + counts
        self._two_pass_steps += 1
        return MaskedPass(sites, draws)

    def statistics(self) -> DropStatistics:
        """What was dropped on this process since the last reset. Waits for the device."""
        valid, candidates, dropped, rescued = [0] * 4 if self._counts is None else self._counts.tolist()
        return DropStatistics(valid, candidates, dropped, rescued, self._two_pass_steps)

    def reset_statistics(self) -> None:
        self._counts, self._two_pass_steps = None, 0

    def state_dict(self) -> dict[str, int]:
        """The place in training, for resuming with the same masks."""
        return {"epoch": self.epoch, "step": self._step, "calls": self._calls, "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self._step = state["epoch"], state["step"]
        self._calls, self._samples = state["calls"], state["samples"]

    def _end_call(self) -> None:
        if self.model.training:
            self._calls += 1
            if self._calls >= self.accumulation_steps:
                self.start_step(self._step + 1)

    def _warn_about_evaluation_mode(self) -> None:
        if torch.is_grad_enabled() and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the model is in evaluation mode (as from_pretrained leaves it), so AD-DROP does nothing; call "
                "model.train() before training",
                stacklevel=4,
            )

    def _run_pass1(self, draws: Draws, batch: Mapping[str, Any]) -> list[Site]:
        inner = unwrap(self.model)
        recorder = AttributionPass(draws, self._scope.__contains__)
        mode = evaluation_mode(inner) if self.config.pass1 == "eval" else contextlib.nullcontext()
        with torch.enable_grad(), uncompiled(), mode:
            outputs = inner(**batch, attrdrop=recorder)
            if not recorder.sites:
                raise ValueError(_unreachable(inner))
            layers = _resolve_layers(self.config.layers, len(recorder.sites))
            target = attribution_target(outputs, batch, self.config.target, inner)
            return recorder.attribute(target, layers)


def attribution_target(outputs: Any, batch: Mapping[str, Any], target: Target, model: nn.Module) -> Tensor:
    """The scalar F whose gradient ranks the attention positions (Eq. 4 and the paper's Appendix A)."""
    if callable(target):
        return target(outputs, batch)
    logits = getattr(outputs, "logits", None)
    labels: Any = batch.get("labels")
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"target {target!r} needs a model whose output has logits, {type(model).__name__} gives "
            f"{', '.join(outputs.keys()) if hasattr(outputs, 'keys') else type(outputs).__name__}; give a callable"
        )
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ValueError("multi-label models have no single predicted class; give target as a callable")
    is_regression = getattr(config, "problem_type", None) == "regression" or logits.shape[-1] == 1
    if is_regression:
        if getattr(outputs, "loss", None) is None:
            raise ValueError("a regression model is attributed through its loss: the batch needs labels")
        return -outputs.loss.float()
    if logits.dim() == 2:
        if target == "gold" and labels is None:
            raise ValueError("target 'gold' needs labels in the batch")
        chosen = logits.argmax(-1) if target == "pseudo" else labels.view(-1)
        return logits.gather(-1, chosen.unsqueeze(-1)).float().sum()
    return -_token_loss(logits, batch, labels, target)


def _token_loss(logits: Tensor, batch: Mapping[str, Any], labels: Tensor | None, target: str) -> Tensor:
    """Cross-entropy of (B, n, C) logits over the active tokens, to the labels or the model's own prediction."""
    shape = logits.shape[:-1]
    attention_mask = batch.get("attention_mask")
    chosen = logits.argmax(-1)
    if labels is not None and labels.shape == shape:
        chosen = labels if target == "gold" else chosen.masked_fill(labels.eq(-100), -100)
    elif target == "gold":
        found = None if labels is None else tuple(labels.shape)
        raise ValueError(f"target 'gold' needs labels of shape {tuple(shape)} for these logits, got {found}")
    elif attention_mask is not None and attention_mask.shape == shape:
        chosen = chosen.masked_fill(attention_mask == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), chosen.flatten(), ignore_index=-100)


def _check_choice(name: str, value: object, choices: Sequence[str], more: str = "") -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}{more}, got {value!r}")


def _resolve_layers(layers: str | Sequence[int], count: int) -> list[int]:
    if isinstance(layers, str):
        return list(range(count)) if layers == "all" else [0]
    wrong = [index for index in layers if not -count <= index < count]
    if wrong:
        raise ValueError(f"layers has {wrong}, but the model has {count} attention layers: 0 to {count - 1}")
    return sorted({index % count for index in layers})


def _attention_scope(model: nn.Module) -> set[nn.Module]:
    """The modules whose attention is masked: all, or the encoder's in an encoder-decoder model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    inner = unwrap(model)
    pretrained: Any = next((m for m in inner.modules() if hasattr(type(m), "_can_set_attn_implementation")), None)
    if pretrained is None:
        raise TypeError(
            f"model must be a transformers model (PreTrainedModel), got {type(inner).__name__}; for your own attention "
            "use attrdrop.keep_mask and attrdrop.masked_attention directly"
        )
    is_adapted = adapt(pretrained)
    if not (is_adapted or pretrained._can_set_attn_implementation()):
        raise ValueError(_unreachable(pretrained))
    chosen = pretrained.config._attn_implementation
    if chosen != "attrdrop" and not is_adapted:
        raise ValueError(
            f"the model attends with {chosen!r}; load it with attn_implementation='attrdrop' after "
            "'import attrdrop.integrations.transformers', or call model.set_attn_implementation('attrdrop')"
        )
    scope = pretrained.get_encoder() if getattr(pretrained.config, "is_encoder_decoder", False) else inner
    return set(scope.modules())


def _unreachable(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} computes attention in its own code and never calls transformers' attention interface, "
        "so AD-DROP cannot reach it; take a model that does (BERT, RoBERTa, ELECTRA, DistilBERT, ModernBERT, ViT, "
        "Llama and most others do) or that AD-DROP adapts (DeBERTa, MPNet)"
    )


def _batch_size(batch: Mapping[str, Any]) -> tuple[int, torch.device]:
    main_inputs = (batch.get(name) for name in ("input_ids", "inputs_embeds", "pixel_values", "input_features"))
    for value in (*main_inputs, *batch.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0], value.device
    raise ValueError(f"the batch needs at least one tensor with a batch dimension, got {', '.join(batch) or 'nothing'}")
