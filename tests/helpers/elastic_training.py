"""Training that goes on from its last whole checkpoint, on however many processes there are; it may kill itself once.

Run by torchrun with a folder, an engine, and what dies in the first start: a process in a "step", between the passes of
AD-DROP, or in a "checkpoint", with a part of it written; a "machine" in a step, with all that runs there; "never".
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from engine_steps import Noted, layers, step, whole_batch
from engines import engine, place
from models import build
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

STEPS, EPOCH = 6, 3  # epoch 2 has AD-DROP
DEADLY_STEP = 4


class Dying(dcp.FileSystemWriter):
    """Dies with its part written and not yet told of."""

    def write_data(self, plan, planner):
        super().write_data(plan, planner)
        die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_machine():
    os.killpg(os.getppid(), signal.SIGKILL)  # torchrun's own session
    die()


def train(folder: Path, name: str, death: str) -> dict:
    """Weights, and a digest of the masks of each step."""
    trained = engine(name, build("bert", torch.float64), layers)
    addrop = Noted(trained.model, p=0.4, q=0.5)
    digests: dict[str, str] = {}
    state = functools.partial(get_state_dict, trained.model, trained.optimizer)
    done = max((int(path.parent.name) for path in folder.glob("*/.metadata")), default=0)
    if done:
        model, optimizer = state()
        digests = dict.fromkeys(map(str, range(done)), "")
        dcp.load(
            {"model": model, "optimizer": optimizer, "addrop": addrop, "digests": digests},
            checkpoint_id=folder / str(done),
        )
        set_state_dict(trained.model, trained.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    rank, count = place()
    is_to_die = count > 1 and rank == count - 1 and not done
    for number in range(done, STEPS):
        addrop.start_epoch(number // EPOCH + 1)
        assert addrop.state_dict()["step"] == number
        deadly = is_to_die and number == DEADLY_STEP
        if deadly and death in ("step", "machine"):
            addrop.between = die if death == "step" else die_with_machine
        found = step(trained, addrop, whole_batch(number, torch.float64), [split(count)])
        digests[str(number)] = hashlib.sha256(b"".join(x.numpy().tobytes() for x in found["masks"])).hexdigest()
        writer = Dying if deadly and death == "checkpoint" else dcp.FileSystemWriter
        target = folder / str(number + 1)
        model, optimizer = state()
        whole = {"model": model, "optimizer": optimizer, "addrop": addrop, "digests": digests}
        dcp.save(whole, storage_writer=writer(target, overwrite=True))
    return {"weights": trained.weights(), "digests": digests}


def split(count: int) -> list[int]:
    """8 samples on so many processes, unevenly."""
    return {1: [8], 2: [5, 3], 4: [3, 2, 2, 1]}[count]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, name, death = sys.argv[1:]
    found = train(Path(folder) / "checkpoints", name, death)
    if dist.get_rank() == 0:
        torch.save({**found, "processes": dist.get_world_size()}, Path(folder) / "result.pt")
    dist.destroy_process_group()
