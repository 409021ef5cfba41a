"""Trials on the machines of a Ray cluster, any of which may die. Raises InputError at import where Ray is missing."""

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.names import Trial
from attrdrop.lab.runs.pool import Executor, Maker, Outcomes, Pool, Work, plain_error, prepared, result_of, threads_of
from attrdrop.lab.runs.store import TrialStore

try:
    import ray
except ImportError:
    raise InputError("--executor: ray needs the package ray: pip install 'attrdrop[sweep-ray]'.") from None

STARTS_AT_MOST = 4  # of a trial whose machine or process dies
Answer = tuple[Any, float, Exception | None]  # a result and its seconds, or what went wrong

_works: dict[bytes, Work] = {}
"""What this process has prepared, the last alone."""


@dataclass(frozen=True)
class RayExecutor(Executor):
    """The machines of a Ray cluster at an address, as for ``ray.init``; None starts one on this machine."""

    address: str | None = None

    def is_this_process(self, jobs: int) -> bool:
        return False

    def pool(self, prepare: Maker, store: TrialStore, jobs: int, threads: int | None) -> Pool:
        return RayPool(self.address, prepare, store, jobs, threads or threads_of(jobs))


class RayPool(Pool):
    """One trial is one task, with its cores and, where the cluster has any, a GPU of its own.

    Results are sent back and kept by this process, so the machines need no folder in common: whatever dies, a trial has
    its one result or none. A trial whose machine or process dies is started anew elsewhere.

    Args:
        address: of the cluster; None starts one.
        jobs: trials at once, at most; 1: as many as the cluster takes.
        threads: of PyTorch, and cores of a trial.
    """

    def __init__(self, address: str | None, prepare: Maker, store: TrialStore, jobs: int, threads: int) -> None:
        self.store = store
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            try:
                ray.init(address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise InputError(f"--address: no Ray cluster answers at {address}: {reason}.") from None
        have = ray.cluster_resources()
        self.jobs = jobs if jobs > 1 else max(1, int(have.get("CPU", 1)) // threads)
        self._do = ray.remote(
            num_cpus=threads, num_gpus=1 if have.get("GPU") else 0, max_retries=STARTS_AT_MOST - 1
        )(_answer)  # fmt: skip
        self._arguments = (ray.put(pickle.dumps(prepare)), threads)
        self._running: dict[Any, Trial] = {}

    def stop(self) -> None:
        """Ends what is under way, and a cluster that was started for it."""
        for task in self._running:
            with contextlib.suppress(Exception):  # it may have ended
                ray.cancel(task, force=True)
        self._running.clear()
        if self._is_ours:
            ray.shutdown()

    def _outcomes(self, trials: list[Trial], starting: Callable[[Trial], None]) -> Outcomes:
        waiting = deque(trials)
        while waiting or self._running:
            while waiting and len(self._running) < self.jobs:
                trial = waiting.popleft()
                starting(trial)
                self._running[self._do.remote(*self._arguments, trial)] = trial
            (task, *_), _ = ray.wait(list(self._running))
            trial = self._running.pop(task)
            result, seconds, error = _received(task)
            if error is None:
                self.store.save(trial, result, seconds, self.jobs)
            elif not isinstance(error, RunError):
                raise error
            yield trial, error


def _received(task: Any) -> Answer:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:  # the machine or the process is gone
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return None, 0.0, RunError(f"its process died {STARTS_AT_MOST} times: {reason}.")


def _answer(pickled: bytes, threads: int, trial: Trial) -> Answer:
    """The whole of a task; its process may do others, and keeps what it has prepared."""
    try:
        if pickled not in _works:
            _works.clear()
            _works[pickled] = prepared(pickle.loads(pickled), threads)
        started = time.perf_counter()
        return result_of(trial, _works[pickled]), time.perf_counter() - started, None
    except Exception as error:
        return None, 0.0, plain_error(error)
