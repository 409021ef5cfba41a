"""``attn_implementation="attrdrop"`` for transformers, and a Trainer with AD-DROP. Importing this registers it."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from attrdrop.addrop import ADDrop, ADDropConfig
from attrdrop.addrop.passes import AttentionCall

NAME = "attrdrop"

_UNSUPPORTED = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "cache": "a paged key-value cache",
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attrdrop: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface: plain SDPA, or under a pass of AD-DROP.

    Args:
        query (B, H, n_q, d), key and value (B, H_kv, n_k, d), attention_mask: bool or additive float, or None.
        attrdrop: the pass, as handed to the model in ``model(..., attrdrop=...)``; None: plain attention.

    Returns:
        (B, n_q, H, d) contiguous, and None for the weights.
    """
    plain = functools.partial(
        sdpa_attention_forward,
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs,
    )  # fmt: skip
    if attrdrop is None:
        return plain()
    for name, what in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"AD-DROP does not support {what} ({name}) of {type(module).__name__}")
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
    )
    return attrdrop.attend(call, lambda: plain()[0]), None


def _expand_mask(mask: Tensor | None, n_k: int) -> Tensor | None:
    """A mask may broadcast over keys; bits may not."""
    if mask is None or mask.shape[-1] == n_k:
        return mask
    return mask.expand(*mask.shape[:-1], n_k)


def make_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask function of transformers' interface: boolean masks, but for MPNet, whose own code adds the mask."""
    make = eager_mask if getattr(config, "model_type", None) == "mpnet" else sdpa_mask
    return make(*args, config=config, **kwargs)


def register() -> None:
    """Makes ``attn_implementation="attrdrop"`` known to transformers. Done once when this module is imported."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)


class ADDropTrainer(Trainer):
    """transformers' Trainer with AD-DROP in its training steps.

    Args:
        addrop: an :class:`attrdrop.ADDropConfig`; default, its defaults. Everything else as for Trainer. The fraction
            dropped is logged as ``addrop_fraction_dropped`` beside the loss.
    """

    def __init__(self, *args: Any, addrop: ADDropConfig | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("AD-DROP does not run under DataParallel; start one process per GPU with torchrun")
        assert self.model is not None  # Trainer has made it by now
        self.addrop = ADDrop(self.model, addrop or ADDropConfig())
        if self.addrop.config.cross_tuning and self.args.max_steps <= 0 and self.args.num_train_epochs <= 1:
            warnings.warn(
                "with cross_tuning, AD-DROP runs in every second epoch, so a run of one epoch is plain training; train "
                "longer or set cross_tuning=False",
                stacklevel=2,
            )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if model.training:
            self.addrop.model = model
            self.addrop.start_epoch(int(self.state.epoch or 0) + 1)
            self.addrop.start_step(self.state.global_step)
            with self.compute_loss_context_manager():
                masks = self.addrop.attribute(**inputs)
            if masks is not None:
                inputs = {**inputs, "attrdrop": masks}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["addrop_fraction_dropped"] = self.addrop.statistics().fraction_dropped
            self.addrop.reset_statistics()
        super().log(logs, *args, **kwargs)


register()

__all__ = ["ADDropTrainer", "attention_forward", "register"]
