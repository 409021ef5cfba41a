"""Examples of the command line: those in each command's help and all of README and docs name options that exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = get_command(app).commands
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def documented() -> list[str]:
    """The commands in blocks of the pages, but for those with variables of the shell."""
    blocks = [block for page in PAGES for block in BLOCK.findall(page.read_text())]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("attrdrop ") and "$" not in line]


def check(line: str) -> None:
    """Parses a command without running it: an option that is not there, or a wrong value, raises."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    with COMMANDS[name].make_context(name, arguments):
        pass


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_ends_with_examples_that_parse(name):
    outcome = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    lines = [line.strip() for line in outcome.output.splitlines()]
    examples = [line for line in COMMANDS[name].epilog.split("\n\n") if line.startswith(f"attrdrop {name}")]
    assert examples
    for example in examples:
        assert example in lines  # whole, on one line
        check(example)


def test_commands_of_the_pages_parse():
    lines = documented()
    assert len(lines) > 40
    for line in lines:
        check(line)


def test_a_wrong_option_would_be_found():
    with pytest.raises(Exception, match="No such option: --sneed"):
        check("attrdrop finetune --sneed 3")


def test_completion_can_be_installed():
    outcome = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert "--install-completion" in outcome.output
    assert max(map(len, outcome.output.splitlines())) <= 80
