"""Compiles into Triton's cache, for a GPU that is not there, what smoke.py and the benchmarks launch.

python -m bench.warm FILE        packs the cache into FILE, a .tar.xz, for the Triton of this Python alone

Tensors lie on the CPU; a launch compiles its kernel and does not run it, so results are what memory held.
"""

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

from attrdrop._core import backends
from bench import run, smoke
from bench.ops.shapes import FEATURES, NAMED

CAPABILITY, PROCESSORS = (9, 0), 132  # of an H100 or H200
OPS = ("keep_mask", "random_keep_mask", "masked_attention", "attention_attribution", "relevance_gate_relu")


class Absent:
    """A driver of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend() -> None:
    """From here on our kernels take CPU tensors and are compiled, not launched."""
    launch: Any = JITFunction.run
    triton.runtime.driver.set_active(Absent())
    JITFunction.run = lambda kernel, *arguments, **options: launch(kernel, *arguments, **options | {"warmup": True})
    backends.TRITON_INTERPRETED = True
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=PROCESSORS)


def calls() -> Iterator[tuple[str, Any]]:
    """What smoke.py does on a GPU, and each op of the benchmarks in its modes at the two named shapes."""
    for case in (*smoke.mask_cases(), *smoke.attention_cases(), *smoke.reldrop_cases()):
        if case.op in smoke.SERVED["triton"]:
            yield f"{case.op} {case.name}", lambda case=case: case.call("triton", *case.inputs())
    shapes = run.Selection(shapes=(*NAMED, *FEATURES))
    for case in run.cases(list(OPS), torch.device("cuda"), quick=False, selection=shapes):

        def call(case: run.Case = case) -> None:
            inputs = run.inputs_of(case, torch.device("cpu"), case.entry.dtypes["cuda"])
            run.compete(partial(case.entry.call, inputs, "triton"), case.mode, inputs, "triton").call()

        yield f"{case.entry.name} {case.shape} {case.mode}", call


def main(file: Path) -> int:
    """Exit code 1 where a call failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        pretend()
        for name, call in calls():
            try:
                call()
            except Exception as error:  # the other kernels are of use all the same
                failed += 1
                print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
        kernels = len(list(Path(folder).glob("*/*.cubin")))
        for kept in Path(folder).glob("*/*"):  # what a launch reads
            if kept.suffix not in (".cubin", ".json"):
                kept.unlink()
        with tarfile.open(file, "w:xz") as archive:
            archive.add(folder, ".")
    print(f"{kernels} kernels, {os.path.getsize(file) / 2**20:.1f} MiB")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
