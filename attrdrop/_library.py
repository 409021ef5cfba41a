"""Schemas of all operators. They stand here, in Python, so that they exist where nothing was compiled."""

from __future__ import annotations

import torch

SCHEMAS = (
    "build_info() -> str",
    "pack_mask(Tensor mask) -> Tensor",
    "unpack_mask(Tensor bits, SymInt n) -> Tensor",
    "additive_mask(Tensor bits, SymInt n) -> Tensor",
    "transpose_mask(Tensor rows, SymInt n_k) -> Tensor",
    "keep_mask(Tensor x, Tensor y, float p, float q, SymInt seed, int layer, Tensor? valid, bool is_causal, bool low,"
    " bool bf16_keys, Tensor? sample_ids, Tensor? weight_q, Tensor? weight_k, Tensor? weight_lse, float weight_scale)"
    " -> (Tensor rows, Tensor cols, Tensor counts)",
    "softmax_dropout_(Tensor(a!) scores, Tensor? bias, Tensor? keep, float scale, float dropout_p, SymInt seed,"
    " Tensor? sample_ids) -> Tensor",
    "softmax_dropout_backward_(Tensor(a!) scores, Tensor(b!) grad, Tensor lse, Tensor delta, Tensor? bias,"
    " Tensor? keep, float scale, float dropout_p, SymInt seed, Tensor? sample_ids,"
    " bool needs_grad_bias) -> Tensor",
    "masked_attention(Tensor q, Tensor k, Tensor v, Tensor keep, Tensor? bias, float scale, float dropout_p,"
    " SymInt seed, Tensor? sample_ids) -> (Tensor out, Tensor lse)",
    "masked_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep,"
    " Tensor? bias, float scale, float dropout_p, SymInt seed, Tensor? sample_ids, bool needs_grad_bias)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias)",
    "attention_attribution(Tensor grad_out, Tensor v, Tensor? valid, bool is_causal, int k)"
    " -> (Tensor values, Tensor indices)",
)

library = torch.library.Library("attrdrop", "DEF")
for schema in SCHEMAS:
    library.define(schema)

try:
    from attrdrop import _C  # noqa: F401  (registers the C++ implementations)

    COMPILED_ERROR: str | None = None
except ImportError as error:
    COMPILED_ERROR = str(error)
