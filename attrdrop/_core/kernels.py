"""How ops with C++ and CUDA kernels and no others choose one, and turn what it finds on its way into an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attrdrop._core import backends


def resolve(op: str, tensor: Tensor, is_double: bool, backend: str | None) -> str:
    """The backend that serves the op on the tensor; is_double: some argument is float64."""
    reason = "float64 is served by the reference only" if is_double else None
    missing = {"cuda": reason or backends.CUDA_MISSING, "cpp": reason or backends.COMPILED_MISSING}
    return backends.resolve(op, tensor, backend, missing)


def run(operator: Callable[..., Tensor], found: str, *arguments: Any) -> Tensor:
    """What the operator returns; what its kernel finds and says as the pattern ``found`` has it is a ValueError."""
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except RuntimeError as error:  # a kernel knows one kind of error only
        if said := re.search(found, str(error)):
            raise ValueError(said[0]) from None
        raise
