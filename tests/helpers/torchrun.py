"""Scripts of this folder, started by torchrun or another launcher on several processes."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
TWO = ("--standalone", "--nproc-per-node=2")
UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Else a restart finds the addresses of dead processes in the store of torchrun (torch 2.13), and may wait for them."""


def started(script, *arguments, options=TWO, launcher="torch.distributed.run"):
    """The process of the launcher, a module, in a session of its own; its workers have theirs."""
    command = [sys.executable, "-m", launcher, *map(str, options), str(HELPERS / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1", UNSHARED: "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process, seconds=900):
    """Waits for it to succeed."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.terminate()  # which takes its workers along
    assert process.returncode == 0, output[-9000:]


def run(script, *arguments, **how):
    ended(started(script, *arguments, **how))
