"""Every example of the page on several processes runs, by the command that stands below it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs/howto/many_processes.md").read_text()
FILES = {name: text for text, name in re.findall(r"^```\w+\n(# (\w+\.\w+)\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)}
COMMANDS = re.findall(r"^```bash\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
NEEDS = {"deepspeed": "deepspeed", "zero": "deepspeed", "lightning": "lightning", "executor ray": "ray"}


def test_every_script_has_a_command():
    assert FILES.keys() - {"toy.py"} == set(re.findall(r"\w+\.(?:py|yaml)", " ".join(COMMANDS)))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[-2:]))
def test_example_runs(command, tmp_path):
    for word, package in NEEDS.items():
        if word in command and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    launchers = {
        "torchrun": f"{sys.executable} -m torch.distributed.run",
        "accelerate": f"{sys.executable} -m accelerate.commands.accelerate_cli",
        "python": sys.executable,
        "attrdrop": str(Path(sys.executable).with_name("attrdrop")),
    }
    program, _, rest = command.partition(" ")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        f"{launchers[program]} {rest}", shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
