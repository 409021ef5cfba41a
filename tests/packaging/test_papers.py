"""docs/papers.md: every command in it runs, on a tiny budget, and every test that it names is there."""

import re
from pathlib import Path

import pytest
from lab_runs import one_thread  # noqa: F401
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
COMMANDS = list(dict.fromkeys(found for row in ROWS for found in re.findall(r"`attrdrop ([a-z-]+ [^`]*)`", row)))
SMALL = "--train-size 24 --dev-size 8 --test-size 8 --epochs 2 --max-length 16 --seeds 1 --device cpu"
TINY = {  # what keeps a command short, after its own options
    "finetune": SMALL,
    "sweep": f"{SMALL} --iga-steps 2 --shares 0.5,1 --p-values 0.3,0.6 --q-values 0.5",
    "evaluate": "--test-size 8",
}
FEWER = {"--shots 16,64,256": "--shots 4", "--search 40": "--search 2"}


def shortened(command, model):
    for long, short in FEWER.items():
        command = command.replace(long, short)
    verb = command.split()[0]
    return [*command.split(), *TINY[verb].split(), *(["--model", str(model)] if verb != "evaluate" else [])]


def test_commands_and_tests_are_found():
    assert {command.split()[0] for command in COMMANDS} == {"finetune", "sweep", "evaluate"}
    assert len(COMMANDS) > 15
    named = {found for row in ROWS for found in re.findall(r"`(tests/[\w/.]+)`", row)}
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_rows_without_a_test_are_open_or_left_out():
    """What no test pins, the page does not claim, and it says why."""
    claims = PAGE.partition("\n## Where the released code differs")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in claims if line.startswith("| ")]
    rows = [row for row in rows if row[0] not in ("in the paper", "---")]
    assert len(rows) > 30
    for row in rows:
        has_reason = row[1] in ("**open**", "left out") and len(row) > 2
        assert "tests/" in " ".join(row) or has_reason, row


@pytest.mark.slow
def test_commands_run(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, command in enumerate(COMMANDS):
        arguments = shortened(command, tiny_bert)
        if "--output" not in arguments:
            arguments += ["--output", f"out{number}"]
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, f"attrdrop {command}\n{outcome.output}"
