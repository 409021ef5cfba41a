"""The arms of an experiment: what each does in a training step."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import attrdrop
from attrdrop.lab.arms.settings import PLAIN
from attrdrop.lab.errors import InputError
from attrdrop.lab.settings import ADDROP, Settings

# Rough costs in forward passes, for the time left: forward and backward are 3, AD-DROP adds a forward and a walk back.
PLAIN_STEP = 3
ATTRIBUTION_COST = {"GA": 2, "AA": 1, "RD": 0}


class Method:
    """Plain training, and the base of what changes it."""

    is_active = False  # whether the steps of this epoch differ from plain ones

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def start_epoch(self, number: int) -> None:
        """Tells which epoch runs, counted from 1."""

    def __call__(self, **batch: Tensor) -> Tensor:
        """The training loss of a batch with labels."""
        return self.model(**batch).loss

    def statistics(self) -> dict[str, Any] | None:
        """What was dropped in this epoch, None where there is nothing to say."""
        return None


class ADDropMethod(Method):
    """`attrdrop.ADDrop`."""

    def __init__(self, model: nn.Module, config: attrdrop.ADDropConfig) -> None:
        super().__init__(model)
        self.addrop = attrdrop.ADDrop(model, config)

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return self.addrop.is_active

    def start_epoch(self, number: int) -> None:
        self.addrop.start_epoch(number)
        self.addrop.reset_statistics()

    def __call__(self, **batch: Tensor) -> Tensor:
        return self.addrop(**batch).loss

    def statistics(self) -> dict[str, Any] | None:
        found = self.addrop.statistics()
        return found.as_dict() if found.steps else None


def _addrop(model: nn.Module, settings: Settings, seed: int) -> Method:
    try:
        config = attrdrop.ADDropConfig(seed=seed, **settings.addrop_arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"--{error}.") from error  # its messages begin with the name of the field
    return ADDropMethod(model, config)


MAKERS: dict[str, Callable[[nn.Module, Settings, int], Method]] = {
    PLAIN: lambda model, settings, seed: Method(model),
    ADDROP: _addrop,
}


def make_method(arm: str, model: nn.Module, settings: Settings, seed: int) -> Method:
    """The method of an arm for a model. Raises InputError where it cannot work on it."""
    try:
        return MAKERS[arm](model, settings, seed)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{arm} cannot work on {settings.model}: {error}.") from error


def step_work(arm: str, settings: Settings, epoch: int) -> float:
    """Rough cost of a step in forward passes."""
    if arm == ADDROP and (epoch % 2 == 0 or not settings.cross_tuning):
        return PLAIN_STEP + ATTRIBUTION_COST.get(settings.attribution, 2 * settings.iga_steps)
    return PLAIN_STEP
