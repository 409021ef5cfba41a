"""AD-DROP (Yang et al., 2022): the two-pass training step around a transformers model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.distributed import process_count, process_rank
from attrdrop._core.modules import evaluation_mode, uncompiled, unwrap
from attrdrop._core.seeds import derive_seed
from attrdrop.addrop.adapters import adapt
from attrdrop.addrop.attention import AttentionPass, RandomPass, Survey
from attrdrop.addrop.integrated import IntegratedPass, ScaledPass
from attrdrop.addrop.passes import AttributionPass, Draws, MaskedPass, Site
from attrdrop.addrop.targets import Target, attribution_target, is_mean, predictions
from attrdrop.ops.keep_mask import KEYS, REGIONS
from attrdrop.schedules import Schedule, check_schedule, scheduled

ATTRIBUTIONS = ("GA", "IGA", "AA", "RD")
ATTENTIONS = ("encoder", "decoder", "cross")
CROSS_NAMES = ("cross", "encoder_attn", "encdec")  # in transformers, attention to the encoder's outputs
TARGETS = ("pseudo", "gold")
PASS1_MODES = ("train", "eval")


@dataclass(frozen=True)
class ADDropConfig:
    """Settings of AD-DROP.

    Attributes:
        p: share of each row in the candidate discard region, or a callable from the optimizer step to it.
        q: probability that a candidate is dropped, or such a callable.
        attribution: what ranks. "GA": the gradient of the target with respect to the attention probabilities (Eq. 5).
            "IGA": its integral times the probabilities (Eq. 3); for each masked layer ``iga_steps`` forwards and walks
            back. "AA": the scores, and so the probabilities before dropout; pass 1 needs no gradients. "RD": nothing,
            each position is dropped with probability p q; there is no pass 1.
        iga_steps: m of Eq. 3.
        iga_batch: how many of these steps run as one batch of so many times the size: the same work in fewer, larger
            kernels. More than 1 needs pass1="eval", since all steps have the same dropout, and no callable target.
        layers: "all", "first", or indices of attention layers, counted from the input, negative from the end.
        attention: which attention of an encoder-decoder model is masked: "encoder", its self-attention; "decoder", the
            decoder's self-attention; "cross"; or a list of them. Layers are counted over all of these.
        target: what is attributed. "pseudo": the logit of the predicted class (Eq. 4; for token-level logits minus
            the cross-entropy to the model's own prediction, for regression minus the loss). "gold": the same with the
            labels. Or a callable from (outputs, batch) to a scalar.
        pass1: "train" keeps dropout on in pass 1, as published; "eval" turns it off: cheaper and deterministic.
        cross_tuning: AD-DROP in even epochs only, plain training in odd ones (Alg. 1); epochs count from 1.
        keys: precision that ranks, see :func:`attrdrop.keep_mask`.
        region: "high", or "low" for the paper's prior experiment (Section 2.2).
        seed: seed of all draws.

    Target and pass1 say nothing to RD, nor the target to AA.

    Raises:
        ValueError, TypeError: a field is not as said above; the message names it.
    """

    p: Schedule = 0.3
    q: Schedule = 0.3
    attribution: str = "GA"
    iga_steps: int = 20
    iga_batch: int = 1
    layers: str | Sequence[int] = "all"
    attention: str | Sequence[str] = "encoder"
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
        for name in ("iga_steps", "iga_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.iga_batch > 1 and (self.pass1 != "eval" or callable(self.target)):
            raise ValueError(f"iga_batch must be 1 unless pass1 is 'eval' and target no callable, got {self.iga_batch}")
        attention = (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        if not attention:
            raise ValueError(f"attention must name at least one of {', '.join(map(repr, ATTENTIONS))}, got none")
        for name in attention:
            _check_choice("attention", name, ATTENTIONS, " or a list of them")
        object.__setattr__(self, "attention", attention)


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
            or torch.compile. In encoder-decoder models the encoder's self-attention is masked, if not told otherwise.
            DeBERTa (v1 to v3) and MPNet ignore that setting; their attention modules are adapted here instead.
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
        self._scope = _attention_scope(model, self.config.attention)
        self._modules: list[nn.Module] = []
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
        masks = self._masks(draws, batch)
        self._two_pass_steps += 1
        return masks

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

    def _count(self, counts: Tensor) -> None:
        self._counts = counts if self._counts is None else self._counts + counts

    def _survey(self, batch: Mapping[str, Any]) -> tuple[list[nn.Module], list[int]]:
        """The modules that attend, one entry a layer, found by one forward at the first call; and the masked layers."""
        if not self._modules:
            inner = unwrap(self.model)
            survey = Survey(self._scope.__contains__)
            with evaluation_mode(inner), uncompiled(), torch.no_grad():
                inner(**batch, attrdrop=survey)
            self._modules = survey.modules
        return self._modules, self._layers(len(self._modules))

    def _layers(self, count: int) -> list[int]:
        if not count:
            raise ValueError(_unreachable(unwrap(self.model)))
        return _resolve_layers(self.config.layers, count)

    def _masks(self, draws: Draws, batch: Mapping[str, Any]) -> MaskedPass:
        if self.config.attribution == "RD":
            modules, layers = self._survey(batch)
            return RandomPass(modules, layers, draws, self._count)
        sites = self._run_pass1(draws, batch)
        self._count(torch.stack([site.keep.counts for site in sites if site.keep is not None]).sum(0))
        return MaskedPass(sites, draws)

    def _run_pass1(self, draws: Draws, batch: Mapping[str, Any]) -> list[Site]:
        inner = unwrap(self.model)
        mode = evaluation_mode(inner) if self.config.pass1 == "eval" else contextlib.nullcontext()

        def run(attrdrop: Any) -> Any:
            return inner(**batch, attrdrop=attrdrop)

        if self.config.attribution == "AA":
            modules, layers = self._survey(batch)
            with torch.no_grad(), uncompiled(), mode:
                return AttentionPass(modules, layers, draws).run(run)
        with torch.enable_grad(), uncompiled(), mode:
            return self._walk_back(draws, batch, run)

    def _walk_back(self, draws: Draws, batch: Mapping[str, Any], run: Callable[[Any], Any]) -> list[Site]:
        inner, target = unwrap(self.model), self.config.target
        recorder = _RECORDERS[self.config.attribution](draws, self._scope.__contains__)
        outputs = recorder.run(run, inner)
        layers = self._layers(len(recorder.sites))
        recorder.attribute(attribution_target(outputs, batch, target, inner), layers)
        if isinstance(recorder, IntegratedPass):
            predicted = predictions(outputs)
            del outputs  # and the graph with them

            def score(scaled: ScaledPass) -> Tensor:
                inputs, labels = scaled.repeat(batch), scaled.repeat(predicted)
                outputs = inner(**inputs, attrdrop=scaled)
                found = attribution_target(outputs, inputs, target, inner, labels)
                return found * scaled.steps if is_mean(outputs, target, inner) else found

            recorder.integrate(score, self.config.iga_steps, self.config.iga_batch)
        return recorder.sites


_RECORDERS = {"GA": AttributionPass, "IGA": IntegratedPass}


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


def _attention_scope(model: nn.Module, attention: Sequence[str]) -> set[nn.Module]:
    """The modules whose attention is masked: all, or the parts of an encoder-decoder model that are named."""
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
    if getattr(pretrained.config, "is_encoder_decoder", False):
        return {module for name in attention for module in _part(pretrained, name)}
    if set(attention) != {"encoder"}:
        raise ValueError(
            f"attention is for encoder-decoder models, which {type(pretrained).__name__} is not; got {attention!r}"
        )
    return set(inner.modules())


def _part(model: Any, attention: str) -> set[nn.Module]:
    """The modules of one kind of attention in an encoder-decoder model."""
    if attention == "encoder":
        return set(model.get_encoder().modules())
    decoder = model.get_decoder()
    cross = {
        part
        for name, module in decoder.named_modules()
        if any(mark in name.lower() for mark in CROSS_NAMES)
        for part in module.modules()
    }
    if not cross:
        raise ValueError(
            f"attention {attention!r}: no module of {type(decoder).__name__} is named as a cross-attention "
            f"({', '.join(CROSS_NAMES)}), so self- and cross-attention cannot be told apart"
        )
    return cross if attention == "cross" else set(decoder.modules()) - cross


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
