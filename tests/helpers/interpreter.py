"""Repairs Triton's interpreter (3.6 to 3.9), so that the kernels can be tested on a CPU, in bfloat16 too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    ReduceOps,
    ReduceScanOpInterface,
    TensorHandle,
)

from attrdrop.reference.keep_mask import scale_and_add


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as uint16, to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (np.where(np.isnan(values), bits | 0x400000, rounded) >> 16).astype(np.uint16)


def is_bfloat16(x: Any) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16


def widened(x: Any) -> Any:
    return TensorHandle(widen(x.data), tl.float32) if is_bfloat16(x) else x


def in_float32(method: Callable) -> Callable:
    """The method with bfloat16 operands computed in float32, the result rounded once."""

    @functools.wraps(method)
    def call(self, *args):
        if not any(map(is_bfloat16, args)):
            return method(self, *args)
        out = method(self, *map(widened, args))
        if out.data.dtype == np.bool_:
            return TensorHandle(out.data, tl.int1)
        return TensorHandle(narrow(out.data), tl.bfloat16)

    return call


def repair_builder() -> None:
    original_fma = InterpreterBuilder.create_fma

    def fma(self, a, b, c):  # rounded once
        if a.dtype.scalar != tl.float32:
            return original_fma(self, a, b, c)
        operands = (torch.from_numpy(np.array(x.data)) for x in (a, b, c))
        return TensorHandle(scale_and_add(*operands).numpy(), tl.float32)

    InterpreterBuilder.create_fma = fma
    for name in ("binary_op", "unary_op", "create_fma"):
        setattr(InterpreterBuilder, name, in_float32(getattr(InterpreterBuilder, name)))
    original_dot, original_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def dot(self, a, b, *rest):
        return original_dot(self, widened(a), widened(b), *rest)

    def cast(self, source, target):
        if target.scalar != tl.bfloat16:
            return original_cast(self, widened(source), target)
        return TensorHandle(narrow(widened(source).data.astype(np.float32)), tl.bfloat16)

    def ones(self, target):  # not -1, which numpy 2 does not take for an unsigned integer
        return TensorHandle(~np.zeros(1, interpreter._get_np_dtype(target)), target.scalar)

    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.get_bf16 = lambda self, value: cast(self, self.get_fp32(value), tl.bfloat16)
    InterpreterBuilder.get_all_ones_value = ones
    InterpreterBuilder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    InterpreterBuilder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)


def repair_reductions() -> None:
    original_apply = ReduceScanOpInterface.apply

    def apply(self, inputs):
        if not isinstance(inputs, tuple):
            return apply(self, (inputs,))[0]
        types = [x.dtype for x in inputs]
        wide = tuple(x.to(tl.float32) if x.dtype == tl.bfloat16 else x for x in inputs)
        outputs = original_apply(self, wide)
        return tuple(x.to(tl.bfloat16) if t == tl.bfloat16 else x for x, t in zip(outputs, types, strict=True))

    def generic_reduce(self, inputs):
        """Combines whole slices: the original combines single elements, far slower."""
        arrays = [x.handle.data.reshape(-1) if self.axis is None else x.handle.data for x in inputs]
        slices = zip(*(np.moveaxis(x, self.axis or 0, 0) for x in arrays), strict=True)

        def combine(left, right):
            out = self.combine_fn.fn(*left, *right)
            return out if isinstance(out, tuple) else (out,)

        tensors = (tuple(self.to_tensor(x, y.dtype) for x, y in zip(s, inputs, strict=True)) for s in slices)
        shape = np.any(inputs[0].handle.data, axis=self.axis, keepdims=self.keep_dims).shape
        return [self.to_tensor(x.handle.data.reshape(shape), x.dtype) for x in functools.reduce(combine, tensors)]

    ReduceScanOpInterface.apply = apply
    ReduceOps.generic_reduce = generic_reduce


def poison_masked_loads() -> None:
    """Gives NaN or -1, not 0, where a masked load names no other value: on a GPU it may be anything."""
    original_load = InterpreterBuilder.create_masked_load

    def load(self, pointers, mask, other, *args, **kwargs):
        if other is None:
            kind = pointers.get_element_ty()
            data = np.full(pointers.data.shape, np.nan if kind.is_floating() else -1, np.float32)
            other = self.cast_impl(TensorHandle(data, tl.float32), kind)
        return original_load(self, pointers, mask, other, *args, **kwargs)

    InterpreterBuilder.create_masked_load = load


def repair_scalars() -> None:
    original_patch, original_convert = interpreter._patch_lang_tensor, interpreter._implicit_cvt

    def patch(tensor, scope):
        original_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def convert(arg):
        if isinstance(arg, bool | float):
            return interpreter.interpreter_semantic.to_tensor(arg)
        return original_convert(arg)

    interpreter._patch_lang_tensor = patch
    interpreter._implicit_cvt = convert


def install() -> None:
    """Repairs the interpreter of this process; a second call does nothing."""
    if hasattr(InterpreterBuilder.binary_op, "__wrapped__"):
        return
    repair_builder()
    repair_reductions()
    repair_scalars()
    poison_masked_loads()
    GridExecutor.__call__ = np.errstate(all="ignore")(GridExecutor.__call__)  # a GPU does not warn either
