"""Relevance of a model's inputs and layers for its outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._core.checks import check_choice, check_tensor
from attrdrop._core.halves import saturated
from attrdrop._core.modules import BACKWARD_HOOKS, evaluation_mode, uncompiled, unwrap, without_hooks
from attrdrop._core.sharded import whole_parameters
from attrdrop.lrp.checkpoints import without_checkpoints
from attrdrop.lrp.engine import ATTENTIONS, Propagation
from attrdrop.lrp.modes import check_modes
from attrdrop.lrp.rules import AbsGradient, EpsilonPlusFlat, GradientTimesInput, Rule

STARTS = ("logit", "one", "contrastive")
UNKNOWN = ("error", "gradient")


@dataclass(frozen=True)
class _Request:
    """Relevance of what, for what and by which means: arguments of :func:`relevance`, and where it is read off.

    modules: at their outputs, or at the inputs where there are none; stops: nothing below these is needed.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor | str
    rule: Rule
    start: str
    attention: str
    unknown: str
    output: Callable[[Any], Tensor] | None
    arguments: Mapping[str, Any]
    modules: Sequence[nn.Module] = ()
    stops: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain gradient that is wanted."""
        return isinstance(self.rule, (GradientTimesInput, AbsGradient))


def relevance(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | str,
    *,
    rule: Rule | None = None,
    start: str = "logit",
    stop_at: str | nn.Module | None = None,
    attention: str = "attnlrp",
    unknown: str = "error",
    output: Callable[[Any], Tensor] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Tensor:
    """Layer-wise relevance propagation: how much each input element speaks for the target class.

    One forward in eval mode and one backward without weight gradients. Nothing of the model changes: parameters,
    gradients, buffers, training flags and random number generators are as before, also after an error. Models inside
    DistributedDataParallel and torch.compile are reached, autocast is respected. Blocks inside torch.utils.checkpoint
    run without it, and keep what their backward needs; hooks of modules on their backward do not run.

    Args:
        model: from (N, ...) floats to logits (N, classes), also inside an output object with ``logits`` or a tuple.
        inputs: (N, ...), floating point.
        target: int64 (N,), a class for each sample, or "pred" for the predicted ones.
        rule: a rule for every layer or a composite; default :func:`attrdrop.lrp.EpsilonPlusFlat`.
        start: relevance of the target's logit. "logit": its value; "one": 1; "contrastive": the logits against their
            softmax, (onehot - softmax) logits.
        stop_at: a submodule or its name: the relevance of its output is returned instead. The backward ends there and
            the layers below keep nothing for it. Of a module that runs several times, the last output counts.
        attention: "attnlrp" halves relevance at each product of two activations; "detach" sends all of it through the
            values and none through the attention probabilities.
        unknown: what to do about a function without a rule: "error", or "gradient" to pass the plain gradient.
        output: picks the logits from what the model returns in eval mode. A model in training mode whose outputs there
            are of another width, as those that give features in eval mode, is refused without it.
        arguments: further keyword arguments of the model.

    Returns:
        Relevance, shape of inputs (with stop_at: of that module's output), float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is not as said above, a layer has no rule, the model has no linear layer, or
            inputs hold NaN or infinity (looked for on the CPU only).
    """
    inner = unwrap(model)
    modules = [] if stop_at is None else [_submodule("stop_at", inner, stop_at)]
    rule = EpsilonPlusFlat() if rule is None else rule
    return _propagate(
        _Request(inner, inputs, target, rule, start, attention, unknown, output, arguments or {}, modules)
    )[0]


def layer_relevance(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | str,
    layers: Sequence[str],
    *,
    rule: Rule | None = None,
    start: str = "logit",
    attention: str = "attnlrp",
    unknown: str = "error",
    output: Callable[[Any], Tensor] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Relevance of the outputs of submodules, all from one pass; arguments and errors as :func:`relevance`.

    Args:
        layers: names of submodules, as in ``model.named_modules()``. A layer that a BatchNorm follows is one layer with
            it, with one rule; naming it makes the BatchNorm a layer of its own, naming the BatchNorm does not.

    Returns:
        By name, relevance of the shape of that module's output. Summed over space it is the relevance per channel:
        ``attrdrop.metrics.channel_relevance``.
    """
    inner = unwrap(model)
    modules = [_submodule("layers", inner, name) for name in layers]
    if not modules:
        raise ValueError("layers must name at least one submodule, got none")
    rule = EpsilonPlusFlat() if rule is None else rule
    found = _propagate(
        _Request(inner, inputs, target, rule, start, attention, unknown, output, arguments or {}, modules, stops=False)
    )
    return dict(zip(layers, found, strict=True))


def _propagate(request: _Request) -> list[Tensor]:
    """Relevance at each of the request's places."""
    _check(request)
    model, inputs, modules = request.model, request.inputs, request.modules
    propagation = Propagation(None if request.is_plain else request.rule, request.attention, request.unknown, model)
    caught: dict[int, Tensor] = {}

    if torch.compiler.is_compiling():
        if modules or model.training:
            raise ValueError(
                "inside torch.compile the model must be in eval mode, and stop_at and layers are not there"
            )
        x = inputs.detach().requires_grad_(True)
        return _walk_back(request, _run(request, x, propagation), [x], propagation)
    training = [module for module in model.modules() if module.training] if model.training else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(uncompiled())
        stack.enter_context(torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []))
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(without_checkpoints())
        stack.enter_context(without_hooks(model, BACKWARD_HOOKS))
        stack.enter_context(whole_parameters(model))
        x = inputs.clone() if inputs.is_inference() else inputs.detach()
        x.requires_grad_(not (modules and request.stops))
        stack.callback(propagation.facts.clear)
        with contextlib.ExitStack() as hooks:
            for place, module in enumerate(modules):
                hooks.enter_context(_catching(module, place, caught, propagation, request.stops))
            forward = _run(request, x, propagation)
        if training and request.output is None:
            classes = forward.logits.shape[1]
            check_modes(model, training, inputs, request.arguments, classes, lambda outputs: _logits(outputs, None))
        points = [_caught(place, caught, module) for place, module in enumerate(modules)] or [x]
        return _walk_back(request, forward, points, propagation)


class _Forward(NamedTuple):
    """A forward with its graph. carrier: of what does not go through the inputs, if relevance is theirs."""

    x: Tensor
    carrier: Tensor | None
    logits: Tensor


def _run(request: _Request, x: Tensor, propagation: Propagation) -> _Forward:
    """The forward from x."""
    carrier = None
    if not request.modules and not request.is_plain:
        carrier = torch.zeros_like(x).requires_grad_(True)
    propagation.start(x, carrier)
    is_seen = x.requires_grad and not request.is_plain
    with propagation:
        outputs = request.model(x if is_seen else x.clone(), **request.arguments)  # it may change what it is given
        logits = _logits(outputs, request.output)
    logits = propagation.finished(logits)
    propagation.check_seen(logits, "the logits are")
    return _Forward(x, carrier, logits)


def _walk_back(request: _Request, forward: _Forward, points: list[Tensor], propagation: Propagation) -> list[Tensor]:
    """The backward to the points, R = a c."""
    x, carrier, logits = forward
    _check_outcome(request, logits, is_treated=propagation.linear_layers > 0 or not x.requires_grad)
    roots = points if carrier is None else [*points, carrier]
    seed = _seed(logits.detach(), request.target, request.start)
    try:
        grads = torch.autograd.grad(logits, roots, seed, allow_unused=True)
    except RuntimeError as error:
        if "inplace" in str(error):
            reason = "the model changes an activation in place that its gradient needs"
            raise ValueError(f"{reason}: {error}") from error
        raise
    found = [_times(point, grad, request.rule) for point, grad in zip(points, grads, strict=False)]
    if carrier is not None and grads[1] is not None:
        found[0] = found[0] + grads[1].to(found[0].dtype)
    return found


def _times(point: Tensor, grad: Tensor | None, rule: Rule) -> Tensor:
    """R = a c, or the size of the gradient."""
    wide = torch.promote_types(point.dtype, torch.float32)
    if grad is None:
        return torch.zeros_like(point, dtype=wide)
    grad = saturated(grad, grad.dtype).to(wide)
    return grad.abs() if isinstance(rule, AbsGradient) else point.detach() * grad


def _seed(logits: Tensor, target: Tensor | str, start: str) -> Tensor:
    """The coefficients c of the logits (N, classes); R = c times the logit."""
    classes = logits.argmax(1) if isinstance(target, str) else target
    onehot = (classes[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    if start == "contrastive":
        return onehot - logits.softmax(1)
    return onehot if start == "logit" else torch.where(logits == 0, 0, onehot / logits)


def _logits(outputs: Any, pick: Callable[[Any], Tensor] | None) -> Tensor:
    if pick is not None:
        outputs = pick(outputs)
    else:
        outputs = getattr(outputs, "logits", outputs)
        outputs = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"the model must give logits of shape (N, classes), got {shape}; pick them with output=")
    return outputs


def _check(request: _Request) -> None:
    model, inputs, target, rule = request.model, request.inputs, request.target, request.rule
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_tensor("inputs", inputs)
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point (normalised images, say), got {inputs.dtype}")
    if inputs.dim() < 2:
        raise ValueError(f"inputs must have a batch dimension and one more, got shape {tuple(inputs.shape)}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a rule or composite of attrdrop.lrp, got {rule!r}")
    for name, value, choices in (
        ("start", request.start, STARTS),
        ("attention", request.attention, ATTENTIONS),
        ("unknown", request.unknown, UNKNOWN),
    ):
        check_choice(name, value, choices)
    if isinstance(target, str):
        if target != "pred":
            raise ValueError(f"target must be 'pred' or class indices, got {target!r}")
    elif not isinstance(target, Tensor) or target.dtype != torch.int64 or tuple(target.shape) != inputs.shape[:1]:
        got = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target must be int64 of shape ({inputs.shape[0]},) or 'pred', got {got}")
    elif target.device != inputs.device:
        raise ValueError(f"target must be on the device of inputs, {inputs.device}, got {target.device}")
    if _can_look(inputs) and not torch.isfinite(inputs).all():
        raise ValueError("inputs hold NaN or infinite values")


def _check_outcome(request: _Request, logits: Tensor, is_treated: bool) -> None:
    """is_treated: some layer got a rule, or there is none below the modules to get one."""
    target, count = request.target, request.inputs.shape[0]
    if not request.is_plain and not is_treated:
        raise ValueError("the model has no linear layer (convolution, linear or matrix product) for a rule to treat")
    if not logits.requires_grad:
        raise ValueError("the logits do not depend on the inputs through anything that has a gradient")
    if isinstance(target, Tensor) and _can_look(logits) and target.numel():
        low, high = target.aminmax()
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"target must lie in [0, {logits.shape[1]}), got {int(low)} to {int(high)}")
    if logits.shape[0] != count:
        raise ValueError(f"the model must give one row of logits a sample, {count}, got {logits.shape[0]}")


def _can_look(x: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _submodule(name: str, model: nn.Module, wanted: str | nn.Module) -> nn.Module:
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


@contextlib.contextmanager
def _catching(
    module: nn.Module, place: int, caught: dict[int, Tensor], propagation: Propagation, stops: bool
) -> Iterator[None]:
    """Keeps the module's output in ``caught`` meanwhile; with stops the graph begins there."""

    def keep(module: nn.Module, arguments: Any, output: Any) -> Any:
        is_tensor = isinstance(output, Tensor)
        main = output if is_tensor else output[0] if type(output) in (tuple, list) and output else None
        if not isinstance(main, Tensor):
            given = f"{type(module).__name__}, which gives a {type(output).__name__}"
            raise ValueError(
                f"relevance is there for modules that give a tensor, alone or first in a tuple, not {given}"
            )
        with torch._C.DisableTorchFunction():
            main = propagation.finished(main)
            if stops:
                main = main.detach().requires_grad_(True)
                propagation.start(main, is_raw=False)
        caught[place] = main
        return main if is_tensor else type(output)((main, *output[1:]))

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _caught(place: int, caught: dict[int, Tensor], module: nn.Module) -> Tensor:
    if place not in caught:
        raise ValueError(f"the module {type(module).__name__} asked for did not run in the forward pass")
    return caught[place]
