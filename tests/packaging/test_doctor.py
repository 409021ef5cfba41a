"""`attrdrop doctor` and the facts behind it."""

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import attrdrop
from attrdrop.doctor import facts, next_step
from attrdrop.lab.cli.main import app

NAMES = [
    "attrdrop", "python", "torch", "compiled kernels (_C)", "instruction set", "host module (_host)", "CUDA kernels",
    "CUDA device", "triton", "transformers", "environment ATTRDROP_ISA", "environment ATTRDROP_BACKEND",
]  # fmt: skip


def doctor(**environment):
    """The facts in a process of its own, as JSON."""
    printed = subprocess.run(
        [sys.executable, "-m", "attrdrop.doctor"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
        cwd=environment.get("PYTHONPATH"),
    )
    return json.loads(printed.stdout)


def test_facts_of_this_machine():
    found = facts()
    assert list(found)[: len(NAMES)] == NAMES
    assert found["attrdrop"]["value"] == attrdrop.__version__
    assert found["torch"] == {"value": torch.__version__, "active": True, "why": ""}
    assert found["CUDA device"]["active"] == torch.cuda.is_available()
    served = "C++" if found["compiled kernels (_C)"]["active"] else "PyTorch reference"
    assert found["CPU tensors are served by"]["value"] == served
    for name, fact in found.items():
        assert fact["value"], name
        assert fact["active"] is not False or fact["why"], name


def test_json_and_table_show_the_same_facts():
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 0
    found = json.loads(shown.output)
    table = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "40"})  # piped, nothing is cut
    assert table.exit_code == 0
    assert len(table.output.splitlines()) == len(found) + 1
    assert table.output.splitlines()[-1] == f"Next: {next_step(found)}"
    for name, fact in found.items():
        assert name in table.output
        assert fact["value"] in table.output
        assert fact["why"] in table.output


ABSENT_IN_TURN = {
    "torch": "install torch",
    "compiled kernels (_C)": "build the kernels",
    "transformers": "pip install transformers",
    "nothing": "attrdrop finetune --preset demo",
}


@pytest.mark.parametrize("absent", ABSENT_IN_TURN)
def test_the_next_step_is_the_first_that_is_missing(absent):
    names = list(ABSENT_IN_TURN)
    found = {name: {"active": name == "nothing" or names.index(name) < names.index(absent)} for name in names}
    found |= {name: {"active": False} for name in ("CUDA device", "CUDA kernels", "triton")}
    assert next_step(found).startswith(ABSENT_IN_TURN[absent])


def test_a_gpu_without_kernels_is_told_of_triton():
    found = {key: {"active": True} for key in ("torch", "compiled kernels (_C)", "CUDA device", "transformers")}
    found |= {key: {"active": False} for key in ("CUDA kernels", "triton")}
    assert "triton" in next_step(found)


def test_without_arguments_five_first_steps_are_shown_that_exist():
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert max(map(len, lines)) <= 80
    steps = [line.split()[1] for line in lines if line.startswith("  attrdrop ")]
    assert len(steps) == 5
    assert set(steps) <= {name for name in typer.main.get_command(app).commands}


def test_overrides_are_shown():
    found = doctor(ATTRDROP_BACKEND="reference")
    assert found["environment ATTRDROP_BACKEND"]["value"] == "reference"
    assert found["backend of every op"]["value"] == "reference"


def test_a_wrong_instruction_set_is_explained():
    if not facts()["compiled kernels (_C)"]["active"]:
        pytest.skip("no compiled kernels here")
    fact = doctor(ATTRDROP_ISA="abacus")["instruction set"]
    assert fact["active"] is False
    assert "abacus" in fact["why"]


def test_without_compiled_parts(tmp_path):
    """A copy of the package whose extensions do not load."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "data", "__pycache__")
    shutil.copytree(Path(attrdrop.__file__).parent, tmp_path / "attrdrop", ignore=ignored)
    for name in ("_C", "_host"):
        (tmp_path / "attrdrop" / (name + EXTENSION_SUFFIXES[0])).touch()
    found = doctor(PYTHONPATH=str(tmp_path))
    for name in ("compiled kernels (_C)", "instruction set", "host module (_host)", "CUDA kernels"):
        assert found[name]["active"] is False, name
        assert found[name]["why"], name
    assert found["CPU tensors are served by"]["value"] == "PyTorch reference"
