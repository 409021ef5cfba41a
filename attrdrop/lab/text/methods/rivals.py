"""Regularisers that AD-DROP is compared with. In evaluation mode, and at rate 0, every one is the model's own loss.

The model stands on its device already.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop.addrop.config import ADDropConfig
from attrdrop.addrop.passes import AttentionCall
from attrdrop.addrop.scope import attention_scope, unreachable
from attrdrop.addrop.targets import is_regression
from attrdrop.lab.text.methods.base import ADDropMethod, Method
from attrdrop.lab.text.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

ATTENTION_DROPOUTS = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "dropout_rate",  # of T5 and its kin: one for all their dropout
)
Divergence = Callable[[Tensor, Tensor], Tensor]


class Rival(Method):
    """What changes plain training in every epoch, but not in evaluation mode."""

    is_active = True

    def __call__(self, **batch: Tensor) -> Tensor:
        return self._loss(batch) if self._applies() else self.model(**batch).loss

    def _applies(self) -> bool:
        return self.model.training

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss


class AttentionDropout(Rival):
    """Plain training of a model that was loaded with :func:`attention_dropout_options`.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1], or the model has no such rate or another one.
    """

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate)

    @classmethod
    def model_options(cls, settings: Settings, config: Any) -> dict[str, Any]:
        return super().model_options(settings, config) | attention_dropout_options(config, settings.rate)

    def __init__(self, model: Any, *, rate: float) -> None:
        super().__init__(model)
        ((name, rate),) = attention_dropout_options(model.config, rate).items()
        found = getattr(model.config, name)
        if found != rate:
            raise ValueError(f"rate must be the {name} that the model was loaded with, which is {found}; got {rate}")


class RDrop(Rival):
    """R-Drop (Liang et al., 2021): two dropout masks on each sample, whose predictions are drawn together.

    The loss is (CE_1 + CE_2) / 2 + consistency (KL(1 || 2) + KL(2 || 1)) / 2, which is half the paper's (Eq. 4) with
    alpha = 2 consistency. KL is the mean over samples, or over tokens whose label is not -100; for regression it is the
    squared difference. Both halves run as one batch of twice the size, under the model's own dropout.

    Raises:
        TypeError, ValueError: consistency is no finite number from 0 on; in a step, the model is a multi-label one.
    """

    step_work = 6

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, consistency=settings.consistency)

    def __init__(self, model: Any, *, consistency: float) -> None:
        super().__init__(model)
        self.consistency = _check_consistency(consistency)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.model(**{name: torch.cat([value, value]) for name, value in batch.items()})
        first, second = outputs.logits.chunk(2)
        return outputs.loss + self.consistency * _difference(
            self.model, first, second, batch["labels"], symmetric_divergence
        )


class _RandomRival(Rival):
    """Draws from a generator of its own, and counts what it drops."""

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate, seed=seed)

    def __init__(self, model: Any, rate: float, seed: int) -> None:
        super().__init__(model)
        self.rate = _check_rate(rate)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self._counts: Tensor | None = None

    def start_epoch(self, number: int) -> None:
        self._counts = None

    def statistics(self) -> dict[str, Any] | None:
        """How many could be dropped, how many were, and their ratio. Waits for the device."""
        if self._counts is None:
            return None
        valid, dropped = self._counts.tolist()
        return {"valid": valid, "dropped": dropped, "fraction_dropped": dropped / valid}

    def _applies(self) -> bool:
        if not self.model.training or self.rate == 0:
            return False
        if any(getattr(part, "gradient_checkpointing", False) for part in self.model.modules()):
            raise ValueError(
                f"{type(self).__name__} would draw anew where gradient checkpointing runs a layer again; turn gradient "
                "checkpointing off"
            )
        return True

    def _uniform(self, *shape: int) -> Tensor:
        """Float64 in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self._generator.device, dtype=torch.float64)

    def _count(self, valid: Tensor, dropped: Tensor) -> None:
        counts = torch.stack([valid.sum(), dropped.sum()])
        self._counts = counts if self._counts is None else self._counts + counts


class DropHead(_RandomRival):
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
        self._count(torch.ones_like(keep), ~keep)
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


class HiddenCut(_RandomRival):
    """In the manner of HiddenCut (Chen et al., 2021): a span of tokens cut from the output of each transformer block.

    The loss is CE(whole) + CE(cut) + consistency JS(whole, cut), of two forwards. In the second, each block's output is
    set to 0 for round(rate length) successive tokens of each sample, at least one and anywhere among those of the
    attention_mask (B, n), without which all count. The paper places spans by attention; here the place is random. JS is
    averaged like the KL of :class:`RDrop`. Of an encoder-decoder model the encoder's blocks. The statistics count
    tokens, in each block.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1], consistency no finite number from 0 on, or the model has no
            list of blocks with attention; in a step, the model is a multi-label one or gradient checkpointing is on.
    """

    step_work = 6

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate, consistency=settings.consistency, seed=seed)

    def __init__(self, model: Any, *, rate: float, consistency: float, seed: int = 0) -> None:
        super().__init__(model, rate, seed)
        self.consistency = _check_consistency(consistency)
        self._blocks = encoder_blocks(model)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        whole = self.model(**batch)
        hook = functools.partial(self._cut, batch.get("attention_mask"))
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(block.register_forward_hook(hook))
            cut = self.model(**batch)
        difference = _difference(self.model, whole.logits, cut.logits, batch["labels"], jensen_shannon)
        return whole.loss + cut.loss + self.consistency * difference

    def _cut(self, mask: Tensor | None, block: nn.Module, arguments: Any, output: Any) -> Any:
        """Forward hook: hidden states (B, n, D), alone or first in a tuple."""
        hidden = output[0] if isinstance(output, tuple) else output
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
        span = self._span(valid)
        self._count(valid, span)
        hidden = hidden.masked_fill(span.unsqueeze(-1), 0)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _span(self, valid: Tensor) -> Tensor:
        """Bool (B, n): the tokens to cut, successive among the valid ones."""
        length = valid.sum(-1)
        size = (self.rate * length.double()).round().long().clamp(min=1).minimum(length)
        start = (self._uniform(len(valid)) * (length - size + 1)).long()
        place = valid.cumsum(-1) - 1
        return valid & (place >= start[:, None]) & (place < (start + size)[:, None])


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
        rate = _check_rate(rate)
        super().__init__(model, ADDropConfig(attribution="RD", p=1.0, q=rate, cross_tuning=False, seed=seed))


def attention_dropout_options(config: Any, rate: float) -> dict[str, float]:
    """The option of ``from_pretrained`` that sets the dropout of attention in the model family of a configuration.

    T5 and its kin have one rate for all their dropout.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1], or the family has no such rate.
    """
    rate = _check_rate(rate)
    name = next((name for name in ATTENTION_DROPOUTS if hasattr(config, name)), None)
    if name is None:
        raise ValueError(
            f"rate cannot be set: {type(config).__name__} has no dropout of attention ({', '.join(ATTENTION_DROPOUTS)})"
        )
    return {name: rate}


def encoder_blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks of a model, of its encoder where it has a decoder too: what lists of modules with
    attention hold, lists within them aside.

    Raises:
        ValueError: there are none.
    """
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    blocks: list[nn.Module] = []
    seen: set[nn.Module] = set()
    for modules in encoder.modules():  # outer ones come first
        if isinstance(modules, nn.ModuleList) and modules not in seen:
            members = [member for member in modules if _holds_attention(member)]
            if members:
                blocks += members
                seen.update(modules.modules())
    if not blocks:
        raise ValueError(
            f"model must have a list of transformer blocks with attention, {type(model).__name__} has none"
        )
    return blocks


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """(KL(a || b) + KL(b || a)) / 2 of log-probabilities (N, C), the mean over N."""
    return (_kl(a, b) + _kl(b, a)) / 2


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """(KL(a || m) + KL(b || m)) / 2 of log-probabilities (N, C), the mean over N; m is the mean of both."""
    middle = torch.logaddexp(a, b) - math.log(2)
    return (_kl(a, middle) + _kl(b, middle)) / 2


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return functional.kl_div(b, a, reduction="batchmean", log_target=True)


def _difference(model: Any, first: Tensor, second: Tensor, labels: Tensor, divergence: Divergence) -> Tensor:
    """How much two predictions of a batch differ; logits (B, C) or (B, n, C), in float32 at least."""
    a, b = (_active(model, logits, labels) for logits in (first, second))
    a, b = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (a, b))
    if is_regression(a, model):
        return functional.mse_loss(a, b)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError("multi-label models have no single distribution over classes that could be kept consistent")
    return divergence(a.log_softmax(-1), b.log_softmax(-1))


def _active(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, C): the logits that the loss looks at, of every sample or of every token with a label."""
    if logits.dim() == 2:
        return logits
    if model.can_generate() and not model.config.is_encoder_decoder:  # a language model predicts the next token
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100]


def _holds_attention(module: nn.Module) -> bool:
    return any("Attention" in type(part).__name__ for part in module.modules())


def _check_consistency(value: float) -> float:
    value = _check_number("consistency", value, "from 0 on")
    if not 0 <= value < math.inf:
        raise ValueError(f"consistency must be a finite number from 0 on, got {value}")
    return value


def _check_rate(value: float) -> float:
    value = _check_number("rate", value, "in [0, 1]")
    if not 0 <= value <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {value}")
    return value


def _check_number(name: str, value: float, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number {wanted}, got {type(value).__name__}")
    return float(value)
