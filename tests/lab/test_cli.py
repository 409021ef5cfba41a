"""The command line itself: help, exit codes, commands that need a source checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import attrdrop
from attrdrop.lab.cli.main import app

COMMANDS = ["finetune", "train-images", "report", "doctor", "bench", "verify"]


def test_help_names_every_command():
    outcome = CliRunner().invoke(app, ["--help"])
    assert outcome.exit_code == 0
    assert all(command in outcome.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command):
    outcome = CliRunner().invoke(app, [command, "--help"])
    assert outcome.exit_code == 0
    assert "Usage" in outcome.output


def test_help_imports_nothing_of_the_lab():
    """attrdrop itself may load torch; transformers, pandas and matplotlib must wait for a command."""
    code = (
        "import sys, attrdrop.lab.cli.main\n"
        "print([name for name in ('transformers', 'pandas', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["finetune", "--epochs", "many"], ["finetune", "--preset", "huge"], ["finetune", "--seeds", "0"]]
)
def test_options_that_are_none(arguments):
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2
    assert arguments[1] in outcome.output


def test_report_of_a_folder_without_results(tmp_path):
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "holds no results" in outcome.output


@pytest.mark.parametrize("arguments", [["bench"], ["verify", "keep_mask"]])
def test_bench_outside_a_checkout_says_so(arguments, tmp_path):
    """The package copied elsewhere has no bench folder beside it."""
    package = Path(attrdrop.__file__).parent
    shutil.copytree(package, tmp_path / "attrdrop", ignore=shutil.ignore_patterns("*.so", "data", "__pycache__"))
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from attrdrop.lab.cli.main import main; main()"
    outcome = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert outcome.returncode == 2, outcome.stderr
    assert "source checkout" in outcome.stderr
    assert "Traceback" not in outcome.stderr
