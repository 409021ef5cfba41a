"""Which attention AD-DROP masks: the modules whose attention may be masked, and which of their layers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from attrdrop._core.modules import unwrap
from attrdrop.addrop.adapters import adapt, takes

CROSS_NAMES = ("cross", "encoder_attn", "encdec")  # in transformers, attention to the encoder's outputs


def attention_scope(model: nn.Module, attention: Sequence[str]) -> set[nn.Module]:
    """The modules whose attention may be masked: all, or the parts of an encoder-decoder model that are named."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    inner = unwrap(model)
    pretrained: Any = next((m for m in inner.modules() if hasattr(type(m), "_can_set_attn_implementation")), None)
    if pretrained is None:
        raise TypeError(
            f"model must be a transformers model (PreTrainedModel), got {type(inner).__name__}; for your own attention "
            "use attrdrop.keep_mask and attrdrop.masked_attention directly"
        )
    if inner is not pretrained and not takes(inner, "attrdrop"):
        raise ValueError(
            f"{type(inner).__name__}.forward must take **kwargs and pass them on to the {type(pretrained).__name__} "
            "inside, for AD-DROP hands it the keyword attrdrop"
        )
    is_adapted = adapt(pretrained)
    if not (is_adapted or pretrained._can_set_attn_implementation()):
        raise ValueError(unreachable(pretrained))
    chosen = pretrained.config._attn_implementation
    if chosen != "attrdrop" and not is_adapted:
        raise ValueError(
            f"the model attends with {chosen!r}; load it with attn_implementation='attrdrop' after "
            "'import attrdrop.integrations.transformers', or call model.set_attn_implementation('attrdrop')"
        )
    if getattr(pretrained.config, "is_encoder_decoder", False):
        return {module for name in attention for module in _part(pretrained, name)}
    if set(attention) != {"encoder"}:
        raise ValueError(
            f"attention is for encoder-decoder models, which {type(pretrained).__name__} is not; got {attention!r}"
        )
    return set(inner.modules())


def _part(model: Any, attention: str) -> set[nn.Module]:
    """The modules of one kind of attention in an encoder-decoder model."""
    if attention == "encoder":
        return set(model.get_encoder().modules())
    decoder = model.get_decoder()
    cross = {
        part
        for name, module in decoder.named_modules()
        if any(mark in name.lower() for mark in CROSS_NAMES)
        for part in module.modules()
    }
    if not cross:
        raise ValueError(
            f"attention {attention!r}: no module of {type(decoder).__name__} is named as a cross-attention "
            f"({', '.join(CROSS_NAMES)}), so self- and cross-attention cannot be told apart"
        )
    return cross if attention == "cross" else set(decoder.modules()) - cross


def masked_layers(model: nn.Module, layers: str | Sequence[int], count: int) -> list[int]:
    """The layers to be masked, of so many that attend."""
    if not count:
        raise ValueError(unreachable(model))
    if isinstance(layers, str):
        return list(range(count)) if layers == "all" else [0]
    wrong = [index for index in layers if not -count <= index < count]
    if wrong:
        raise ValueError(f"layers has {wrong}, but the model has {count} attention layers: 0 to {count - 1}")
    return sorted({index % count for index in layers})


def unreachable(model: nn.Module) -> str:
    """What to say of a model whose attention no pass is told of."""
    return (
        f"{type(model).__name__} computes attention in its own code and never calls transformers' attention interface, "
        "so AD-DROP cannot reach it; take a model that does (BERT, RoBERTa, ELECTRA, DistilBERT, ModernBERT, ViT, "
        "Llama and most others do) or that AD-DROP adapts (DeBERTa, MPNet)"
    )
