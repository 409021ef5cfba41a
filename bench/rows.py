"""The CSV rows of a measurement and what they say about the machine."""

import csv
import os
import platform
import re
import subprocess
from collections.abc import Iterable
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
    mode: str  # forward, train (forward and backward) or step
    variant: str
    backend: str  # what really ran
    shape: str
    dtype: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    ratio_to: str
    gflop: float | None = None
    mbytes: float | None = None
    peak_mb: float | None = None


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


def append(rows: Iterable[Row], output: Path) -> None:
    """Append rows, writing the header of a new file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    new = not output.exists()
    with output.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({key: _short(value) for key, value in asdict(row).items()} for row in rows)


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def show(rows: Iterable[Row], console: Console | None = None) -> None:
    """One table per op, mode, shape and type."""
    console = console or Console()
    for (op, mode, shape, dtype), group in groupby(rows, key=lambda row: (row.op, row.mode, row.shape, row.dtype)):
        found = list(group)
        measured_memory = any(row.peak_mb is not None for row in found)
        table = Table(title=f"{op}, {mode}, {shape}, {dtype} on {found[0].name}", title_justify="left")
        table.add_column("variant")
        table.add_column("ran")
        for name in ("median ms", "20 %", "80 %", f"to {found[0].ratio_to}", *["peak MiB"][: int(measured_memory)]):
            table.add_column(name, justify="right")
        for row in found:
            times = (f"{value:.4g}" for value in (row.median_ms, row.low_ms, row.high_ms))
            peak = [] if row.peak_mb is None else [f"{row.peak_mb:.0f}"]
            table.add_row(row.variant, row.backend, *times, f"{row.ratio:.2f}", *peak)
        console.print(table)
