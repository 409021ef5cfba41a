"""Trials that do next to nothing but note that they began, and processes of a sweep that are stopped halfway."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.runs.pool import LOCAL, open_pool
from attrdrop.lab.runs.store import TrialStore, key_of

HEADER = {"settings": {"epochs": 2}, "task": {"name": "toy"}}


@dataclass(frozen=True)
class Toy:
    """Prepares the trials {"number": ..., "milliseconds": ...}, and some that go wrong: "end" says how.

    One with "until" lasts until that file exists.
    """

    begun: Path  # a line for each beginning: the key of the trial, the process

    def __call__(self):
        return self.work

    def work(self, trial):
        with self.begun.open("ab", buffering=0) as file:
            file.write(f"{key_of(trial)} {os.getpid()}\n".encode())
        time.sleep(trial.get("milliseconds", 0) / 1e3)
        if "until" in trial:
            wait_until(Path(trial["until"]).exists, seconds=600)
        match trial.get("end"):
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "diverge":
                raise RunError("the training loss became nan in epoch 2; try a smaller --lr.")
            case "refuse":
                raise InputError("--p: 7 is no probability.")
            case "bug":
                raise KeyError("a mistake of ours")
        return {"square": trial["number"] ** 2, "threads": torch.get_num_threads(), "process": os.getpid()}

    def lines(self):
        return [line.split() for line in self.begun.read_text().splitlines()] if self.begun.exists() else []

    @property
    def processes(self):
        return {int(process) for _, process in self.lines()}


class Long(Toy):
    """Whose results fill a small disk."""

    def work(self, trial):
        return super().work(trial) | {"long": "x" * 9000}


class DyingStore(TrialStore):
    def save(self, *arguments):
        super().save(*arguments)
        os._exit(1)


def refuse():
    raise InputError("--task: GLUE's rte could not be loaded.")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def plan(count, **values):
    return [{"number": number, **values} for number in range(count)]


def sweep(folder, trials, toy, jobs=1, executor=LOCAL, **notices):
    """A whole start of a sweep."""
    with open_pool(toy, TrialStore(folder, HEADER), jobs, 1, executor) as pool:
        return pool.run(trials, **notices)


def started(work, *arguments, errors=os.devnull):
    """A process of this test's own group of processes; it leaves 130 where it was interrupted, as commands do."""

    def run():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        try:
            work(*arguments)
        except KeyboardInterrupt:
            os._exit(130)

    process = multiprocessing.get_context("fork").Process(target=run)  # cheaper than to import PyTorch each time
    process.start()
    return process


def killed_after(seconds, work, *arguments):
    """Starts a process and kills it; says whether it was still at work."""
    process = started(work, *arguments)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def at_work(processes):
    return [
        process for process in processes
        if psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    ]  # fmt: skip


def wait_until(condition, seconds=60):
    """On a busy machine everything takes long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it took too long")
        time.sleep(0.01)
