"""What image and point sets given as arrays share: .npz files, checksums, and classes as indices."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from attrdrop.lab.errors import InputError, check_name, said


def checksum(array: np.ndarray, start: int = 0) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(np.ascontiguousarray(array).data, start)


def read_npz(path: Path, optional: str = "") -> list[Any]:
    """The arrays x and y of a file, and an optional one or None."""
    check_name(path, "--data")
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
        raise InputError(f"--data: {path} is not an .npz file with arrays x and y: {reason}.") from None


def class_indices(path: Path, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct integers in y, and for each example the index of its own, int64 (N,)."""
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"--data: y of {path} must be {count} integers, got {y.dtype} {y.shape}.")
    names, labels = np.unique(y, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"--data: y of {path} holds one class only; two or more are needed.")
    return names, labels.astype(np.int64)
