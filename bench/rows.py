"""The CSV rows of a measurement and what they say about the machine."""

import csv
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.timing import ROOT

RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Row:
    """One measurement. `ratio` is this variant's time over that of `ratio_to`, as a median over rounds."""

    date: str
    device: str  # cpu or cuda
    name: str  # of the processor that did the work
    threads: int
    torch: str
    triton: str
    python: str
    attrdrop: str
    commit: str
    op: str
    mode: str  # forward, backward, train (both), train with dropout; of a step, its attention dropout
    variant: str
    backend: str  # what really ran; on CUDA with the longest kernel's name
    shape: str
    dtype: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    ratio_to: str
    gflop: float | None = None
    mbytes: float | None = None
    peak_mb: float | None = None  # allocated by the call at its peak, MiB
    saved_mb: float | None = None  # the output and what is saved for the backward, MiB
    bound: float | None = None  # of a step: the least ratio to the plain step that the arithmetic allows
    clock: str = "wall"  # or processor


COLUMNS = tuple(field.name for field in fields(Row))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The git commit, with -dirty; ATTRDROP_COMMIT where the tree was copied without its history."""
    if given := os.environ.get("ATTRDROP_COMMIT"):
        return given
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor(device: torch.device) -> str:
    """Marketing name of the CPU or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@cache
def environment(device: torch.device) -> dict:
    """The columns that describe the machine and the code."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device.type,
        "name": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "attrdrop": _version("attrdrop"),
        "commit": commit(),
    }


def default_output(device: torch.device) -> Path:
    """bench/results/<device>.csv"""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", processor(device).lower()).strip("-") + ".csv")


def chosen(output: Path | None, device: torch.device) -> Path | None:
    """The CSV that was asked for, None where none was; in a folder it is the one of the device."""
    return output / default_output(device).name if output and output.is_dir() else output


def _upgrade(output: Path) -> None:
    """Bring a file of earlier rows to today's columns, the new ones empty.

    Raises:
        ValueError: the file has columns that no row has today.
    """
    with output.open(newline="") as stream:
        reader = csv.DictReader(stream)
        columns, old = tuple(reader.fieldnames or ()), list(reader)
    if columns == COLUMNS:
        return
    if strangers := [column for column in columns if column not in COLUMNS]:
        raise ValueError(f"{output} has columns that rows do not have: {', '.join(strangers)}; append to another file")
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        copy = Path(folder) / output.name
        _write(copy, "w", old)
        copy.replace(output)


def _write(output: Path, how: str, rows: Iterable[dict]) -> None:
    with output.open(how, newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        if how == "w":
            writer.writeheader()
        writer.writerows(rows)


def append(rows: Iterable[Row], output: Path) -> None:
    """Append rows to a new file, or to one that has their columns or some of them."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if exists := output.exists():
        _upgrade(output)
    values = ({key: _short(value) for key, value in asdict(row).items()} for row in rows)
    _write(output, "a" if exists else "w", values)


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def _optional(pattern: str, value: float | None) -> str:
    return "" if value is None else format(value, pattern)


def tflops(row: Row) -> float | None:
    """TFLOP/s on a GPU; a CPU's times are not quoted but as ratios."""
    return row.gflop / row.median_ms if row.device == "cuda" and row.gflop else None


NUMBERS: dict[str, Callable[[Row], str]] = {
    "median ms": lambda row: f"{row.median_ms:.4g}",
    "20-80 %": lambda row: f"{row.low_ms:.3g}-{row.high_ms:.3g}",
    "ratio": lambda row: f"{row.ratio:.2f}",
    "bound": lambda row: _optional(".2f", row.bound),
    "GFLOP": lambda row: _optional(".4g", row.gflop),
    "TFLOP/s": lambda row: _optional(".0f", tflops(row)),
    "peak MiB": lambda row: _optional(".0f", row.peak_mb),
    "saved MiB": lambda row: _optional(".0f", row.saved_mb),
}


def show(rows: Iterable[Row], console: Console | None = None) -> None:
    """One table per op, mode, shape and type, without the columns that are empty."""
    console = console or Console()
    for (op, mode, shape, dtype), group in groupby(rows, key=lambda row: (row.op, row.mode, row.shape, row.dtype)):
        found = list(group)
        title = f"{op}, {mode}, {shape}, {dtype} on {found[0].name}; ratios to {found[0].ratio_to}"
        table = Table(title=title, title_justify="left")
        table.add_column("variant", min_width=14)
        table.add_column("ran")
        columns = {name: [number(row) for row in found] for name, number in NUMBERS.items()}
        filled = {name: column for name, column in columns.items() if any(column)}
        for name in filled:
            table.add_column(name, justify="right")
        for row, *numbers in zip(found, *filled.values(), strict=True):
            table.add_row(row.variant, row.backend, *numbers)
        console.print(table)
