"""Runs of experiments, for their tests: made-up data, output folders, and processes that are stopped halfway."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
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


def squares(count=60, channels=3, classes=3, seed=0):
    """Images x (N, 16, 16, C), labels y, and masks of a bright square whose place tells the class."""
    draws = np.random.default_rng(seed)
    x = draws.integers(0, 128, (count, 16, 16, channels), dtype=np.uint8)
    y = np.arange(count) % classes
    mask = np.zeros((count, 16, 16), dtype=bool)
    for n, label in enumerate(y):
        mask[n, 4:8, 5 * label : 5 * label + 4] = True
    x[mask] = 255
    return {"x": x, "y": y, "mask": mask}


def sticks(count=60, points=24, channels=3, classes=3):
    """Clouds whose classes differ by the axis along which they are long."""
    draws = np.random.default_rng(0)
    y = np.arange(count) % classes
    x = draws.normal(0, 0.2, (count, points, channels))
    for n, label in enumerate(y):
        x[n, :, label] *= 8
    return {"x": x.astype(np.float32), "y": y}


def results(output):
    return json.loads((output / "results.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def heed_interrupts():
    """For a child of tests that were started in the background of a script: they, and it, would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*command, prepared=heed_interrupts):
    command = [sys.executable, "-m", "attrdrop.lab.cli.main", *map(str, command), "--threads", "1"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        preexec_fn=prepared,
    )  # fmt: skip


def wait_for_runs(process, output, count):
    deadline = time.monotonic() + 180  # of a busy machine
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "results.json").exists() and len(results(output)["runs"]) >= count:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(process.communicate()[0])
