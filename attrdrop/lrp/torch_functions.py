"""What torch functions mean for relevance, by name: without underscores at the ends, so that Tensor.add_,
Tensor.__iadd__ and torch.add are "add"."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
LINEAR = CONVOLUTIONS | {"linear"}

PROPERTIES = {"T", "mT", "H", "mH", "data", "real"}
"""Attributes of a tensor that are tensors with its values."""

SIZES = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "is_contiguous",
    "is_floating_point", "is_complex", "is_conj", "is_neg", "is_inference", "get_device", "len", "hash",
    "is_same_size", "is_tensor", "requires_grad", "untyped_storage", "storage_type", "data_ptr", "is_set_to",
    "is_pinned", "is_shared", "is_signed", "is_coalesced", "is_distributed", "dim_order", "result_type", "can_cast",
}  # fmt: skip
"""Say something about a tensor without its values."""

CONSTANTS = {
    "detach", "data", "item", "tolist", "numpy", "repr", "str", "format", "bool", "int", "eq", "ne", "lt", "gt", "le",
    "ge", "isnan", "isfinite", "isinf", "isclose", "allclose", "equal", "argmax", "argmin", "argsort", "nonzero", "any",
    "all", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "new_tensor", "sign", "floor", "ceil", "round", "trunc", "fix", "floor_divide", "floordiv",
    "logical_not", "logical_and", "logical_or", "logical_xor", "searchsorted", "bucketize", "unique", "count_nonzero",
    "bincount", "histc", "signbit", "isneginf", "isposinf", "isin", "long", "short", "char", "byte", "multinomial",
    "new", "is_nonzero", "index", "contains", "array", "nested_tensor_from_mask_left_aligned",
}  # fmt: skip
"""Results are no activations: comparisons, indices, constants."""

HOOKS: dict[str, Callable[[], Any]] = {
    "register_hook": lambda: RemovableHandle(OrderedDict()),
    "register_post_accumulate_grad_hook": lambda: RemovableHandle(OrderedDict()),
    "retain_grad": lambda: None,
}
"""What watches the gradient of training: not done in an attribution, whose gradient is another."""

MOVES = {
    "reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "t", "T", "mT", "H", "mH", "adjoint", "contiguous", "clone", "pad", "getitem",
    "select", "index_select", "gather", "take_along_dim", "take", "expand", "expand_as", "broadcast_to", "unsqueeze",
    "squeeze", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "roll", "flip", "fliplr",
    "flipud", "rot90", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "repeat",
    "repeat_interleave", "tile", "unfold", "diagonal", "masked_select", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "to", "type", "type_as", "float", "half", "bfloat16", "double", "cuda", "cpu", "atleast_1d",
    "atleast_2d", "atleast_3d", "iter", "masked_fill", "constant_pad_nd", "native_channel_shuffle",
    "ravel", "hsplit", "vsplit", "dsplit", "column_stack", "row_stack", "broadcast_tensors", "as_strided", "index_fill",
    "group_points", "pack_padded_sequence", "pad_packed_sequence",
}  # fmt: skip
"""Elements are moved, copied or left out, never computed with. Relevance moves with them."""

DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
}  # fmt: skip
"""Nothing in eval mode; one that is always on is a constant factor."""

SUMS = DROPOUTS | {
    "add", "radd", "sub", "rsub", "subtract", "neg", "sum", "mean", "cumsum", "where",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d_with_indices", "fractional_max_pool2d", "fractional_max_pool3d", "max", "min", "amax",
    "amin", "maximum", "minimum", "topk", "sort", "median", "interpolate", "upsample", "fold", "positive", "real",
    "abs", "nan_to_num", "scatter", "scatter_add", "index_add", "index_copy", "index_put", "masked_scatter",
    "sum_to_size", "trace", "diag_embed", "diag", "setitem", "embedding_bag", "tril", "triu",
    "max_unpool1d", "max_unpool2d", "max_unpool3d", "slice_scatter", "select_scatter",
}  # fmt: skip
"""Linear in their activations, or choosing among them: the ordinary gradient carries c, R = a c divides itself."""

ADDITIONS = {"add", "radd"}
FILLS = {"pad", "constant_pad_nd", "masked_fill", "index_fill", "pad_packed_sequence"}
NONNEGATIVE_KEPT = ADDITIONS | (MOVES - FILLS) | {
    "sum", "mean", "cumsum", "max", "amax", "maximum", "relu", "topk", "sort", "min", "amin",
    "minimum",
} | {name for name in SUMS if "pool" in name}  # fmt: skip
"""Give nonnegative results for nonnegative activations."""

SHIFTED = {
    "clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "threshold", "sigmoid", "hardsigmoid", "softplus",
    "logsigmoid",
}  # fmt: skip
ACTIVATIONS = SHIFTED | {
    "gelu", "silu", "hardswish", "mish", "elu", "celu", "selu", "leaky_relu", "rrelu", "prelu", "relu6", "tanh",
    "tanhshrink", "softsign", "softshrink", "hardshrink", "sin", "arctan", "atan", "erf", "sqrt", "pow", "square",
    "log1p", "expm1", "special_expit", "local_response_norm",
}  # fmt: skip
"""Applied element by element; relevance passes: c (f(z) - f(0)) / z. SHIFTED: f(0) may differ from 0."""

GATES = {"sigmoid", "hardsigmoid", "special_expit", "erf"}
"""What another activation is multiplied by: a sigmoid only says how much of it passes, as do detached probabilities."""

STATISTICS = {
    "rsqrt", "reciprocal", "rdiv", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "linalg_vector_norm",
    "linalg_norm", "cdist",
}  # fmt: skip
"""What normalisation divides by, and distances that choose neighbours: taken as constants, as AttnLRP does."""

MATRIX_PRODUCTS = LINEAR | {
    "matmul", "rmatmul", "bmm", "mm", "einsum", "mv", "dot", "tensordot", "inner", "outer", "baddbmm", "addmm",
    "bilinear",
}  # fmt: skip
PRODUCTS = {"mul", "rmul", "multiply", "kron"}
QUOTIENTS = {"div", "truediv", "divide", "true_divide", "grid_sample"}
"""Linear in the first argument; the others are taken as constants."""

ELEMENTWISE = {"add", "radd", "sub", "rsub", "subtract", "neg", *PRODUCTS, *QUOTIENTS}
GATE_KEPT = MOVES | ELEMENTWISE

IN_PLACE = {"iadd", "isub", "imul", "itruediv", "idiv", "ipow", "setitem"}
OUT_OF_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div", "ipow": "pow"}
WRITES = {"setitem", "copy", "fill", "zero"}

LEAVES = {int, float, bool, str, slice, type(None), type(...), torch.dtype, torch.device, torch.Size}
"""Types of most arguments that are no tensors and hold none."""

INPUT_IS_LATER = {"where", "searchsorted"}
"""Functions whose argument called input is not the first."""


def identify(func: Any) -> tuple[str | None, bool]:
    """Its name, and whether it changes a tensor in place; no name where it sets a property, or reads one that is no
    tensor with the values of its own."""
    name = str(func.__name__)  # str: what torch.compile gives is none
    if name in ("__get__", "__set__", "__delete__"):
        is_read, name = name == "__get__", str(func.__self__.__name__)
        if not is_read or name not in PROPERTIES:
            return None, False
    base = name.split(".")[0].strip("_")
    return base, base in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def batch_norm_arguments(func: Any, args: tuple) -> tuple:
    """Those of torch.batch_norm in the order of torch.nn.functional.batch_norm."""
    if func is not torch.batch_norm:
        return args
    x, weight, bias, mean, var, training, momentum, eps, _ = args
    return x, mean, var, weight, bias, training, momentum, eps


def is_reciprocal(args: tuple, kwargs: dict) -> bool:
    """Of pow: whether the exponent is a number below zero."""
    exponent = args[1] if len(args) > 1 else kwargs["exponent"]
    return isinstance(exponent, (int, float)) and exponent < 0
