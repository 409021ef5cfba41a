"""Time the ops of the registry against their peers, and append the rows to a CSV where one is named."""

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

import attrdrop
from attrdrop._core import backends
from attrdrop.lab.device import busy
from bench import rows, timing
from bench.ops import kernels
from bench.ops.registry import REGISTRY, Entry
from bench.ops.shapes import DROPOUT, FACTORS, FEATURES, IMAGES, NAMED, POINTS, AnyShape, Inputs
from bench.steps.cli import count

OURS = "attrdrop"
KNOWN = NAMED | IMAGES | FEATURES | POINTS
console = Console()


class Case(NamedTuple):
    """One group of variants that compete."""

    entry: Entry
    shape: AnyShape
    mode: str


class Variant(NamedTuple):
    """A competitor: its call as the mode has it, what really runs, and its forward alone, with autograd."""

    call: Callable[[], object]
    backend: str
    forward: Callable[[], object]


@dataclass(frozen=True)
class Selection:
    """Which groups are measured, and which peers in them; what is empty excludes nothing."""

    shapes: tuple[str, ...] = ()  # names of KNOWN
    n: tuple[int, ...] = ()
    modes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()  # how their names begin

    def takes(self, shape: AnyShape) -> bool:
        """Whether a shape is measured."""
        named = not self.shapes or shape in {KNOWN[name] for name in self.shapes}
        return named and (not self.n or shape.n in self.n)

    def wants(self, peer: str) -> bool:
        """Whether a peer takes part."""
        return not self.peers or peer.startswith(self.peers)


ALL = Selection()


def current_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cases(ops: list[str] | None, device: torch.device, quick: bool, selection: Selection = ALL) -> Iterator[Case]:
    """The selected groups of the named ops (default: all); the first shape alone where `quick`."""
    for name in ops or REGISTRY:
        entry = REGISTRY[name]
        shapes = list(filter(selection.takes, entry.shapes[device.type]))
        modes = [mode for mode in entry.modes if not selection.modes or mode in selection.modes]
        yield from (Case(entry, shape, mode) for shape in shapes[: 1 if quick else None] for mode in modes)


def unknown(ops: list[str]) -> bool:
    """Whether some op is not in the registry, having said so."""
    strangers = [op for op in ops if op not in REGISTRY]
    if strangers:
        console.print(f"[red]Unknown: {', '.join(strangers)}.[/red] Ops are {', '.join(REGISTRY)}.")
    return bool(strangers)


def compete(forward: Callable[[], object], mode: str, inputs: Inputs, backend: str) -> Variant:
    """`forward` without autograd, its backward alone (walked again and again over one graph), or both."""
    if mode == "forward":
        return Variant(torch.no_grad()(forward), backend, forward)
    again = mode == "backward"
    output = cache(forward) if again else forward

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output(), inputs.leaves, inputs.grad, retain_graph=again)

    return Variant(call, backend, forward)


def backend_of(op: str, call: Callable[[], object]) -> str:
    """The backend that the op really takes in `call`."""
    taken = []
    resolve = backends.resolve

    def spy(name: str, *arguments: object, **options: object) -> str:
        chosen = resolve(name, *arguments, **options)
        if name == op:
            taken.append(chosen)
        return chosen

    with patch.object(backends, "resolve", spy):
        call()
    return taken[0] if taken else "torch"


def left_out(what: str, error: Exception) -> None:
    """Say what is not in the results, and why."""
    console.print(f"[red]{what}: left out[/red]", escape(f"{type(error).__name__}: {error}"[:500]))


def inputs_of(case: Case, device: torch.device, dtype: torch.dtype) -> Inputs:
    """What the variants of a group compete on."""
    inputs = case.entry.make(case.shape, device, dtype)
    inputs.dropout = DROPOUT if case.mode.endswith("dropout") else 0.0
    return inputs


def variants(case: Case, device: torch.device, selection: Selection = ALL) -> dict[str, Variant]:
    """Ours on every backend that serves, the automatic choice first, and the fastest form of each peer."""
    entry, mode = case.entry, case.mode
    inputs = inputs_of(case, device, entry.dtypes[device.type])
    ours = partial(entry.call, inputs, None)
    chosen = backend_of(entry.name, torch.no_grad()(ours))
    found = {OURS: compete(ours, mode, inputs, chosen)}
    for backend in attrdrop.BACKENDS:
        if backend in ("auto", "reference", chosen):
            continue
        other = compete(partial(entry.call, inputs, backend), mode, inputs, backend)
        try:
            other.call()
        except Exception as error:  # compilers may raise anything
            if "cannot serve" not in str(error):
                left_out(f"{entry.name}, {backend}", error)
            continue
        found[f"{OURS}, {backend}"] = other
    for name, forms in entry.peers(inputs).items():
        if not selection.wants(name):
            continue
        able = {form: compete(call, mode, inputs, form) for form, call in forms.items()}
        try:
            form = timing.fastest({form: variant.call for form, variant in able.items()}, device)
        except RuntimeError as error:
            left_out(f"{entry.name}, {name}", error)
            continue
        found[name] = able[form]
    return found


def disagreeing(case: Case, found: dict[str, Variant]) -> list[str]:
    """Variants whose result or gradients are not ours, where they can be compared."""
    entry = case.entry
    if entry.agree is None or case.mode.endswith("dropout"):
        return []

    def results(name: str) -> tuple:
        result = found[name].call()
        return (result,) if case.mode == "forward" else result

    ours = results(OURS)
    others = [name for name in found if name != OURS and name not in entry.unlike]
    return [name for name in others if not all(map(entry.agree, ours, results(name)))]


def agreeing(case: Case, found: dict[str, Variant]) -> dict[str, Variant]:
    """`found` without the single peer that disagrees.

    Raises:
        RuntimeError: a variant of ours is among those that disagree, or half of the peers are.
    """
    wrong = disagreeing(case, found)
    compared = [name for name in found if not name.startswith(OURS) and name not in case.entry.unlike]
    if any(name.startswith(OURS) for name in wrong) or (wrong and 2 * len(wrong) >= len(compared)):
        raise RuntimeError(f"{case.entry.name} {case.shape}: ours and {', '.join(wrong)} disagree, nothing was timed")
    for name in wrong:
        console.print(f"[red]{case.entry.name}, {name}: left out[/red], its result is not that of the others")
    return {name: variant for name, variant in found.items() if name not in wrong}


def seen_on_cuda(variant: Variant, mode: str, device: torch.device) -> dict:
    """The columns that a GPU tells: the longest kernel, the peak, and what the forward leaves for the backward."""
    kernel = kernels.ran(variant.call)
    return {
        "backend": f"{variant.backend}: {kernel}" if kernel else variant.backend,
        "peak_mb": timing.cuda_peak(variant.call, device),
        "saved_mb": None if mode == "forward" else timing.cuda_held(variant.forward, device),
    }


def measure(case: Case, device: torch.device, budget: float, selection: Selection = ALL) -> list[rows.Row]:
    """One row per variant; ratios are to ours."""
    found = agreeing(case, variants(case, device, selection))
    clock = timing.clock(device.type, torch.get_num_threads())
    times = timing.interleave(
        {name: variant.call for name, variant in found.items()}, device, budget=budget, clock=clock
    )
    dtype = case.entry.dtypes[device.type]
    cost, factor = case.entry.cost(case.shape, dtype.itemsize), case.entry.factors[case.mode]

    def row(name: str, variant: Variant) -> rows.Row:
        seen = seen_on_cuda(variant, case.mode, device) if device.type == "cuda" else {"backend": variant.backend}
        return rows.Row(
            **rows.environment(device),
            op=case.entry.name,
            mode=case.mode,
            variant=name,
            shape=str(case.shape),
            dtype=str(dtype).removeprefix("torch."),
            median_ms=times[name].median,
            low_ms=times[name].low,
            high_ms=times[name].high,
            ratio=times[name].ratio(times[OURS]),
            ratio_to=OURS,
            gflop=cost.flop * factor.flop / 1e9,
            mbytes=cost.bytes * factor.bytes / 1e6,
            clock=clock,
            **seen,
        )

    return [row(name, variant) for name, variant in found.items()]


def bench(
    ops: list[str] | None = None,
    output: Path | None = None,
    quick: bool = False,
    seconds: float | None = None,
    selection: Selection = ALL,
    limit: float = float("inf"),
) -> int:
    """Time `ops` (default: all), and append rows to `output` where it is given: a CSV, or a folder of one per device.

    `seconds` is the budget of one group; no group is begun `limit` seconds after the start.
    Returns 0, 1 where a group failed, or 2 where an op is unknown or nothing is selected.
    """
    if unknown(ops or []):
        return 2
    device, begin = current_device(), time.monotonic()
    output = rows.chosen(Path(output) if output else None, device)
    budget = seconds or (2.0 if quick else 10.0)
    if warning := busy():
        console.print(f"[yellow]{warning}[/yellow]")
    selected = list(cases(ops, device, quick, selection))
    if not selected:
        console.print(f"[red]No shape and mode on {device.type} is among those asked for.[/red]")
        return 2
    found, failed = [], 0
    for case in track(selected, description="benchmark", console=console):
        if time.monotonic() - begin > limit:
            console.print(f"[yellow]{case.entry.name}, {case.mode}, {case.shape}: no time left[/yellow]")
            continue
        try:
            group = measure(case, device, budget, selection)
        except Exception as error:  # the other groups are still worth measuring
            left_out(f"{case.entry.name}, {case.mode}, {case.shape}", error)
            failed = 1
            continue
        finally:
            if device.type == "cuda":  # the next group may need all the memory
                gc.collect()
                torch.cuda.empty_cache()
        if output:
            rows.append(group, output)
        found += group
    rows.show(found, console)
    kept = f"appended to {output}" if output else "shown and not kept; --output bench/results would append them there"
    console.print(f"{len(found)} rows {kept}", soft_wrap=True)
    return failed


def verify(op: str, output: Path | None = None) -> int:
    """Run the op's tests, and only if they pass time it. Takes and returns as `bench`."""
    if unknown([op]):
        return 2
    tests = REGISTRY[op].tests
    # PYTHONSAFEPATH: the repository root holds a top-level triton_kernels, which others probe for
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if subprocess.run([sys.executable, "-m", "pytest", tests], cwd=timing.ROOT, env=environment).returncode:
        console.print(f"[red]{tests} fails: {op} is not timed[/red]")
        return 1
    return bench([op], output)


def listed(kind: Callable[[str], object], known: tuple = ()) -> Callable[[str], tuple]:
    """A parser of comma-separated values, of those that are known where some are given."""

    def parse(text: str) -> tuple:
        values = tuple(kind(part.strip()) for part in text.split(","))
        if strangers := [value for value in values if known and value not in known]:
            raise argparse.ArgumentTypeError(f"{strangers[0]!r} is not one of {', '.join(known)}")
        return values

    return parse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    shapes, modes = tuple(KNOWN), tuple(FACTORS)
    parser.add_argument("ops", nargs="*", help=f"default: all of {', '.join(REGISTRY)}")
    parser.add_argument("--quick", action="store_true", help="the first shape alone, two seconds a group")
    parser.add_argument("--seconds", type=float, help="budget of one group of variants")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no group is begun")
    parser.add_argument("--shapes", type=listed(str, shapes), default=(), help=f"of {', '.join(shapes)} (on a GPU)")
    parser.add_argument("--n", type=listed(int), default=(), help="sequence lengths, 1024,2048 for instance")
    parser.add_argument("--modes", type=listed(str, modes), default=(), help=f"of {', '.join(modes)}")
    parser.add_argument("--peers", type=listed(str), default=(), help="how their names begin, SDPA,eager for instance")
    parser.add_argument("--threads", type=count, help="of a CPU; one is timed in processor time (default: all)")
    parser.add_argument("--output", type=Path, help="CSV to append to, or a folder of them, such as bench/results")
    parser.add_argument("--verify", action="store_true", help="run each op's tests first and time only what passes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Verify or measure."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.verify:
        return max(verify(op, options.output) for op in options.ops or REGISTRY)
    selection = Selection(options.shapes, options.n, options.modes, options.peers)
    return bench(options.ops or None, options.output, options.quick, options.seconds, selection, options.limit)


if __name__ == "__main__":
    raise SystemExit(main())
