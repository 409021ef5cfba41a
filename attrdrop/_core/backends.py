"""Which implementation serves a call: "auto" chooses, a name asked for either serves or raises."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch
from torch.autograd import forward_ad

from attrdrop._core.library import COMPILED_ERROR, NAMESPACE

BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")
"""auto: CUDA C++ where built, else Triton, for CUDA tensors; C++ for CPU tensors; else the reference. Meta tensors get
the shapes of the C++ operator."""

COMPILED_MISSING = None if COMPILED_ERROR is None else f"attrdrop._C is not there ({COMPILED_ERROR})"
CUDA_MISSING = COMPILED_MISSING
if CUDA_MISSING is None and not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::pack_mask", "CUDA"):
    CUDA_MISSING = "attrdrop._C was built without CUDA"
TRITON_MISSING = None if importlib.util.find_spec("triton") else "triton is not installed"
TRITON_INTERPRETED = TRITON_MISSING is None and os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs kernels on CPU tensors, slowly, for tests."""

_ENVIRONMENT = "ATTRDROP_BACKEND"
TRANSFORMED = "only the reference works inside transforms of torch.func and under forward-mode gradients"


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation runs, which see through plain torch alone."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _check_name(backend: str, where: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


_default = os.environ.get(_ENVIRONMENT) or "auto"
if _default not in BACKENDS:  # an error would leave no `attrdrop doctor` to explain it
    warnings.warn(
        f"environment variable {_ENVIRONMENT} must be one of {', '.join(BACKENDS)}, got {_default!r}; "
        "calls without a backend will raise an error",
        stacklevel=2,
    )


def set_backend(backend: str) -> None:
    """Sets the backend of every later call in the process: one of :data:`BACKENDS`.

    Raises:
        ValueError: the name is not a backend.
    """
    global _default
    _default = _check_name(backend, "backend")


def get_backend() -> str:
    """The backend in force.

    Raises:
        ValueError: the environment variable ATTRDROP_BACKEND names no backend.
    """
    return _check_name(_default, f"environment variable {_ENVIRONMENT}")


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """:func:`set_backend` for the duration of a ``with`` block, likewise for the whole process."""
    global _default
    before = _default
    set_backend(backend)
    try:
        yield
    finally:
        _default = before


def resolve(op: str, tensor: torch.Tensor, backend: str | None, missing: dict[str, str | None]) -> str:
    """The backend that serves ``op`` on ``tensor``.

    ``missing`` maps each backend the op has to None, or to the reason why it cannot serve this call. In order of
    preference; a backend that is not a key is not implemented for the op.

    Raises:
        ValueError: an unknown name. RuntimeError: the backend asked for cannot serve.
    """
    asked = _check_name(backend, "backend") if backend is not None else get_backend()
    if asked == "reference":
        return asked
    usable = {name: reason or _wrong_device(name, tensor) for name, reason in missing.items()}
    if asked == "auto" and tensor.device.type == "meta" and "cpp" in missing:
        return "cpp"
    if asked == "auto":
        return next((name for name, reason in usable.items() if reason is None), "reference")
    if asked == "triton" and TRITON_INTERPRETED:  # by name only: it is slow
        usable = missing
    reason = usable.get(asked, "it is not implemented for this operator")
    if reason is not None:
        raise RuntimeError(f"{op}: backend {asked!r} cannot serve this call: {reason}")
    return asked


def resolve_compiled(op: str, tensor: torch.Tensor, backend: str | None, other: torch.Tensor | None = None) -> str:
    """:func:`resolve` for an op with C++ and CUDA kernels alone, which take no float64, also not in another input."""
    is_double = torch.float64 in (tensor.dtype, None if other is None else other.dtype)
    reason = "float64 is served by the reference only" if is_double else None
    return resolve(op, tensor, backend, {"cuda": reason or CUDA_MISSING, "cpp": reason or COMPILED_MISSING})


def _wrong_device(backend: str, tensor: torch.Tensor) -> str | None:
    wanted = "cpu" if backend == "cpp" else "cuda"
    return None if tensor.device.type == wanted else f"it needs a {wanted} tensor, got one on {tensor.device}"
