"""Every CPU kernel, in every instruction set, on random problems under AddressSanitizer and UBSan."""

import json
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import attrdrop  # noqa: F401  (registers build_info)

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = sorted((CSRC / "cpu/isa").glob("*.cpp"))
FLAGS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma", "-mpopcnt", "-mbmi", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mpopcnt", "-mbmi", "-mf16c"],
}
COMPILE = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
           "-fno-sanitize=alignment", "-ffp-contract=off", "-w", f"-I{CSRC}"]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The kernels and the driver as one executable."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("sanitized")
    is_x86 = platform.machine() in ("x86_64", "AMD64")

    def compile_one(isa, source):
        target = folder / f"{isa}-{source.stem}.o"
        define = [f"-DATTRDROP_ISA={isa}", *FLAGS[isa]]
        subprocess.run([compiler, *COMPILE, *define, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    jobs = [(isa, source) for isa in (FLAGS if is_x86 else ["base"]) for source in KERNELS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), jobs))
    sources = [str(Path(__file__).with_name("sanitize_kernels.cpp")), str(CSRC / "cpu/dispatch.cpp")]
    x86 = ["-DATTRDROP_X86=1"] if is_x86 else []
    subprocess.run([compiler, *COMPILE, *x86, *sources, *objects, "-o", str(folder / "program")], check=True)
    return folder / "program"


@pytest.mark.slow
@pytest.mark.parametrize("isa", FLAGS)
def test_no_access_outside_a_buffer(program, isa):
    if isa not in json.loads(torch.ops.attrdrop.build_info())["isa_available"].split():
        pytest.skip(f"this processor does not run {isa}")
    done = subprocess.run([str(program)], env={**os.environ, "ATTRDROP_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{isa}: 400 problems"
