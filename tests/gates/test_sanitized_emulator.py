"""The CUDA kernels, run by the emulator, on random problems under AddressSanitizer and UBSan."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILE = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-ffp-contract=off",
           "-w", f"-I{CSRC}"]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The kernels, the emulator and the driver as one executable."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    target = tmp_path_factory.mktemp("sanitized") / "program"
    sources = [
        Path(__file__).with_name("sanitize_emulated.cpp"),
        CSRC / "emulator/emulator.cpp",
        CSRC / "emulator/fiber.cpp",
    ]
    subprocess.run([compiler, *COMPILE, *map(str, sources), "-o", str(target)], check=True)
    return target


@pytest.mark.slow
def test_no_access_outside_a_buffer(program):
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "emulated: 60 problems"


@pytest.mark.slow
def test_a_write_past_shared_memory_is_caught(program):
    done = subprocess.run([str(program), "overrun"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "samples.cuh" in done.stderr
