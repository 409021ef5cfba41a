"""A disk that is full or read-only: one sentence, nothing half-written, and the same command does the rest."""

import os
import shutil
import subprocess

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import build
from sweep_trials import HEADER, Long, Toy, plan, sweep

from attrdrop import ADDrop
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.store import TrialStore

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="only root may mount a small disk"
)


def mount(folder, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=64k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def numbers(folder):
    return sorted(record["result"]["square"] for record in TrialStore(folder, HEADER).results())


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_in_a_sweep(tmp_path, disk, jobs):
    folder, toy = disk / "out", Long(tmp_path / "begun")
    with pytest.raises(InputError, match=r"--output: .* cannot be written: No space left"):
        sweep(folder, plan(12), toy, jobs)
    kept = numbers(folder)
    assert 0 < len(kept) < 12
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    assert sweep(folder, plan(12), toy, jobs) == 0
    assert numbers(folder) == [number**2 for number in range(12)]
    assert not [path for path in folder.rglob(".*") if ".json." in path.name]


def test_a_disk_that_becomes_read_only(tmp_path, disk):
    folder, toy = disk / "out", Toy(tmp_path / "begun")
    assert sweep(folder, plan(2), toy) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(InputError, match=r"--output: .*Read-only file system"):
        sweep(folder, plan(3), toy)
    assert numbers(folder) == [0, 1]


def test_a_disk_that_fills_up_in_a_checkpoint(disk):
    """The one before it is whole and is what a run goes on from."""
    addrop = ADDrop(build("bert"), cross_tuning=False)
    addrop.start_epoch(3)
    addrop.start_step(7)
    dcp.save({"addrop": addrop}, checkpoint_id=disk / "1", no_dist=True)
    with pytest.raises(dcp.api.CheckpointException):
        dcp.save({"addrop": addrop, "large": torch.zeros(100_000)}, checkpoint_id=disk / "2", no_dist=True)
    assert [path.parent.name for path in disk.glob("*/.metadata")] == ["1"]
    resumed = ADDrop(build("bert"), cross_tuning=False)
    dcp.load({"addrop": resumed}, checkpoint_id=disk / "1", no_dist=True)
    assert resumed.state_dict() == addrop.state_dict()
