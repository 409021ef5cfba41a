"""Whether a model's outputs in training mode are those of evaluation mode, in which relevance is taken."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attrdrop._core.modules import FORWARD_HOOKS, without_hooks
from attrdrop._core.warning import warn

_agreed: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()
"""Number of classes that both modes of a model give; None where it is not known in training mode."""


def check_modes(model: nn.Module, training: Collection[nn.Module], classes: int, run: Callable[[], Tensor]) -> None:
    """Refuses a model that gives other outputs in training mode, features instead of logits for instance.

    training: the modules that train but for this pass. classes: what evaluation mode gave. run: gives the logits of the
    same inputs. Costs one forward without gradients, the first time.
    """
    if _agreed.get(model, -1) in (classes, None):
        return
    try:
        with torch.no_grad(), _training(training), _copied_buffers(model), without_hooks(model, FORWARD_HOOKS):
            logits = run()
    except Exception as error:  # whatever the user's code raises
        _agreed[model] = None
        warn(
            f"{type(model).__name__} does not run in training mode on these inputs alone ({type(error).__name__}: "
            f"{error}), so it is unknown whether its outputs in evaluation mode, {classes} per sample, are the logits "
            "that it trains; select them with output="
        )
        return
    found = logits.shape[1]
    if found != classes:
        raise ValueError(
            f"{type(model).__name__} gives {classes} numbers per sample in evaluation mode, in which relevance is "
            f"taken, and {found} in training mode; pass output= to turn the former into logits, such as "
            "output=model.head"
        )
    _agreed[model] = classes


@contextlib.contextmanager
def _training(modules: Collection[nn.Module]) -> Iterator[None]:
    """Training mode, but for batch norms: those change no shape, may refuse one sample and may wait for processes."""
    modules = [module for module in modules if not isinstance(module, _BatchNorm)]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


@contextlib.contextmanager
def _copied_buffers(model: nn.Module) -> Iterator[None]:
    """What a forward in training mode writes into buffers is lost."""
    kept = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    for buffers, own in kept:
        buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in own.items()})
    try:
        yield
    finally:
        for buffers, own in kept:
            buffers.clear()
            buffers.update(own)
