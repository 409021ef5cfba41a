"""``attn_implementation="attrdrop"`` for transformers, and a Trainer with AD-DROP. Importing this registers it."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AttentionInterface, AttentionMaskInterface, Trainer, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from attrdrop._core.warning import warn
from attrdrop.addrop import ADDrop, ADDropConfig, interface

NAME = "attrdrop"


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for the interface of transformers: plain SDPA, or attention under a pass of AD-DROP.

    Args:
        query (B, H, n_q, d), key and value (B, H_kv, n_k, d), attention_mask: bool or additive float, or None.
        attrdrop: the pass given to the model as ``model(..., attrdrop=...)``; None: plain attention.
        s_aux, sinks: attention sinks, under the names that models use.

    Returns:
        (B, n_q, H, d) contiguous, and None for the weights.

    Raises:
        ValueError: the model's attention has more than softmax(q kᵀ scale + mask + position_bias, with sinks) v.
    """
    plain = functools.partial(
        sdpa_attention_forward,
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs,
    )  # fmt: skip
    return interface.attention_forward(
        module, query, key, value, attention_mask, scaling, dropout, attrdrop, s_aux, sinks, lambda: plain()[0],
        **kwargs,
    )  # fmt: skip


def make_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask function of transformers' interface: boolean masks, but for MPNet, whose own code adds the mask."""
    if kwargs.get("allow_is_causal_skip") and not _says_is_causal(type(config)):
        kwargs["allow_is_causal_skip"] = False
    make = eager_mask if getattr(config, "model_type", None) == "mpnet" else sdpa_mask
    return make(*args, config=config, **kwargs)


@torch.compiler.assume_constant_result
def _says_is_causal(config_type: type) -> bool:
    """Whether a model's modules say by is_causal that they are causal, as those must that transformers lets use SDPA;
    only then may a mask be left out."""
    found: Any = MODEL_MAPPING.get(config_type, ())
    models = found if isinstance(found, tuple) else (found,)
    return bool(models) and all(model._supports_sdpa for model in models)


def register() -> None:
    """Registers ``attn_implementation="attrdrop"`` with transformers. Importing this module does it once."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)


class PassCounter(TrainerCallback):
    """Counts the passes over the training data, which cross-tuning takes for its epochs.

    The Trainer's own ``state.epoch`` moves on only after a step, and hardly where the data have no length.
    """

    def __init__(self, config: ADDropConfig):
        self.config = config
        self.number = 1
        self._has_warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        has_length = state.num_train_epochs != sys.maxsize
        self.number = int(state.epoch or 0) if has_length else 0  # without a length a resumed run starts from pass 1
        self.warn(state.num_train_epochs if has_length else None, state.max_steps)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.number += 1

    def warn(self, epochs: float | None, steps: int | None) -> None:
        """Once, where a run of so many epochs, None if that is not known, and steps may never come to AD-DROP."""
        message = None if self._has_warned else _never_active(self.config, epochs, steps)
        if message is not None:
            self._has_warned = True
            warn(f"with cross_tuning, {message}")


def _never_active(config: ADDropConfig, epochs: float | None, steps: int | None) -> str | None:
    every = config.every
    if not config.cross_tuning:
        return None
    if config.alternate == "steps":
        if steps is None or steps > every:
            return None
        return f"AD-DROP begins after {every} steps, so a run of {steps} is plain training; train longer or lower every"
    first = f"AD-DROP begins in epoch {every + 1}"
    cure = "set alternate='steps' or cross_tuning=False"
    if epochs is None:
        return (
            f"{first}, and for data without a length it is unknown whether {steps} steps (max_steps) reach it; a run "
            f"of one pass is plain training: {cure}"
        )
    if epochs > every:
        return None
    length = "one epoch" if epochs <= 1 else f"{epochs:g} epochs"
    counted = "" if steps is None else f" ({steps} steps)"
    return f"{first}, so a run of {length}{counted} is plain training; train longer, or {cure}"


class ADDropTrainer(Trainer):
    """The Trainer of transformers with AD-DROP in its training steps.

    Args:
        addrop: an :class:`attrdrop.ADDropConfig`; by default one with its default fields. All other arguments are those
            of Trainer. The fraction dropped, over all processes, is logged as ``addrop_fraction_dropped`` beside the
            loss.
    """

    def __init__(self, *args: Any, addrop: ADDropConfig | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("AD-DROP does not run under DataParallel; start one process per GPU with torchrun")
        split = getattr(self.accelerator, "parallelism_config", None)
        if split is not None and split.non_data_parallel_size > 1:
            raise ValueError(
                "AD-DROP needs each process to have whole samples and all heads, so parallelism_config must leave "
                "tensor, context and sequence parallelism off"
            )
        assert self.model is not None  # Trainer has made it by now
        self.addrop = ADDrop(self.model, addrop or ADDropConfig())
        self._passes = PassCounter(self.addrop.config)
        self.add_callback(self._passes)
        if self.args.max_steps <= 0:
            self._passes.warn(self.args.num_train_epochs, None)

    def call_model_init(self, *args: Any, **kwargs: Any) -> Any:
        model = super().call_model_init(*args, **kwargs)
        if hasattr(self, "addrop"):  # not in the constructor, which calls this before there is one
            self.addrop = ADDrop(model, self.addrop.config)
        return model

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if model.training:
            self.addrop.model = model
            self.addrop.start_epoch(self._passes.number)
            self.addrop.start_step(self.state.global_step)
            with self.compute_loss_context_manager():
                masks = self.addrop.attribute(**inputs)
            if masks is not None:
                inputs = {**inputs, "attrdrop": masks}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            found = self.addrop.statistics()
            self.addrop.reset_statistics()
            counts = torch.tensor([found.dropped, found.valid], device=self.args.device)
            dropped, valid = self.accelerator.reduce(counts, "sum").tolist()
            logs["addrop_fraction_dropped"] = dropped / max(valid, 1)
        super().log(logs, *args, **kwargs)


register()

__all__ = ["ADDropTrainer", "attention_forward", "register"]
