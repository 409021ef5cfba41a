"""What the loaders of arrays share: one split for all seeds, samples of it, checksums, .npz files."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attrdrop.lab.errors import InputError

SPLIT_SEED = 0  # one split for all seeds of an experiment


def divided(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices of a fixed random split, classes in proportion where that is possible."""
    from sklearn.model_selection import train_test_split

    counts = labels.bincount()
    possible = bool((counts[counts > 0] >= 2).all()) and min(held_out, len(labels) - held_out) >= len(counts)
    left, right = train_test_split(
        np.arange(len(labels)), test_size=held_out, random_state=SPLIT_SEED,
        stratify=labels.numpy() if possible else None,
    )  # fmt: skip
    return torch.from_numpy(np.sort(left)), torch.from_numpy(np.sort(right))


def split(examples: Any, held_out: int) -> tuple[Any, Any]:
    """Examples with `labels` and `select`, divided for training and testing."""
    left, right = divided(examples.labels, held_out)
    return examples.select(left), examples.select(right)


def sample(examples: Any, size: int | None) -> Any:
    """So many of the examples, the same ones every time; all of them where size is None or as large."""
    if size is None or size >= len(examples.labels):
        return examples
    return examples.select(divided(examples.labels, size)[1])


def checksum(array: np.ndarray, start: int = 0) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(np.ascontiguousarray(array).data, start)


def read_npz(path: Path, optional: str = "") -> list[Any]:
    """The arrays x and y of a file, and an optional one or None."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            if missing := {"x", "y"} - set(arrays):
                raise ValueError(f"there is no {min(missing)} in it")
            return [arrays["x"], arrays["y"], arrays.get(optional)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds something else" if "pickle" in str(error) else said(error)
        raise InputError(f"--data: {path} is no .npz file with arrays x and y: {reason}.") from None


def class_indices(path: Path, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct integers in y, and for each example the index of its own, int64 (N,)."""
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"--data: y of {path} must be {count} integers, got {y.dtype} {y.shape}.")
    names, labels = np.unique(y, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"--data: y of {path} holds one class only; two or more are needed.")
    return names, labels.astype(np.int64)


def said(error: Exception) -> str:
    """The message of an error, as part of a sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return f"no entry {text}" if type(error) is KeyError else text.strip().rstrip(".")
