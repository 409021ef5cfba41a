"""The two walks: a forward in the mode, and the backward to where relevance is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._core.halves import saturated
from attrdrop._core.modules import BACKWARD_HOOKS, evaluation_mode, uncompiled, without_hooks
from attrdrop._core.sharded import whole_parameters
from attrdrop.lrp.checkpoints import without_checkpoints
from attrdrop.lrp.choices import Told
from attrdrop.lrp.composites import warn_of_unmatched
from attrdrop.lrp.engine import Propagation
from attrdrop.lrp.modes import check_modes
from attrdrop.lrp.request import Request, check, check_outcome
from attrdrop.lrp.rules import AbsGradient, Rule
from attrdrop.lrp.tokens import embedded, explained, targets


def propagate(request: Request) -> list[Tensor]:
    """Relevance at each of the request's places."""
    check(request)
    if not torch.compiler.is_compiling():
        warn_of_unmatched(request.rule, request.model)
    model, inputs, modules = request.model, request.inputs, request.modules
    rule = None if request.is_plain else request.rule
    propagation = Propagation(rule, request.attention, request.unknown, model, request.create_graph)
    caught: dict[int, Tensor] = {}

    if torch.compiler.is_compiling():
        if modules or model.training or request.has_tokens or request.create_graph:
            raise ValueError(
                "inside torch.compile the model must be in eval mode, inputs floating point, and stop_at, layers and "
                "create_graph are not supported"
            )
        x = inputs.detach().requires_grad_(True)
        return _walk_back(request, _run(request, x, propagation), [x], propagation)
    training = [module for module in model.modules() if module.training] if model.training else []
    embeddings: list[Tensor] = []
    with isolated(request, propagation):
        x = _leaf(request)
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(embedded(request, propagation, embeddings))
            for place, module in enumerate(modules):
                hooks.enter_context(catching(module, place, caught, propagation, request.stops))
            forward = _run(request, x, propagation)
        if training and request.output is None:
            classes = forward.logits.shape[1]
            check_modes(model, training, classes, lambda: _rows(request, request.call(inputs.detach().clone())))
        points = [caught_at(place, caught, module) for place, module in enumerate(modules)]
        found = _walk_back(request, forward, points or embeddings or [x], propagation)
    return found if points or not embeddings else [_of_tokens(request, found)]


def _of_tokens(request: Request, found: list[Tensor]) -> Tensor:
    """Relevance of tokens, from that of all the embeddings they have."""
    if request.per == "token":
        return torch.stack([relevance.sum(-1) for relevance in found]).sum(0)
    if len({relevance.shape for relevance in found}) > 1:
        raise ValueError("per='dimension' needs one embedding of the tokens, and the model has several; name one with "
                         "embedding=")  # fmt: skip
    return torch.stack(found).sum(0)


@contextlib.contextmanager
def isolated(request: Request, propagation: Propagation) -> Iterator[None]:
    """The model in evaluation mode, with gradients; afterwards all is as it was."""
    device = request.inputs.device
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(uncompiled())
        if request.create_graph:  # its other kernels have no gradient of their gradient
            stack.enter_context(nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(evaluation_mode(request.model))
        stack.enter_context(without_checkpoints())
        stack.enter_context(without_hooks(request.model, BACKWARD_HOOKS))
        stack.enter_context(whole_parameters(request.model))
        stack.callback(propagation.facts.clear)
        yield


def told(request: Request) -> list[Told]:
    """What each layer gets, from a forward alone."""
    check(request)
    propagation = Propagation(request.rule, request.attention, request.unknown, request.model)
    found: list[Told] = []
    propagation.choices.told = found
    with isolated(request, propagation), embedded(request, propagation, []), propagation:
        x = _leaf(request)
        propagation.start(x)
        request.call(x)
    return found


def _leaf(request: Request) -> Tensor:
    """The inputs; the graph begins there, unless it does at embeddings or at modules."""
    inputs = request.inputs
    if request.create_graph and inputs.requires_grad:
        return inputs.view_as(inputs)
    x = inputs.clone() if inputs.is_inference() else inputs.detach()
    return x if request.has_tokens else x.requires_grad_(not (request.modules and request.stops))


class _Forward(NamedTuple):
    """A forward with its graph. carrier: of what does not go through the inputs, if relevance is theirs."""

    x: Tensor
    carrier: Tensor | None
    logits: Tensor


def _run(request: Request, x: Tensor, propagation: Propagation) -> _Forward:
    """The forward from x."""
    carrier = None
    if not (request.modules or request.is_plain or request.has_tokens or request.create_graph):
        carrier = torch.zeros_like(x).requires_grad_(True)
    propagation.start(x, carrier)
    is_seen = request.has_tokens or (x.requires_grad and not request.is_plain)
    with propagation:
        outputs = request.call(x if is_seen else x.clone())  # it may change what it is given
        logits = _rows(request, outputs)
    logits = propagation.finished(logits)
    propagation.check_seen(logits, "the logits are")
    return _Forward(x, carrier, logits)


def _walk_back(request: Request, forward: _Forward, points: list[Tensor], propagation: Propagation) -> list[Tensor]:
    """The backward to the points, R = a c."""
    x, carrier, logits = forward
    check_outcome(request, logits, is_treated=propagation.linear_layers > 0 or not x.requires_grad)
    roots = points if carrier is None else [*points, carrier]
    seed = _seed(logits if request.create_graph else logits.detach(), targets(request), request.start)
    walk = contextlib.nullcontext() if propagation.walk is None else propagation.walk.on()
    try:
        with walk:
            grads = torch.autograd.grad(logits, roots, seed, allow_unused=True, create_graph=request.create_graph)
    except RuntimeError as error:
        if "inplace" in str(error):
            reason = "the model changes an activation in place that its gradient needs"
            raise ValueError(f"{reason}: {error}") from error
        raise
    points = points if request.create_graph else [point.detach() for point in points]
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
    return grad.abs() if isinstance(rule, AbsGradient) else point * grad


def _seed(logits: Tensor, target: Tensor | str, start: str) -> Tensor:
    """The coefficients c of the logits (N, classes); R = c times the logit."""
    classes = logits.argmax(1) if isinstance(target, str) else target
    onehot = (classes[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    if start == "contrastive":
        return onehot - logits.softmax(1)
    return onehot if start == "logit" else torch.where(logits == 0, 0, onehot / logits)


def _rows(request: Request, outputs: Any) -> Tensor:
    """The logits that are explained (M, classes), of what the model returns."""
    if request.output is not None:
        outputs = request.output(outputs)
    else:
        outputs = getattr(outputs, "logits", outputs)
        outputs = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model must return logits, got {type(outputs).__name__}; select them with output=")
    return explained(request, outputs)


@contextlib.contextmanager
def catching(
    module: nn.Module, place: int, caught: dict[int, Tensor], propagation: Propagation, stops: bool
) -> Iterator[None]:
    """Keeps the module's output in ``caught`` meanwhile; with stops the graph begins there."""

    def keep(module: nn.Module, arguments: Any, output: Any) -> Any:
        is_tensor = isinstance(output, Tensor)
        main = output if is_tensor else output[0] if type(output) in (tuple, list) and output else None
        if not isinstance(main, Tensor):
            given = f"{type(module).__name__}, which gives a {type(output).__name__}"
            raise ValueError(f"relevance needs modules that return a tensor, alone or first in a tuple, not {given}")
        with torch._C.DisableTorchFunction():
            main = propagation.finished(main)
            if stops:
                main = propagation.root(main)
                propagation.start(main, is_raw=False)
        caught[place] = main
        return main if is_tensor else type(output)((main, *output[1:]))

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def caught_at(place: int, caught: dict[int, Tensor], module: nn.Module) -> Tensor:
    if place not in caught:
        raise ValueError(f"the module {type(module).__name__} asked for did not run in the forward pass")
    return caught[place]
