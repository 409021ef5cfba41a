"""AD-DROP in models of transformers that hand no keyword down to all of their attention.

DeBERTa (v1 to v3) and MPNet have self-attention in code of their own. They never call the attention interface and hand
no keyword down to it. So :func:`adapt` takes over the forward of each self-attention module of one model, and a pass
travels there in the place of ``output_attentions``, the one argument that every layer hands on as it is. No state is
kept on the model: threads, and layers that run again under gradient checkpointing, each see the pass of their own call.

Models that are made of an encoder and a decoder model hand each keyword to one of them, by its prefix; both get a pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall, Pass
from attrdrop.addrop.untold import attends_untold
from attrdrop.ops import masked_attention


class Adapter(NamedTuple):
    """How a class of self-attention modules is run by AD-DROP.

    describe: takes the module and the arguments of its forward. finish: takes the module and the heads' joint output
    (B, n, H d), and gives what the module's forward returns.
    """

    describe: Callable[..., AttentionCall]
    finish: Callable[[nn.Module, Tensor], tuple]


class Carrier:
    """Holds a pass; false, so that whoever takes it for ``output_attentions`` gives no attention weights."""

    def __init__(self, carried: Pass):
        self.carried = carried

    def __bool__(self) -> bool:
        return False


def adapt(model: Any) -> bool:
    """Prepares a transformers model for ``model(..., attrdrop=...)``; False where it has no attention that needs it.

    Without a pass the model computes what it did before, bit for bit.
    """
    _hand_to_parts(model)
    modules = [(module, adapter) for module in model.modules() if (adapter := _adapter_of(module)) is not None]
    for module, adapter in modules:
        if getattr(module.forward, "func", None) is not _forward:
            module.forward = functools.partial(_forward, module, module.forward, adapter)
    if modules and _take_pass not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_take_pass, with_kwargs=True)
    return bool(modules)


def takes(module: nn.Module, keyword: str) -> bool:
    """Whether a module's forward takes this keyword."""
    parameters = inspect.signature(module.forward).parameters
    return keyword in parameters or any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values())


def _hand_to_parts(model: nn.Module) -> None:
    for module in model.modules():
        parts = PARTS.get(type(module).__name__)
        if parts is None or any(
            getattr(hook, "func", None) is _prefixed for hook in module._forward_pre_hooks.values()
        ):
            continue
        reached = [keyword for keyword, name in parts.items() if _can_be_told(getattr(module, name))]
        module.register_forward_pre_hook(functools.partial(_prefixed, tuple(reached)), with_kwargs=True)


def _can_be_told(part: nn.Module) -> bool:
    return takes(part, "attrdrop") or any(_adapter_of(module) is not None for module in part.modules())


def _prefixed(
    keywords: tuple[str, ...], _model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: attrdrop=... goes on under each of these keywords."""
    others = {name: value for name, value in kwargs.items() if name != "attrdrop"}
    carried = kwargs.get("attrdrop")
    return args, others if carried is None else {**others, **dict.fromkeys(keywords, carried)}


def _adapter_of(module: nn.Module) -> Adapter | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)  # FSDP2 makes subclasses
    return next((ADAPTERS[name] for name in names if name in ADAPTERS), None)


def _take_pass(model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of the whole model: attrdrop=... goes on as a carrier."""
    others = {name: value for name, value in kwargs.items() if name != "attrdrop"}
    carried = kwargs.get("attrdrop")
    if carried is None:
        return args, others
    wanted = others.get("output_attentions")
    if model.config.output_attentions if wanted is None else wanted:
        raise ValueError(
            f"{type(model).__name__} cannot return attention weights in an AD-DROP step, which never forms them; leave "
            "output_attentions out"
        )
    return args, {**others, "output_attentions": Carrier(carried)}


def _forward(module: nn.Module, original: Callable[..., tuple], adapter: Adapter, *args: Any, **kwargs: Any) -> tuple:
    """In the place of a self-attention module's forward."""
    carrier = next((value for value in (*args, *kwargs.values()) if isinstance(value, Carrier)), None)
    if carrier is None:
        attends_untold(module)
        return original(*args, **kwargs)
    call = adapter.describe(module, *args, **kwargs)
    out = carrier.carried.attend(call, lambda: _attend_plainly(call))
    return adapter.finish(module, out.flatten(2))


def _attend_plainly(call: AttentionCall) -> Tensor:
    """(B, n, H, d) by torch's attention; a query without a valid key attends to all of them, as in these models."""
    valid, bias = call.valid(), call.bias()
    if valid is not None:
        bias = torch.where(valid, call.query.new_zeros(()) if bias is None else bias, torch.finfo(call.query.dtype).min)
    out = masked_attention(
        call.query, call.key, call.value, None, bias=bias, scale=call.scale, dropout_p=call.dropout_p
    )
    assert isinstance(out, Tensor)  # a pair comes only with return_lse
    return out


def _dropout_p(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def _deberta(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: Carrier | None = None,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> AttentionCall:
    """DeBERTa: hidden_states (B, n, H d), attention_mask (B, 1, n, n), rel_embeddings (2 span, H d)."""
    if module.talking_head:
        raise ValueError("AD-DROP does not support DeBERTa's talking heads (talking_head=True), which mix all heads")
    if query_states is not None:
        raise ValueError("AD-DROP does not support DeBERTa's query_states")
    q, k, v = module.transpose_for_scores(module.in_proj(hidden_states)).chunk(3, dim=-1)  # (B, H, n, d)
    q = q + module.transpose_for_scores(module.q_bias[None, None]).to(q.dtype)  # under autocast not the bias's own
    v = v + module.transpose_for_scores(module.v_bias[None, None]).to(v.dtype)
    terms = 1 + len(module.pos_att_type)
    q = q * (q.shape[-1] * terms) ** -0.5  # the bias takes it scaled
    bias = None
    if module.relative_attention and terms > 1:
        bias = module.disentangled_att_bias(q, k, relative_pos, module.pos_dropout(rel_embeddings), terms)
    return AttentionCall(module, q, k, v, _nonzero(attention_mask), bias, 1.0, _dropout_p(module.dropout), False)


def _deberta_v2(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: Carrier | None = None,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> AttentionCall:
    """DeBERTa v2 and v3: as v1, but samples and heads are one dimension."""
    heads = module.num_attention_heads
    queries = hidden_states if query_states is None else query_states
    q = module.transpose_for_scores(module.query_proj(queries), heads)  # (B H, n, d)
    k = module.transpose_for_scores(module.key_proj(hidden_states), heads)
    v = module.transpose_for_scores(module.value_proj(hidden_states), heads)
    terms = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
    bias = None
    if module.relative_attention and terms > 1:
        bias = module.disentangled_attention_bias(q, k, relative_pos, module.pos_dropout(rel_embeddings), terms)
        bias = bias.unflatten(0, (-1, heads))
    q, k, v = (x.unflatten(0, (-1, heads)) for x in (q, k, v))
    scale = (q.shape[-1] * terms) ** -0.5
    return AttentionCall(module, q, k, v, _nonzero(attention_mask), bias, scale, _dropout_p(module.dropout), False)


def _nonzero(mask: Tensor) -> Tensor:
    """DeBERTa attends where its mask is not 0, also where that is a float; one tensor for all layers where it can."""
    return mask.bool() if mask.is_floating_point() else mask


def _mpnet(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: Carrier | None = None,
    **kwargs: Any,
) -> AttentionCall:
    """MPNet: hidden_states (B, n, H d), attention_mask added to the scores, position_bias (B, H, n, n)."""
    q, k, v = (
        projection(hidden_states).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)  # (B, H, n, d)
        for projection in (module.q, module.k, module.v)
    )
    return AttentionCall(module, q, k, v, attention_mask, position_bias, None, _dropout_p(module.dropout), False)


def _without_weights(_module: nn.Module, out: Tensor) -> tuple:
    return out, None


def _projected(module: Any, out: Tensor) -> tuple:
    return (module.o(out),)


_ENCODER_DECODER = {"attrdrop": "encoder", "decoder_attrdrop": "decoder"}
PARTS = {
    "EncoderDecoderModel": _ENCODER_DECODER,
    "VisionEncoderDecoderModel": _ENCODER_DECODER,
    "SpeechEncoderDecoderModel": _ENCODER_DECODER,
    "MusicgenMelodyForConditionalGeneration": {"text_encoder_attrdrop": "text_encoder", "decoder_attrdrop": "decoder"},
}  # of models made of models: by which keyword each part is told
ADAPTERS = {
    "transformers.models.deberta.modeling_deberta.DisentangledSelfAttention": Adapter(_deberta, _without_weights),
    "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": Adapter(
        _deberta_v2, _without_weights
    ),
    "transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention": Adapter(_mpnet, _projected),
}  # by the class's full name: transformers is not imported here
