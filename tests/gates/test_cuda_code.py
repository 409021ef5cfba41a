"""What nvcc made of the CUDA kernels: no local memory, and the instructions that they are written for."""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from attrdrop._core import backends

ROOT = Path(__file__).parents[2]
TOOLS = "backends/nvidia/bin"


def instructions(arch: str) -> dict[str, Counter[str]]:
    """How often each instruction stands in each kernel of the compiled library."""
    from attrdrop import _C

    triton = importlib.util.find_spec("triton")
    tool = triton and Path(triton.origin).parent / TOOLS / "cuobjdump"
    if not tool or not tool.exists():
        pytest.skip("no cuobjdump: it comes with triton")
    command = [str(tool), "-sass", "-arch", arch, _C.__file__]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels: dict[str, Counter[str]] = {}
    for line in code.splitlines():
        if "Function :" in line:
            kernel = kernels[line.split()[-1]] = Counter()
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", line):
            kernel[found[1]] += 1
    return kernels


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_blackwell_gets_kernels_without_spills(tmp_path):
    """As the build makes them by default; the tests' own build has the other chips, and its warnings are errors."""
    (chips,) = re.findall(r"--generate-code=[^\s>]*", (ROOT / "CMakeLists.txt").read_text())
    assert chips.endswith("code=[sm_100,sm_120]")
    includes = [f"-I{path}" for path in (ROOT / "csrc", Path(torch.__file__).parent / "include")]
    common = ["nvcc", "-std=c++20", "--expt-relaxed-constexpr", "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes]
    strict = [chips, "-fatbin", "--threads=2", "-Xptxas", "-warn-spills", "-Werror", "all-warnings"]
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    assert len(sources) >= 7
    for source in sources:
        command = [*common, *strict, str(source), "-o", str(tmp_path / "kernels.fatbin")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (source.name, done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(backends.CUDA_MISSING is not None, reason=str(backends.CUDA_MISSING))
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_use_tensor_cores_packed_compares_and_no_local_memory(arch):
    kernels = instructions(arch)
    assert len(kernels) > 20
    for name, kernel in kernels.items():
        assert not [i for i in kernel if i.startswith(("LDL", "STL"))], name
        multiplies = re.search(r"keep_mask(_keys|_ring)?_kernelINS_(4Bf16|3F16)E", name)
        counts = arch == "sm_90" and "_8Bf16Keys" in name and "keys_kernel" not in name  # by products with ones
        assert bool(multiplies or counts) == any(i.startswith("HMMA.16816.F32") for i in kernel), name
        if counts:
            assert any(i.startswith("HSET2.BF16") for i in kernel), name
