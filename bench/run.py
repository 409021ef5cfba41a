"""Time the ops of the registry against their peers and append the rows to the CSV of this device."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

import attrdrop
from attrdrop import _backend
from bench import rows, timing
from bench.registry import DROPOUT, DTYPES, REGISTRY, SHAPES, Entry, Inputs, Shape

OURS = "attrdrop"
console = Console()


class Case(NamedTuple):
    """One group of variants that compete."""

    entry: Entry
    shape: Shape
    mode: str


class Variant(NamedTuple):
    """A competitor: its call and what really runs."""

    call: Callable[[], object]
    backend: str


def current_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cases(ops: list[str] | None, device: torch.device, quick: bool) -> Iterator[Case]:
    """All groups of the named ops (default: all); the first shape alone where `quick`."""
    for name in ops or REGISTRY:
        for shape in SHAPES[device.type][: 1 if quick else None]:
            for mode in REGISTRY[name].modes:
                yield Case(REGISTRY[name], shape, mode)


def unknown(ops: list[str]) -> bool:
    """Whether some op is not in the registry, having said so."""
    strangers = [op for op in ops if op not in REGISTRY]
    if strangers:
        console.print(f"[red]Unknown: {', '.join(strangers)}.[/red] Ops are {', '.join(REGISTRY)}.")
    return bool(strangers)


def in_mode(call: Callable[[], object], mode: str, inputs: Inputs) -> Callable[[], object]:
    """`call` alone without autograd, or with its backward."""
    if mode.startswith("train"):
        return lambda: torch.autograd.grad(call(), inputs.leaves, inputs.grad)
    return torch.no_grad()(call)


def backend_of(op: str, call: Callable[[], object]) -> str:
    """The backend that the op really takes in `call`."""
    taken = []
    resolve = _backend.resolve

    def spy(name: str, *arguments: object, **options: object) -> str:
        chosen = resolve(name, *arguments, **options)
        if name == op:
            taken.append(chosen)
        return chosen

    with patch.object(_backend, "resolve", spy):
        call()
    return taken[0] if taken else "torch"


def left_out(what: str, error: Exception) -> None:
    """Say what is not in the results, and why."""
    console.print(f"[red]{what}: left out[/red]", escape(f"{type(error).__name__}: {error}"[:500]))


def variants(case: Case, device: torch.device) -> dict[str, Variant]:
    """Ours on every backend that serves, the automatic choice first, and the fastest form of each peer."""
    entry, mode = case.entry, case.mode
    inputs = entry.make(case.shape, device, DTYPES[device.type])
    inputs.dropout = DROPOUT if mode.endswith("dropout") else 0.0
    ours = in_mode(partial(entry.call, inputs, None), mode, inputs)
    chosen = backend_of(entry.name, ours)
    found = {OURS: Variant(ours, chosen)}
    for backend in attrdrop.BACKENDS:
        if backend in ("auto", "reference", chosen):
            continue
        other = in_mode(partial(entry.call, inputs, backend), mode, inputs)
        try:
            other()
        except Exception as error:  # compilers may raise anything
            if "cannot serve" not in str(error):
                left_out(f"{entry.name}, {backend}", error)
            continue
        found[f"{OURS}, {backend}"] = Variant(other, backend)
    for name, forms in entry.peers(inputs).items():
        forms = {form: in_mode(call, mode, inputs) for form, call in forms.items()}
        try:
            form = timing.fastest(forms, device)
        except RuntimeError as error:
            left_out(f"{entry.name}, {name}", error)
            continue
        found[name] = Variant(forms[form], form)
    return found


def disagreeing(case: Case, found: dict[str, Variant]) -> list[str]:
    """Peers whose result or gradients are not ours, where they can be compared."""
    entry = case.entry
    if entry.agree is None or case.mode.endswith("dropout"):
        return []

    def results(name: str) -> tuple:
        result = found[name].call()
        return result if case.mode == "train" else (result,)

    ours = results(OURS)
    others = [name for name in found if name != OURS and name not in entry.unlike]
    return [name for name in others if not all(map(entry.agree, ours, results(name)))]


def measure(case: Case, device: torch.device, budget: float) -> list[rows.Row]:
    """One row per variant; ratios are to ours."""
    found = variants(case, device)
    if wrong := disagreeing(case, found):
        raise RuntimeError(f"{case.entry.name} {case.shape}: ours and {', '.join(wrong)} disagree, nothing was timed")
    times = timing.interleave({name: variant.call for name, variant in found.items()}, device, budget=budget)
    dtype = DTYPES[device.type]
    cost = case.entry.cost(case.shape, dtype.itemsize)
    flop, moved = (3.5 * cost.flop, 3 * cost.bytes) if case.mode.startswith("train") else cost
    return [
        rows.Row(
            **rows.environment(device),
            op=case.entry.name,
            mode=case.mode,
            variant=name,
            backend=variant.backend,
            shape=str(case.shape),
            dtype=str(dtype).removeprefix("torch."),
            median_ms=times[name].median,
            low_ms=times[name].low,
            high_ms=times[name].high,
            ratio=times[name].ratio(times[OURS]),
            ratio_to=OURS,
            gflop=flop / 1e9,
            mbytes=moved / 1e6,
            peak_mb=timing.cuda_peak(variant.call, device) if device.type == "cuda" else None,
        )
        for name, variant in found.items()
    ]


def bench(
    ops: list[str] | None = None, output: Path | None = None, quick: bool = False, seconds: float | None = None
) -> int:
    """Time `ops` (default: all) and append rows to `output`; `seconds` is the budget of one group.

    Returns 0, 1 where a group failed, or 2 for an unknown op.
    """
    if unknown(ops or []):
        return 2
    device = current_device()
    output = Path(output) if output else rows.default_output(device)
    budget = seconds or (2.0 if quick else 10.0)
    if warning := timing.busy():
        console.print(f"[yellow]{warning}[/yellow]")
    found, failed = [], 0
    for case in track(list(cases(ops, device, quick)), description="benchmark", console=console):
        try:
            group = measure(case, device, budget)
        except Exception as error:  # the other groups are still worth measuring
            left_out(f"{case.entry.name}, {case.mode}, {case.shape}", error)
            failed = 1
            continue
        rows.append(group, output)
        found += group
        if device.type == "cuda":
            torch.cuda.empty_cache()
    rows.show(found, console)
    console.print(f"{len(found)} rows appended to {output}")
    return failed


def verify(op: str) -> int:
    """Run the op's tests, and only if they pass time it. Returns as `bench`."""
    if unknown([op]):
        return 2
    tests = f"tests/test_{REGISTRY[op].stem or op}.py"
    # PYTHONSAFEPATH: the repository root holds a top-level triton_kernels, which others probe for
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if subprocess.run([sys.executable, "-m", "pytest", tests], cwd=timing.ROOT, env=environment).returncode:
        console.print(f"[red]{tests} fails: {op} is not timed[/red]")
        return 1
    return bench([op])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("ops", nargs="*", help=f"default: all of {', '.join(REGISTRY)}")
    parser.add_argument("--quick", action="store_true", help="the first shape alone, two seconds a group")
    parser.add_argument("--seconds", type=float, help="budget of one group of variants")
    parser.add_argument("--output", type=Path, help="CSV to append to (default: bench/results/<device>.csv)")
    parser.add_argument("--verify", action="store_true", help="run each op's tests first and time only what passes")
    options = parser.parse_args()
    if options.verify:
        return max(verify(op) for op in options.ops or REGISTRY)
    return bench(options.ops or None, options.output, options.quick, options.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
