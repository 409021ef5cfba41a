"""Another rate of the attention's own dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrdrop.lab.text.methods.rivals import Rival, check_rate
from attrdrop.lab.text.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

ATTENTION_DROPOUTS = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "dropout_rate",  # of T5 and its kin: one for all their dropout
)


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


def attention_dropout_options(config: Any, rate: float) -> dict[str, float]:
    """The option of ``from_pretrained`` that sets the dropout of attention in the model family of a configuration.

    T5 and its kin have one rate for all their dropout.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1], or the family has no such rate.
    """
    rate = check_rate(rate)
    name = next((name for name in ATTENTION_DROPOUTS if hasattr(config, name)), None)
    if name is None:
        raise ValueError(
            f"rate cannot be set: {type(config).__name__} has no dropout of attention ({', '.join(ATTENTION_DROPOUTS)})"
        )
    return {name: rate}
