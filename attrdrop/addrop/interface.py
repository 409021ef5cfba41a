"""Attention as transformers' interface calls it, and told of a pass by a keyword. transformers is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall, attend_plainly
from attrdrop.addrop.untold import attends_untold

UNSUPPORTED = {
    "softcap": "soft-capped scores",
    "block_indices": "attention to selected blocks",
    "indices": "attention to selected keys",
    "cache": "a paged key-value cache",
}
"""What changes attention and comes beside its mask."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attrdrop: Any = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    plain: Callable[[], Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """:func:`attrdrop.masked_attention` under the model's mask and, where there is a pass, what that makes of it.

    Args and Returns as :func:`attrdrop.integrations.transformers.attention_forward`; plain: what attends without sinks
    where no pass does.

    Raises:
        ValueError: the model's attention is more than softmax(q kᵀ scale + mask + position_bias, with sinks) v.
    """
    sinks = s_aux if sinks is None else sinks
    _refuse_unsupported(module, kwargs)
    plain = plain if sinks is None else None
    if attrdrop is None:
        attends_untold(module)
        if plain is not None:
            return plain(), None
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    call = AttentionCall(
        module,
        query,
        key,
        value,
        _expand_mask(attention_mask, key.shape[2]),
        kwargs.get("position_bias"),
        scaling,
        dropout,
        bool(is_causal) and attention_mask is None and query.shape[2] > 1,
        sinks,
    )

    def attend() -> Tensor:
        return attend_plainly(call) if plain is None else plain()

    return attend() if attrdrop is None else attrdrop.attend(call, attend), None


def _refuse_unsupported(module: nn.Module, given: dict[str, Any]) -> None:
    """Whatever a model hands to attention without being asked about it would be left out of the result."""
    for name, value in given.items():
        if value is None or not (name in UNSUPPORTED or isinstance(value, nn.Parameter)):
            continue
        what = UNSUPPORTED.get(name, "a parameter")
        raise ValueError(
            f"attn_implementation='attrdrop' does not support {what} ({name}) of {type(module).__name__}; load the "
            "model with another one and train it without AD-DROP"
        )


def _expand_mask(mask: Tensor | None, n_k: int) -> Tensor | None:
    """A mask may broadcast over keys; bits may not."""
    if mask is None or mask.shape[-1] == n_k:
        return mask
    return mask.expand(*mask.shape[:-1], n_k)
