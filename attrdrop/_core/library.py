"""Schemas of all operators. They stand here, in Python, so that they exist where nothing was compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

SCHEMAS = (
    "build_info() -> str",
    "pack_mask(Tensor mask) -> Tensor",
    "unpack_mask(Tensor bits, SymInt n) -> Tensor",
    "transpose_mask(Tensor rows, SymInt n_k) -> Tensor",
    "keep_mask(Tensor x, Tensor y, float p, float q, SymInt seed, int layer, Tensor? valid, bool is_causal, bool low,"
    " bool bf16_keys, Tensor? sample_ids, Tensor? weight_q, Tensor? weight_k, Tensor? weight_lse, float scale,"
    " Tensor? bias) -> (Tensor rows, Tensor cols, Tensor counts)",
    "random_keep_mask(Tensor like, SymInt batch, SymInt heads, SymInt n_q, SymInt n_k, float rate, SymInt seed,"
    " int layer, Tensor? valid, bool is_causal, Tensor? sample_ids) -> (Tensor rows, Tensor cols, Tensor counts)",
    "keep_scores(Tensor scores, float p, float q, SymInt seed, int layer, Tensor? valid, bool low, Tensor? sample_ids)"
    " -> (Tensor rows, Tensor counts)",
    "masked_attention(Tensor q, Tensor k, Tensor v, Tensor keep, Tensor? bias, float scale, float dropout_p,"
    " SymInt seed, Tensor? sample_ids) -> (Tensor out, Tensor lse)",
    "masked_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep,"
    " Tensor keep_cols, Tensor? bias, float scale, float dropout_p, SymInt seed, Tensor? sample_ids,"
    " bool needs_grad_bias) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias)",
    "ranked_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep,"
    " Tensor keep_cols, Tensor? bias, float scale, float dropout_p, SymInt seed, Tensor? sample_ids,"
    " bool needs_grad_bias, float p, float rate, SymInt mask_seed, int layer, bool low, bool bf16_keys)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor rows, Tensor cols, Tensor counts)",
    "attention_attribution(Tensor? grad_out, Tensor? v, Tensor? weight_q, Tensor? weight_k, Tensor? weight_lse,"
    " float scale, Tensor? bias, Tensor? valid, bool is_causal, int k)"
    " -> (Tensor values, Tensor indices)",
    "relevance_gate(Tensor z, Tensor? scale, Tensor? shift, bool relu) -> Tensor",
    "relevance_gate_backward(Tensor grad, Tensor y, Tensor? surrogate, Tensor? scale, float eps) -> Tensor",
    "occlude_blocks_(Tensor(a!) images, Tensor? relevance, Tensor? index, float p, float[] scale, float[] log_ratio,"
    " float alpha, int k_centers, bool shift, bool per_batch, bool keep, float value, Tensor? values, bool is_random,"
    " Tensor? source, Tensor? source_index, SymInt seed, Tensor? sample_ids) -> Tensor",
    "fill_blocks_(Tensor(a!) images, Tensor boxes, bool keep, float value, Tensor? values, bool is_random,"
    " Tensor? source, Tensor? source_index, SymInt seed, Tensor? sample_ids) -> ()",
    "occlude_points_(Tensor(a!) points, Tensor? relevance, Tensor? valid, float alpha, float beta, bool calibrated,"
    " int norm, int replacement, float value, Tensor? values, SymInt seed, Tensor? sample_ids) -> Tensor",
    "draw_images(Tensor sample_ids, float p, float alpha, SymInt seed, bool per_batch) -> Tensor",
    "farthest_point_sample(Tensor points, SymInt n, Tensor? valid, Tensor? start) -> Tensor",
    "ball_query(Tensor points, Tensor centres, float[] radius, int[] k, Tensor? valid) -> Tensor",
    "group_points(Tensor points, Tensor index, Tensor? centres) -> Tensor",
    "scatter_points(Tensor grad, Tensor index, SymInt size, Tensor? order, Tensor? starts) -> Tensor",
)

TRITON_SCHEMAS = (
    "attribution_rows(Tensor? grad_out, Tensor? v, Tensor? weight_q, Tensor? weight_k, Tensor? weight_lse,"
    " float scale, Tensor? bias, Tensor rows, Tensor? valid, bool is_causal) -> Tensor",
)

TRITON_KERNELS = {
    "pack_mask": "pack_mask",
    "unpack_mask": "pack_mask",
    "transpose_mask": "keep_mask",
    "keep_mask": "keep_mask",
    "random_keep_mask": "keep_mask",
    "keep_scores": "keep_mask",
    "masked_attention": "masked_attention",
    "masked_attention_backward": "masked_attention_backward",
    "attention_attribution": "attention_attribution",
    "attribution_rows": "attention_attribution",
    "relevance_gate": "relevance_gate",
    "relevance_gate_backward": "relevance_gate",
}
"""The operators ``torch.ops.attrdrop_triton.<name>``, for any device: in which module of attrdrop.triton_kernels the
function of that name stands."""

PACKAGE = __name__.removesuffix("._core.library")
NAMESPACE = "attrdrop"

library = torch.library.Library(NAMESPACE, "DEF")
triton_library: torch.library.Library = torch.library.Library(f"{NAMESPACE}_triton", "DEF")


def _triton_kernel(name: str) -> Callable:
    """Imports the kernel when it is first called: Triton takes long, and may be missing."""

    def call(*arguments):
        module = importlib.import_module(f"{PACKAGE}.triton_kernels.{TRITON_KERNELS[name]}")
        return getattr(module, name)(*arguments)

    return call


for schema in (*SCHEMAS, *TRITON_SCHEMAS):
    name = schema.split("(")[0]
    if schema in SCHEMAS:
        library.define(schema)
    if name in TRITON_KERNELS:
        triton_library.define(schema)
        triton_library.impl(name, _triton_kernel(name), "CompositeExplicitAutograd")


def namespace_of(backend: str) -> str:
    """Where the operators stand that serve a backend other than the reference."""
    return f"{NAMESPACE}_triton" if backend == "triton" else NAMESPACE


def operators(backend: str):
    """The operators that serve a backend other than the reference."""
    return getattr(torch.ops, namespace_of(backend))


def register_fake(name: str, *backends: str) -> Callable[[Callable], Callable]:
    """Decorates the fake of an operator, for every namespace that has it, or for that of some backends alone."""

    def register(fake: Callable) -> Callable:
        for namespace in map(namespace_of, backends or ("cpp", "triton")):
            if hasattr(getattr(torch.ops, namespace), name):
                torch.library.register_fake(f"{namespace}::{name}", fake)
        return fake

    return register


try:
    importlib.import_module(f"{PACKAGE}._C")  # registers the C++ implementations

    COMPILED_ERROR: str | None = None
except ImportError as error:
    COMPILED_ERROR = str(error)
