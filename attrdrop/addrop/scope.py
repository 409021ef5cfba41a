"""Which attention AD-DROP masks: the modules whose attention may be masked, and which of their layers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attrdrop._core.modules import unwrap
from attrdrop.addrop.adapters import adapt, takes

CROSS_NAMES = ("cross", "encoder_attn", "encdec")  # in transformers, attention to the encoder's outputs
MODALITIES = {"image": "vision_config", "audio": "audio_config"}  # of towers beside a language model


@dataclass(frozen=True)
class Part:
    """What a name in ``attention`` stands for: modules of some model inside."""

    model: nn.Module
    modules: set[nn.Module]


@dataclass(frozen=True)
class Scope:
    """By name, the parts whose attention may be masked; a module is in it that is in one of them."""

    parts: dict[str, Part]

    def __contains__(self, module: object) -> bool:
        return any(module in part.modules for part in self.parts.values())


def attention_scope(model: nn.Module, attention: Sequence[str]) -> Scope:
    """The parts of a transformers model that are named; of a model without parts, all of it."""
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
            "inside, because AD-DROP passes it the keyword attrdrop"
        )
    if _is_split(pretrained):
        raise ValueError(
            "AD-DROP does not run under tensor or pipeline parallelism, where a process has some of the heads or "
            "layers only and numbers them from 0; load the model without tp_plan and train it with FSDP or DeepSpeed"
        )
    is_adapted = adapt(pretrained)
    if not (is_adapted or pretrained._can_set_attn_implementation()):
        raise ValueError(unreachable(pretrained))
    parts = {name: _part(pretrained, name, attention) for name in attention}
    if set(parts) == {"encoder"} and parts["encoder"].model is pretrained:  # a model of one part
        parts["encoder"] = Part(pretrained, set(inner.modules()))
    for part in () if is_adapted else parts.values():
        _check_implementation(part, is_whole=part.model is pretrained)
    return Scope(parts)


def _is_split(model: Any) -> bool:
    """Whether a process has a part of the heads or layers, as from_pretrained leaves it."""
    sizes = getattr(model, "tp_size", None), getattr(getattr(model.config, "distributed_config", None), "pp_size", None)
    return any((size or 1) > 1 for size in sizes)


def _check_implementation(part: Part, is_whole: bool) -> None:
    model: Any = part.model
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        raise ValueError(unreachable(model))
    configs = (getattr(module, "config", None) for module in part.modules)
    chosen = {found for config in configs if (found := getattr(config, "_attn_implementation", None)) is not None}
    if chosen and not any(map(_is_ours, chosen)):
        which = "the model" if is_whole else f"the {type(model).__name__} inside"
        raise ValueError(
            f"{which} attends with {' and '.join(map(repr, sorted(chosen)))}; load it with "
            "attn_implementation='attrdrop' after 'import attrdrop.integrations.transformers', or call "
            "model.set_attn_implementation('attrdrop')"
        )


def _is_ours(implementation: str) -> bool:
    """By name, which on the hub of kernels is owner/attrdrop@revision."""
    return implementation.partition("@")[0].rpartition("/")[2] == "attrdrop"


def _part(model: Any, name: str, attention: Sequence[str]) -> Part:
    towers = _towers(model)
    if name == "vision":
        if "image" not in towers:
            raise ValueError(
                f"attention 'vision' needs a model with a vision tower, which {type(model).__name__} lacks"
            )
        return Part(towers["image"], set(towers["image"].modules()))
    if getattr(model.config, "is_encoder_decoder", False):
        return _half(model, name)
    language = model.get_decoder() if towers else model
    if getattr(language.config, "is_encoder_decoder", False):
        return _half(language, name)
    if name != "encoder":
        raise ValueError(f"attention is for encoder-decoder models, which {type(language).__name__} is not; got "
                         f"{attention!r}")  # fmt: skip
    return Part(language, set(language.modules()).difference(*(tower.modules() for tower in towers.values())))


def _towers(model: Any) -> dict[str, nn.Module]:
    """By modality, what encodes images or sounds beside a language model."""
    found = {}
    for modality, config in MODALITIES.items():
        if getattr(model.config, config, None) is not None and model.config.get_text_config() is not model.config:
            tower = model.get_encoder(modality=modality)
            if tower is not model and tower is not model.base_model:
                found[modality] = tower
    return found


def _half(model: Any, attention: str) -> Part:
    """One kind of attention in an encoder-decoder model."""
    if attention == "encoder":
        return Part(model.get_encoder(), set(model.get_encoder().modules()))
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
    return Part(decoder, cross if attention == "cross" else set(decoder.modules()) - cross)


def masked_layers(layers: str | Sequence[int], count: int) -> list[int]:
    """The layers to be masked, of so many that attend."""
    if isinstance(layers, str):
        return list(range(count)) if layers == "all" else [0]
    wrong = [index for index in layers if not -count <= index < count]
    if wrong:
        raise ValueError(f"layers has {wrong}, but the model has {count} attention layers: 0 to {count - 1}")
    return sorted({index % count for index in layers})


def unreachable(model: nn.Module) -> str:
    """What to say of a model that never calls the attention interface."""
    return (
        f"{type(model).__name__} computes attention in its own code and never calls transformers' attention interface, "
        "so AD-DROP cannot reach it; take a model that does (BERT, RoBERTa, ELECTRA, DistilBERT, ModernBERT, ViT, "
        "Llama and most others do) or that AD-DROP adapts (DeBERTa, MPNet)"
    )
