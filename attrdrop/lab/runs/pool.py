"""Trials one after another in this process, or several at once in worker processes, any of which may die.

A worker saves what it has done itself: a result that had to travel first would be lost with the process it travels to.
The pools of concurrent.futures, loky and joblib will not do: a worker that dies breaks them whole and leaves unsaid
whose trial it was, while here it costs and names that one trial.
"""

import abc
import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

import torch

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.names import Record, Trial
from attrdrop.lab.runs.store import TrialStore

Work = Callable[[Trial], Any]
Maker = Callable[[], Work]
Outcomes = Generator[tuple[Trial, Exception | None], None, None]


def run_trials(
    trials: Iterable[Trial],
    prepare: Maker,
    store: TrialStore,
    jobs: int = 1,
    threads: int | None = None,
    starting: Callable[[Trial], None] = lambda trial: None,
    finished: Callable[[Record], None] = lambda record: None,
    failed: Callable[[Trial, str], None] = lambda trial, message: None,
) -> int:
    """`Pool.run` in a pool for this one call."""
    with open_pool(prepare, store, jobs, threads) as pool:
        return pool.run(trials, starting, finished, failed)


class Executor:
    """x the trials: this process or others of this machine. A subclass names another."""

    def is_this_process(self, jobs: int) -> bool:
        return jobs == 1

    def pool(self, prepare: Maker, store: TrialStore, jobs: int, threads: int | None) -> "Pool":
        if self.is_this_process(jobs):
            return _OwnProcess(prepare, store, threads)
        return _Workers(prepare, store, jobs, threads or threads_of(jobs))


def threads_of(jobs: int) -> int:
    """Of each of so many jobs at once, where nobody says."""
    return max(1, torch.get_num_threads() // jobs)


LOCAL = Executor()


@contextlib.contextmanager
def open_pool(
    prepare: Maker, store: TrialStore, jobs: int = 1, threads: int | None = None, executor: Executor = LOCAL
) -> Iterator["Pool"]:
    """A pool that holds the folder of the store and, where it has workers, keeps them from run to run.

    Args:
        prepare: makes, once in every process, the function that does a trial and returns a result of plain values. It
            is pickled but for one local job.
        store: keeps the results.
        jobs: trials that are done at once.
        threads: of PyTorch, in every process; by default this process keeps its own, and workers share as many.

    Raises:
        InputError: another experiment holds the folder.
    """
    with store.locked():
        pool = executor.pool(prepare, store, jobs, threads)
        try:
            yield pool
        finally:
            pool.stop()


class Pool(abc.ABC):
    """What does trials and keeps their results."""

    store: TrialStore

    @abc.abstractmethod
    def stop(self) -> None:
        """Ends all workers at once, with what they are at."""

    def run(
        self,
        trials: Iterable[Trial],
        starting: Callable[[Trial], None] = lambda trial: None,
        finished: Callable[[Record], None] = lambda record: None,
        failed: Callable[[Trial, str], None] = lambda trial, message: None,
    ) -> int:
        """Do every trial that has no result yet, and return how many of them failed.

        A trial that raises RunError, or whose worker dies, is kept as failed, and the others go on. Whatever ends this
        early, finished trials are on disk and only those under way are lost.

        Raises:
            InputError: raised by a trial or in preparation, or a result cannot be written.
            RunError: raised in preparation, or a worker died in it.
            KeyboardInterrupt: after the workers were stopped.
        """
        failures = 0
        with contextlib.closing(self._outcomes(self.store.pending(trials), starting)) as outcomes:
            for trial, error in outcomes:
                if error is None:
                    finished(self.store.results([trial])[0])
                else:
                    self.store.fail(trial, str(error))
                    failed(trial, str(error))
                    failures += 1
        return failures

    @abc.abstractmethod
    def _outcomes(self, trials: list[Trial], starting: Callable[[Trial], None]) -> Outcomes:
        """Every trial when it is done, with the reason where it has no result."""


class _OwnProcess(Pool):
    def __init__(self, prepare: Maker, store: TrialStore, threads: int | None) -> None:
        self.prepare, self.store, self.threads = prepare, store, threads
        self._work: Work | None = None

    def stop(self) -> None:
        """What is done here has ended by now."""

    def _outcomes(self, trials: list[Trial], starting: Callable[[Trial], None]) -> Outcomes:
        for trial in trials:
            if self._work is None:
                self._work = prepared(self.prepare, self.threads)
            starting(trial)
            try:
                _do(trial, self._work, self.store)
            except RunError as error:
                yield trial, error
            else:
                yield trial, None


class _Workers(Pool):
    def __init__(self, prepare: Maker, store: TrialStore, jobs: int, threads: int) -> None:
        self.store, self.jobs, self._arguments = store, jobs, (prepare, store, jobs, threads)
        self._workers: list[_Worker] = []

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        while self._workers:
            self._workers.pop().ended()

    def _outcomes(self, trials: list[Trial], starting: Callable[[Trial], None]) -> Outcomes:
        waiting = collections.deque(trials)
        try:
            while waiting or self._busy:
                for worker in self._workers:
                    if waiting and worker.idle:
                        starting(waiting[0])
                        worker.give(waiting.popleft())
                while len(self._workers) < min(self.jobs, self._busy + len(waiting)):
                    with _interrupts_blocked():
                        self._workers.append(_Worker(*self._arguments))
                for worker in self._answering():
                    trial, error = worker.answer()
                    if worker.dead:
                        self._workers.remove(worker)
                    if error and (trial is None or not isinstance(error, RunError)):
                        raise error
                    if trial is not None:  # it may have died after saving
                        yield trial, error if self.store.pending([trial]) else None
        except BaseException:
            self.stop()
            raise

    @property
    def _busy(self) -> int:
        return sum(worker.trial is not None for worker in self._workers)

    def _answering(self) -> "list[_Worker]":
        """Waits for one or more of the workers that owe an answer."""
        ready = connection.wait([worker.connection for worker in self._workers if not worker.idle])
        return [worker for worker in self._workers if worker.connection in ready]


class _Worker:
    """A process that prepares and then takes one trial at a time, as its parent sees it."""

    def __init__(self, prepare: Maker, store: TrialStore, jobs: int, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads halfway
        self.connection, its_own = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(its_own, prepare, store, jobs, threads), daemon=True)
        self.process.start()
        its_own.close()  # so that the pipe ends with the process
        self.trial: Trial | None = None
        self.idle = self.dead = False

    def give(self, trial: Trial) -> None:
        self.trial, self.idle = trial, False
        with contextlib.suppress(OSError):  # it died meanwhile; its answer will say so
            self.connection.send(trial)

    def answer(self) -> tuple[Trial | None, Exception | None]:
        """The trial it was given, None where it prepared, and what went wrong."""
        try:
            error = self.connection.recv()
            self.idle = True
        except (EOFError, OSError):
            self.dead = True
            error = RunError(self.ended())
        trial, self.trial = self.trial, None
        return trial, error

    def ended(self) -> str:
        """Waits for the end of the process and says how it came."""
        self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"a worker process ended with exit code {code}."
        advice = "; if memory ran out, try fewer --jobs" if -code == signal.SIGKILL else ""
        return f"a worker process was killed by {signal.Signals(-code).name}{advice}."


def _serve(pipe: connection.Connection, prepare: Maker, store: TrialStore, jobs: int, threads: int) -> None:
    """The whole life of a worker: each answer is None or an exception of plain text."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work = prepared(prepare, threads)
    except Exception as error:
        pipe.send(plain_error(error))
        return
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(None)
        while True:
            trial = pipe.recv()
            try:
                _do(trial, work, store, jobs)
                answer = None
            except Exception as error:
                answer = plain_error(error)
            pipe.send(answer)


def prepared(prepare: Maker, threads: int | None) -> Work:
    if threads:
        torch.set_num_threads(threads)
    return prepare()


def _do(trial: Trial, work: Work, store: TrialStore, jobs: int = 1) -> None:
    started = time.perf_counter()
    result = result_of(trial, work)
    store.save(trial, result, time.perf_counter() - started, jobs)


def result_of(trial: Trial, work: Work) -> Any:
    """Raises RunError where memory runs out."""
    try:
        return work(trial)
    except torch.OutOfMemoryError as error:
        raise RunError(f"{error}; try a smaller --batch-size or fewer --jobs.") from error


def plain_error(error: Exception) -> Exception:
    """The error without what may not travel between processes."""
    for kind in (InputError, RunError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"in a worker process:\n{''.join(traceback.format_exception(error))}")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal, SIGTERM often a whole group; one that starts in here leaves both to
    its parent, from the first."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its own start, within that of a process, would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
