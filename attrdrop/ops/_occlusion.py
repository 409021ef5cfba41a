"""What the ops that occlude images and points share: checks of what is written and what replaces it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attrdrop._core import checks

Value = float | Sequence[float] | Tensor | str


def check_relevance(relevance: object, name: str, occluded: Tensor) -> Tensor:
    """Relevance of what is occluded, of any shape, without its graph."""
    relevance = checks.check_floats("relevance", relevance)
    if relevance.device != occluded.device:
        raise ValueError(f"relevance must be on the device of {name}, {occluded.device}, got {relevance.device}")
    return relevance.detach()


def check_inplace(name: str, tensor: Tensor) -> None:
    """That a tensor can be written into."""
    if tensor.requires_grad:
        raise ValueError(f"{name} must not require grad with inplace=True; occlude a copy or detach them")
    if _overlaps_itself(tensor):
        raise ValueError(f"{name} must not overlap in memory with inplace=True, got strides {tensor.stride()}")


def check_apart(name: str, tensor: Tensor, written_name: str, written: Tensor) -> None:
    """That a tensor does not lie where another is written."""
    if not torch.compiler.is_compiling() and _share_memory(tensor, written):
        raise ValueError(f"{name} must not share memory with {written_name} with inplace=True; pass a copy")


def _overlaps_itself(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling():  # unknown sizes have no order
        return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += (size - 1) * stride
    return False


def _share_memory(a: Tensor, b: Tensor) -> bool:
    def reach(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize

    (a_begin, a_end), (b_begin, b_end) = reach(a), reach(b)
    return a.numel() > 0 and b.numel() > 0 and a_begin < b_end and b_begin < a_end


def check_value(value: Value, like: Tensor, channels: int, words: str) -> tuple[float, Tensor | None]:
    """As the operators take it: a number, or one for each channel in the type of ``like``.

    ``words`` names, for the message, what else it may be.
    """
    may = f"a number, one for each channel, or {words}"
    if isinstance(value, str):
        raise ValueError(f"value must be {may}, got {value!r}")
    if checks.is_number(value):
        return _check_number(float(value), like.dtype), None
    if isinstance(value, Tensor):
        if value.dim() == 0 and value.device.type == "cpu" and not torch.compiler.is_compiling():
            return _check_number(value.item(), like.dtype), None
        if tuple(value.shape) != (channels,) or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"value must have shape ({channels},), one number for each channel, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            for number in value.tolist():
                _check_number(number, like.dtype)
        if like.dtype == torch.uint8 and value.is_floating_point():
            value = value.detach().round()
        return 0.0, value.detach().to(like.device, like.dtype, copy=True)  # it may lie in what is written
    if not isinstance(value, Sequence) or not all(isinstance(x, (int, float)) for x in value):
        raise TypeError(f"value must be {may}, got {type(value).__name__}")
    if len(value) != channels:
        raise ValueError(f"value must have one number for each of the {channels} channels, got {len(value)}")
    numbers = [_check_number(float(x), like.dtype) for x in value]
    if len(set(numbers)) == 1:
        return numbers[0], None
    if like.device.type == "cpu":
        return 0.0, torch.tensor(numbers, dtype=like.dtype)
    # filled on the device: a copy from the host would wait for it
    return 0.0, torch.cat([like.new_full((1,), x) for x in numbers] or [like.new_empty(0)])


def _check_number(number: float, dtype: torch.dtype) -> float:
    if dtype == torch.uint8:
        if not 0 <= number <= 255:
            raise ValueError(f"value must lie in 0 to 255 for uint8 images, got {number}")
        return float(round(number))
    if not abs(number) <= torch.finfo(dtype).max:
        raise ValueError(f"value must be finite in {dtype}, got {number}")
    return float(number)
