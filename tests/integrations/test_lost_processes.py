"""Training goes on where a process was lost, on as many processes as are left, to what an undisturbed run gives."""

import signal
import socket

import elastic_training
import pytest
import torch
from torchrun import TWO, ended, run, started


def check(folder, processes, tmp_path):
    """The weights and masks of an undisturbed process alone."""
    found = torch.load(folder / "result.pt")
    assert found["processes"] == processes
    whole = elastic_training.train(tmp_path / "alone", "alone", "never")
    assert found["digests"] == whole["digests"]
    assert len(set(whole["digests"].values())) == 1 + elastic_training.EPOCH  # plain ones, and three with AD-DROP
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "death"), [("ddp", "step"), ("fsdp2", "checkpoint")])
def test_a_killed_process_is_started_anew(tmp_path, engine, death):
    """Its last checkpoint is the last whole one: a half-written one is passed over."""
    options = [*TWO, "--max-restarts=3", "--monitor-interval=0.5"]
    run("elastic_training.py", tmp_path, engine, death, options=options)
    check(tmp_path, 2, tmp_path)


@pytest.mark.slow
def test_a_lost_machine_is_done_without(tmp_path):
    """Two machines with a process each, one killed in the middle of a step: the other goes on alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def machine(is_host):
        conf = f"is_host={is_host},last_call_timeout=3,join_timeout=120,keep_alive_interval=1,keep_alive_max_attempt=3"
        options = [
            "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=lost", f"--rdzv-conf={conf}", "--monitor-interval=0.5",
            "--local-addr=127.0.0.1",
        ]  # fmt: skip
        return started("elastic_training.py", tmp_path, "fsdp2", "machine", options=options)

    stays, dies = machine(1), machine(0)
    ended(stays)
    check(tmp_path, 1, tmp_path)
    dies.wait(timeout=10)
    assert dies.returncode == -signal.SIGKILL
