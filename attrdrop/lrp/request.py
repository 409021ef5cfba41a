"""What is asked of the propagation, and whether it makes sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.checks import check_choice, check_tensor
from attrdrop._core.sharded import is_sharded
from attrdrop.lrp.engine import ATTENTIONS
from attrdrop.lrp.rules import AbsGradient, GradientTimesInput, Rule

STARTS = ("logit", "one", "contrastive")
UNKNOWN = ("error", "gradient")


PER = ("token", "dimension")


@dataclass(frozen=True)
class Request:
    """Relevance of what, for what and by which means: arguments of :func:`relevance`, and where it is read off.

    keyword: the model's name of inputs, where they are not its first. modules: relevance at their outputs, or at the
    inputs where there are none; stops: nothing below these is needed.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor | str
    rule: Rule
    start: str = "logit"
    attention: str = "attnlrp"
    unknown: str = "error"
    output: Callable[[Any], Tensor] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keyword: str | None = None
    embedding: str | nn.Module | None = None
    position: str | int | Tensor | None = None
    per: str = "token"
    create_graph: bool = False
    modules: Sequence[nn.Module] = ()
    stops: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain gradient that is wanted."""
        return isinstance(self.rule, (GradientTimesInput, AbsGradient))

    @property
    def has_tokens(self) -> bool:
        """Whether the inputs are integers, whose embeddings have relevance."""
        return not self.inputs.is_floating_point()

    def call(self, x: Tensor) -> Any:
        """What the model returns for x in the place of the inputs."""
        if self.keyword is None:
            return self.model(x, **self.arguments)
        return self.model(**{self.keyword: x}, **self.arguments)


MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def unpacked(
    inputs: Any, arguments: Mapping[str, Any] | None, of: str | None
) -> tuple[Any, dict[str, Any], str | None]:
    """Of a batch of keywords: the one that has relevance, the others but for labels, and its name."""
    others = dict(arguments or {})
    if not isinstance(inputs, Mapping):
        if of is not None:
            raise ValueError(f"of names an entry of a batch of keywords, but inputs are a {type(inputs).__name__}")
        return inputs, others, None
    named = [of] if of is not None else [name for name in MAIN if name in inputs]
    if not named or named[0] not in inputs:
        names = ", ".join(map(str, inputs))
        raise ValueError(f"of must name the entry of inputs to explain, one of {names}, got {of!r}")
    keyword = named[0]
    twice = sorted(set(inputs) & set(others))
    if twice:
        raise ValueError(f"arguments must not repeat entries of inputs, got {', '.join(twice)} in both")
    rest = {name: value for name, value in inputs.items() if name not in (keyword, "labels")}
    return inputs[keyword], {**rest, **others}, keyword


def check(request: Request) -> None:
    model, inputs, target, rule = request.model, request.inputs, request.target, request.rule
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_tensor("inputs", inputs)
    if not inputs.is_floating_point() and inputs.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"inputs must be floating point (normalised images, say), or int64 or int32 tokens, got {inputs.dtype}"
        )
    if not isinstance(request.create_graph, bool):
        raise TypeError(f"create_graph must be True or False, got {request.create_graph!r}")
    if request.create_graph and is_sharded(model):
        raise ValueError("create_graph does not support models with sharded parameters (FSDP, ZeRO)")
    if inputs.dim() < 2:
        raise ValueError(f"inputs must have a batch dimension and one more, got shape {tuple(inputs.shape)}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a rule or composite of attrdrop.lrp, got {rule!r}")
    for name, value, choices in (
        ("start", request.start, STARTS),
        ("attention", request.attention, ATTENTIONS),
        ("unknown", request.unknown, UNKNOWN),
        ("per", request.per, PER),
    ):
        check_choice(name, value, choices)
    if isinstance(target, str):
        if target != "pred":
            raise ValueError(f"target must be 'pred' or class indices, got {target!r}")
    elif not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != target_shape(request):
        got = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target must be int64 of shape {tuple(target_shape(request))} or 'pred', got {got}")
    elif target.device != inputs.device:
        raise ValueError(f"target must be on the device of inputs, {inputs.device}, got {target.device}")
    if can_look(inputs) and not torch.isfinite(inputs).all():
        raise ValueError("inputs hold NaN or infinite values")


def target_shape(request: Request) -> torch.Size:
    """A class for each sample, or for each place of a mask of places."""
    position = request.position
    is_mask = isinstance(position, Tensor) and position.dtype == torch.bool
    return position.shape if is_mask else request.inputs.shape[:1]  # type: ignore[union-attr]


def check_outcome(request: Request, logits: Tensor, is_treated: bool) -> None:
    """is_treated: some layer got a rule, or there is none below the modules to get one."""
    target = request.target
    if not request.is_plain and not is_treated:
        raise ValueError("the model has no linear layer (convolution, linear or matrix product) for a rule to treat")
    if not logits.requires_grad:
        raise ValueError("the logits do not depend on the inputs through anything that has a gradient")
    if isinstance(target, Tensor) and can_look(logits) and target.numel():
        low, high = target.aminmax()
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"target must lie in [0, {logits.shape[1]}), got {int(low)} to {int(high)}")


def can_look(x: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def submodule(name: str, model: nn.Module, wanted: str | nn.Module) -> nn.Module:
    if isinstance(wanted, nn.Module):
        if all(module is not wanted for module in model.modules()):
            raise ValueError(
                f"{name} must be a submodule of the model, got a {type(wanted).__name__} that is not in it"
            )
        return wanted
    try:
        return model.get_submodule(wanted)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"{name} must name a submodule such as {names}, got {wanted!r}") from None
