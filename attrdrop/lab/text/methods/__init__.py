"""The arms of an experiment: what each does in a training step, its cost, and how its model is loaded."""

from typing import Any

from torch import nn

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import ADDROP, PLAIN
from attrdrop.lab.text.methods.attention_dropout import AttentionDropout
from attrdrop.lab.text.methods.base import ADDropMethod, Method
from attrdrop.lab.text.methods.child_tuning import ChildTuning
from attrdrop.lab.text.methods.drop_head import DropHead
from attrdrop.lab.text.methods.drop_key import DropKey
from attrdrop.lab.text.methods.hidden_cut import HiddenCut
from attrdrop.lab.text.methods.mixout import Mixout
from attrdrop.lab.text.methods.r_drop import RDrop
from attrdrop.lab.text.settings import (
    ATTENTION_DROPOUT,
    CHILD_TUNING,
    DROP_HEAD,
    DROP_KEY,
    HIDDEN_CUT,
    MIXOUT,
    R_DROP,
    Settings,
)

__all__ = ["METHODS", "ADDropMethod", "Method", "make_method", "model_options"]

METHODS: dict[str, type[Method]] = {
    PLAIN: Method,
    ADDROP: ADDropMethod,
    ATTENTION_DROPOUT: AttentionDropout,
    R_DROP: RDrop,
    DROP_HEAD: DropHead,
    HIDDEN_CUT: HiddenCut,
    DROP_KEY: DropKey,
    MIXOUT: Mixout,
    CHILD_TUNING: ChildTuning,
}


def make_method(arm: str, model: nn.Module, settings: Settings, seed: int) -> Method:
    """The method of an arm for a model. Raises InputError where it cannot work on it."""
    try:
        return METHODS[arm].make(model, settings, seed)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        message = str(error)
        name, _, rest = message.partition(" ")
        if name in settings.__dataclass_fields__:  # it begins with the name of an option
            raise InputError(f"--{name.replace('_', '-')} {rest}.") from error
        raise InputError(f"{arm} cannot work on {settings.model}: {message}.") from error


def model_options(arm: str, settings: Settings, config: Any) -> dict[str, Any]:
    """What `from_pretrained` is told for an arm. Raises InputError where the model has no such option."""
    try:
        return METHODS[arm].model_options(settings, config)
    except ValueError as error:
        raise InputError(f"{arm} cannot work on {settings.model}: {error}.") from error
