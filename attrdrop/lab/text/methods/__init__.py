"""The arms of an experiment: what each does in a training step, and how its model is loaded."""

from collections.abc import Callable
from typing import Any

from torch import nn

import attrdrop
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import PLAIN
from attrdrop.lab.text.methods.base import ADDropMethod, Method
from attrdrop.lab.text.methods.rivals import (
    AttentionDropout,
    DropHead,
    DropKey,
    HiddenCut,
    RDrop,
    attention_dropout_options,
)
from attrdrop.lab.text.settings import (
    ADDROP,
    ATTENTION_DROPOUT,
    DROP_HEAD,
    DROP_KEY,
    HIDDEN_CUT,
    R_DROP,
    Settings,
)

__all__ = ["ADDropMethod", "Method", "make_method", "model_options", "step_work"]

ATTRIBUTION_WORK = {"GA": 2.0, "AA": 1.0, "RD": 0.0}  # a forward and a walk back, in forward passes


def _addrop(model: nn.Module, settings: Settings, seed: int) -> Method:
    return ADDropMethod(model, attrdrop.ADDropConfig(seed=seed, **settings.addrop_arguments))


METHODS: dict[str, tuple[type[Method], Callable[[nn.Module, Settings, int], Method]]] = {
    PLAIN: (Method, lambda model, settings, seed: Method(model)),
    ADDROP: (ADDropMethod, _addrop),
    ATTENTION_DROPOUT: (AttentionDropout, lambda model, settings, seed: AttentionDropout(model, rate=settings.rate)),
    R_DROP: (RDrop, lambda model, settings, seed: RDrop(model, consistency=settings.consistency)),
    DROP_HEAD: (DropHead, lambda model, settings, seed: DropHead(model, rate=settings.rate, seed=seed)),
    HIDDEN_CUT: (
        HiddenCut,
        lambda model, settings, seed: HiddenCut(model, rate=settings.rate, consistency=settings.consistency, seed=seed),
    ),
    DROP_KEY: (DropKey, lambda model, settings, seed: DropKey(model, rate=settings.rate, seed=seed)),
}


def make_method(arm: str, model: nn.Module, settings: Settings, seed: int) -> Method:
    """The method of an arm for a model. Raises InputError where it cannot work on it."""
    try:
        return METHODS[arm][1](model, settings, seed)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        message = str(error)
        if message.partition(" ")[0] in settings.__dataclass_fields__:  # it begins with the name of an option
            raise InputError(f"--{message}.") from error
        raise InputError(f"{arm} cannot work on {settings.model}: {message}.") from error


def model_options(arm: str, settings: Settings, config: Any) -> dict[str, Any]:
    """What `from_pretrained` is told for an arm; without ``attn_implementation``, torch's fused attention is taken."""
    options: dict[str, Any] = {"attn_implementation": METHODS[arm][0].ATTENTION}
    if arm == ATTENTION_DROPOUT:
        try:
            options |= attention_dropout_options(config, settings.rate)
        except ValueError as error:
            raise InputError(f"{arm} cannot work on {settings.model}: {error}.") from error
    return options


def step_work(arm: str, settings: Settings, epoch: int) -> float:
    """Rough cost of a step in forward passes, for the time left."""
    work = METHODS[arm][0].step_work
    if arm == ADDROP and (epoch % 2 == 0 or not settings.cross_tuning):
        work += ATTRIBUTION_WORK.get(settings.attribution, 2.0 * settings.iga_steps)
    return work
