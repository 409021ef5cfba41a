"""What every experiment needs for its results: atomic file replacement, statistics over seeds, machine facts."""

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import attrdrop
from attrdrop.lab.errors import InputError, said

RESULTS, SWEEP = "results.json", "sweep.json"  # of an experiment, of a sweep
TIME_MARK = "*"  # of times that are not comparable
FEWEST = 3  # seeds that an interval needs: of two it is as wide as all that could be


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work is done; hidden files, as a killed run leaves, are fine."""
    try:
        used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    except OSError as error:
        raise unwritable(folder, error) from error
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is a file; give a folder.")
    if used and not overwrite:
        raise InputError(
            f"--output: {folder} is not empty; give another folder, or --overwrite to replace its results."
        )


def unwritable(folder: Path, error: OSError) -> InputError:
    """The error to raise where a result cannot be written."""
    return InputError(f"--output: {folder} cannot be written: {error.strerror or error}.")


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name into a folder, which is made where it is not there.

    Raises InputError where they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise unwritable(folder, error) from error


def described(device: torch.device) -> dict[str, Any]:
    """When an experiment began, with which versions and on which machine."""
    versions = {"attrdrop": attrdrop.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["transformers"] = metadata.version("transformers")
    return {
        "complete": False,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": versions
        | {
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
    }


def in_turn(arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[int, str]]:
    """(seed, arm) of all runs; which arm comes first changes from seed to seed."""
    return [(seed, arms[(place + shift) % len(arms)]) for place, seed in enumerate(seeds) for shift in range(len(arms))]


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean and sample standard deviation; None if there are too few values."""
    values = np.asarray(list(values), dtype=float)
    mean = float(values.mean()) if len(values) else None
    return {"mean": mean, "std": float(values.std(ddof=1)) if len(values) > 1 else None, "n": len(values)}


def paired(differences: Iterable[float], limit: float = float("inf")) -> dict[str, Any]:
    """Spread of per-seed differences, with Student's 95 % interval of their mean where there are enough seeds.

    limit: the largest difference that could be, at which the interval is cut.
    """
    differences = np.asarray(list(differences), dtype=float)
    result = spread(differences) | {"interval_95": None}
    if len(differences) >= FEWEST:
        half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
        result["interval_95"] = [max(result["mean"] - half, -limit), min(result["mean"] + half, limit)]
    return result


def widest(metric: str, percent: bool) -> float:
    """The largest difference that two scores can have: shares lie within 0 and 1, correlations within -1 and 1."""
    if not percent:
        return float("inf")
    return 2.0 if "correlation" in metric else 1.0


def cell(measure: dict[str, Any], show: Callable[[float], str]) -> str:
    """Mean and standard deviation for a table."""
    if measure["mean"] is None:
        return "-"
    return show(measure["mean"]) + (f" ± {show(measure['std']).lstrip('+')}" if measure["std"] is not None else "")


def spoilt_times(jobs: int) -> str:
    """What the mark of times stands for, for a caption; nothing where runs were done one by one."""
    return f" {TIME_MARK} {jobs} jobs at once: times are not comparable." if jobs > 1 else ""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, so that a reader never finds half of it, not even after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or the new name could outlive a power cut and the content not
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def kind_of(folder: Path) -> str:
    """Which command wrote the results in a folder; 'finetune' where none says so.

    Raises InputError where nothing in it can be read.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} holds no results: {'it is a file' if folder.exists() else 'there is no such folder'}."
        )
    for name, usual in ((RESULTS, "finetune"), (SWEEP, "sweep")):
        if (folder / name).exists():
            with readable(folder):
                return str(read_object(folder / name).get("kind", usual))
    raise InputError(f"{folder} holds no results: there is neither {RESULTS} nor {SWEEP} in it.")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError and ValueError."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


@contextlib.contextmanager
def readable(folder: Path, command: str = "", advice: str = "") -> Iterator[None]:
    """Turns what goes wrong with the content of a folder's files into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"KeyError, {said(error)}" if isinstance(error, KeyError) else said(error)
        of = f" of 'attrdrop {command}'" if command else ""
        raise InputError(f"{folder} holds no results{of}: {reason}{advice}.") from None
