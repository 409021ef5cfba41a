"""Argument checks shared by the public operators. Each message names the argument, what it was and what it may be."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_int(value: object) -> TypeGuard[int]:
    """An int, also one of NumPy's or a symbolic one under torch.compile; True and False are none."""
    return isinstance(value, int | torch.SymInt | Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """An int or float, also one of NumPy's; True and False are none."""
    return isinstance(value, int | float | Real) and not isinstance(value, bool)


def check_positive_int(name: str, value: object) -> None:
    if not is_int(value) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def check_size(name: str, value: object, least: int = 0) -> None:
    """An int from 0 or from 1 on."""
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must {'be at least 1' if least else 'not be negative'}, got {value}")


def check_probability(name: str, value: float) -> float:
    if not is_number(value):
        raise TypeError(f"{name} must be a number in [0, 1], got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def check_choice(name: str, value: object, choices: Sequence[str], *, quoted: bool = False, more: str = "") -> None:
    """quoted: the message says 'a' or 'b' instead of one of a, b. more: what may be given besides, said after these."""
    if value not in choices:
        named = " or ".join(map(repr, choices)) if quoted else f"one of {', '.join(choices)}"
        raise ValueError(f"{name} must be {named}{more}, got {value!r}")


def check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one; pad it (torch.nested.to_padded_tensor)")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}; to_dense() makes it so")
    return value


def check_floats(name: str, value: object) -> Tensor:
    tensor = check_tensor(name, value)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    return tensor


def check_like(name: str, value: object, like_name: str, like: Tensor) -> Tensor:
    """A tensor of the type and on the device of another."""
    tensor = check_tensor(name, value)
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} must have the dtype and device of {like_name}, {like.dtype} on {like.device}, "
            f"got {tensor.dtype} on {tensor.device}"
        )
    return tensor


def check_heads(
    name: str, value: object, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """A floating-point (B, H, n, d) tensor, made unit-stride in its last dimension if it is not."""
    tensor = check_floats(name, value)
    if tensor.dim() != 4:
        raise ValueError(f"{name} must have shape (batch, heads, length, head dim), got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} must have the dtype of the other inputs, {dtype}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on the device of the other inputs, {device}, got {tensor.device}")
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def check_groups(name: str, kv_heads: int, heads: int) -> None:
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{name} has {kv_heads} heads, which must divide the {heads} query heads")


def check_seed(seed: int) -> int:
    """A 64-bit seed as a signed integer, as operator schemas want it."""
    if isinstance(seed, torch.SymInt):  # under torch.compile
        return seed
    if not is_int(seed):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, got {seed}")
    seed = int(seed)
    return seed - 2**64 if seed >= 2**63 else seed


def check_layer(layer: object) -> int:
    if not is_int(layer):
        raise TypeError(f"layer must be an int, got {type(layer).__name__}")
    if not 0 <= layer < 65536:
        raise ValueError(f"layer must lie in [0, 65536), got {layer}")
    return layer if isinstance(layer, torch.SymInt) else int(layer)


def check_bits(name: str, bits: Tensor | None, shape: tuple[int, int, int, int], device: torch.device) -> Tensor | None:
    """Packed bits broadcastable to ``shape`` = (B, H, n_q, W)."""
    return None if bits is None else check_rows(name, bits, shape, device)


def check_rows(name: str, bits: Tensor, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    bits = check_tensor(name, bits)
    if bits.dtype != torch.int32:
        raise TypeError(f"{name} must be packed int32 words (see pack_mask), got {bits.dtype}")
    if bits.device != device:
        raise ValueError(f"{name} must be on {device}, got {bits.device}")
    fits = bits.dim() == 4 and all(a in (1, b) for a, b in zip(bits.shape[:3], shape[:3], strict=True))
    if not fits or bits.shape[3] != shape[3]:
        raise ValueError(f"{name} must broadcast to (B, H, n_q, words) = {shape}, got {tuple(bits.shape)}")
    return bits if bits.stride(-1) == 1 or bits.shape[-1] <= 1 else bits.contiguous()


def check_bias(name: str, bias: object, shape: tuple[int, int, int, int], device: torch.device) -> Tensor | None:
    """A floating-point tensor broadcastable to ``shape`` = (B, H, n_q, n_k), with four dimensions; any strides."""
    return None if bias is None else check_summand(name, bias, shape, device, "(B, H, n_q, n_k)")


def check_summand(name: str, x: object, shape: tuple[int, int, int, int], device: torch.device, sizes: str) -> Tensor:
    """What is added to ``shape``, of which messages speak as ``sizes``: as :func:`check_bias`."""
    x = check_tensor(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be floating point (boolean masks are packed into bits), got {x.dtype}")
    if x.device != device:
        raise ValueError(f"{name} must be on the device of the other inputs, {device}, got {x.device}")
    view = x.reshape((1,) * (4 - x.dim()) + tuple(x.shape)) if x.dim() < 4 else x
    if view.dim() != 4 or any(a not in (1, b) for a, b in zip(view.shape, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to {sizes} = {shape}, got {tuple(x.shape)}")
    return view


def check_sample_ids(sample_ids: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    if sample_ids is None:
        return None
    sample_ids = check_tensor("sample_ids", sample_ids)
    if sample_ids.dtype != torch.int64 or tuple(sample_ids.shape) != (batch,):
        raise ValueError(
            f"sample_ids must be int64 of shape ({batch},), got {sample_ids.dtype} of shape {tuple(sample_ids.shape)}"
        )
    if sample_ids.device.type == "meta" and device.type != "meta":
        raise ValueError(f"sample_ids must hold values for tensors on {device}, got a meta tensor")
    return sample_ids.to(device)


def check_index(name: str, index: object, count: int, limit: int) -> None:
    """int64 (count,), on the CPU in [0, limit)."""
    index = check_tensor(name, index)
    if index.dtype != torch.int64 or tuple(index.shape) != (count,):
        raise ValueError(
            f"{name} must be int64 of shape ({count},), got {index.dtype} of shape {tuple(index.shape)}"
        )  # fmt: skip
    if torch.compiler.is_compiling() or index.device.type != "cpu" or count == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit}), got {low if low < 0 else high}")


def word_count(n: int) -> int:
    return (n + 31) // 32
