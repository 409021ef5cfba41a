"""Runs of experiments with several arms, for their tests: output folders, and processes that are stopped halfway."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Such small steps would mostly wait for a second one on a busy machine. Of transformers, not a word."""
    from attrdrop.lab.text.models import quiet

    quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(output):
    return json.loads((output / "results.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_resumable(output, report_type, figure, *command):
    """Kills an experiment of the arms plain and reldrop at two seeds, interrupts it, and lets it end."""
    command = [*command, "--output", output, "--arms", "plain,reldrop", "--seeds", "2"]
    process = _start(*command)
    _wait_for_runs(process, output, 1)
    process.kill()
    process.communicate()
    kept = results(output)["runs"]
    assert 1 <= len(kept) < 3
    assert not results(output)["complete"]
    assert (output / figure).exists()

    process = _start(*command)
    _wait_for_runs(process, output, len(kept) + 1)
    process.send_signal(signal.SIGINT)  # this early it comes in a garbage collection, where Python ignores it
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert f"{len(kept)} of 4 runs are in" in printed
    assert f"run {len(kept)} of 4" not in printed
    assert f"run {len(kept) + 1} of 4" in printed
    more = results(output)["runs"]
    assert more[: len(kept)] == kept
    assert f"Stopped early: {len(more)} of 4 runs are finished and kept" in printed
    assert "Traceback" not in printed
    assert report_type.load(output).runs == more

    printed, _ = _start(*command).communicate(timeout=120)
    content = results(output)
    assert content["complete"], printed
    assert content["runs"][: len(more)] == more
    order = [(run["seed"], run["arm"]) for run in content["runs"]]
    assert order == [(0, "plain"), (0, "reldrop"), (1, "reldrop"), (1, "plain")]


def _start(*command):
    command = [sys.executable, "-m", "attrdrop.lab.cli.main", *map(str, command), "--threads", "1"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _wait_for_runs(process, output, count):
    deadline = time.monotonic() + 180  # of a busy machine
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "results.json").exists() and len(results(output)["runs"]) >= count:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(process.communicate()[0])
