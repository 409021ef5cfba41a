"""Trials in this process and in workers: whatever is killed, nothing finished is lost or done again."""

import contextlib
import multiprocessing
import os
import random
import signal
from collections import Counter

import psutil
import pytest
import torch
from sweep_trials import (
    HEADER,
    DyingStore,
    Toy,
    at_work,
    die,
    killed_after,
    plan,
    refuse,
    started,
    sweep,
    wait_until,
)

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.runs.pool import open_pool, run_trials
from attrdrop.lab.runs.store import TrialStore, key_of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path / "begun")


@pytest.fixture
def store(folder):
    return TrialStore(folder, HEADER)


def results(folder):
    return TrialStore.load(folder).results() if (folder / "sweep.json").exists() else []


def workers_of(process):
    """Its spawned children, without the one that counts resources, which an earlier test may have started."""
    workers = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            workers += [child.pid] if any("spawn_main" in word for word in child.cmdline()) else []
    return workers


def assert_each_has_one_result(folder, trials):
    found = results(folder)
    assert sorted(record["trial"]["number"] for record in found) == [trial["number"] for trial in trials]
    assert all(record["result"]["square"] == record["trial"]["number"] ** 2 for record in found)


def test_this_process_kills_at_many_moments(folder, toy):
    trials = plan(250, milliseconds=3)
    done, seconds = set(), 0.08
    for kills in range(1, 11):
        assert killed_after(random.uniform(0.01, seconds), sweep, folder, trials, toy)
        seconds *= 1 if done else 1.5  # a busy machine needs longer for the first one
        done = {key_of(record["trial"]) for record in results(folder)}
        begun = Counter(key for key, _ in toy.lines())
        assert len(set(begun) - done) <= 1
        assert sum(begun.values()) - len(done) <= kills
    assert done
    sweep(folder, trials, toy)
    assert_each_has_one_result(folder, trials)


@pytest.mark.slow
def test_workers_are_interrupted_and_their_parent_is_killed(folder, toy, tmp_path):
    trials, said = plan(50, milliseconds=80), tmp_path / "said"

    def start_until(count):
        before = toy.processes
        process = started(sweep, folder, trials, toy, 3, errors=said)
        wait_until(
            lambda: not process.is_alive() or (len(results(folder)) >= count and len(toy.processes - before) >= 2)
        )
        assert process.is_alive(), said.read_text()
        return process

    process = start_until(5)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does to all processes of a terminal
    process.join(30)
    assert process.exitcode == 130
    assert at_work(toy.processes) == []
    first = results(folder)
    assert len(first) >= 5

    process = start_until(len(first) + 5)
    process.kill()
    process.join()
    wait_until(lambda: not at_work(toy.processes), seconds=5)
    second = results(folder)
    assert second[: len(first)] == first

    sweep(folder, trials, toy)
    assert results(folder)[: len(second)] == second
    assert_each_has_one_result(folder, trials)
    assert len(toy.lines()) <= len(trials) + 2 * 3
    assert said.read_text() == ""


def test_workers_are_interrupted_while_they_start(folder, toy, tmp_path):
    said = tmp_path / "said"
    process = started(sweep, folder, plan(9, milliseconds=300), toy, 2, errors=said)  # or one worker may do them all
    wait_until(lambda: len(workers_of(process)) == 2)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    wait_until(lambda: not at_work(workers), seconds=5)
    assert said.read_text() == ""


def test_workers_leave_interrupts_to_their_parent(folder, toy, tmp_path):
    said = tmp_path / "said"
    process = started(sweep, folder, plan(4, milliseconds=50), toy, 2, errors=said)
    while process.is_alive():
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGINT)
        process.join(0.05)
    assert process.exitcode == 0
    assert said.read_text() == ""
    assert_each_has_one_result(folder, plan(4))


def test_a_worker_dies_with_its_parent_amid_a_long_trial(folder, toy):
    process = started(sweep, folder, plan(1, milliseconds=60_000), toy, 2)
    wait_until(toy.lines)
    process.kill()
    process.join()
    wait_until(lambda: not at_work(toy.processes), seconds=5)


def test_a_dying_worker_fails_its_trial_alone(folder, toy, store):
    ends = {1: "exit", 2: "kill", 4: "diverge"}
    trials = [trial | {"end": ends.get(trial["number"], "well")} for trial in plan(8)]
    starting, finished, failed = [], [], []
    with open_pool(toy, store, jobs=2, threads=1) as pool:
        assert pool.run(trials, starting.append, finished.append, lambda *failure: failed.append(failure)) == 3
        assert starting == trials
        assert sorted(record["trial"]["number"] for record in finished) == [0, 3, 5, 6, 7]
        assert {record["result"]["threads"] for record in finished} == {1}
        messages = {trial["number"]: message for trial, message in failed}
        assert messages == {
            1: "a worker process ended with exit code 3.",
            2: "a worker process was killed by SIGKILL; if memory ran out, try fewer --jobs.",
            4: "the training loss became nan in epoch 2; try a smaller --lr.",
        }
        assert {record["trial"]["number"]: record["message"] for record in store.failures()} == messages
        assert [trial["number"] for trial in store.pending(trials)] == [1, 2, 4]

        assert pool.run(plan(8, end="again"), finished=finished.append) == 0
        assert len(toy.processes) <= 4  # two, and two in place of the dead
        for end, kind, message in (("refuse", InputError, "--p: 7 is"), ("bug", RuntimeError, "a mistake of ours")):
            with pytest.raises(kind, match=message):
                pool.run(plan(1, end=end))
            assert multiprocessing.active_children() == []
        assert len(store.failures()) == 3
    assert results(folder) == store.results()


def test_a_result_counts_even_if_its_worker_dies_of_it(folder, toy):
    finished = []
    assert run_trials(plan(1), toy, DyingStore(folder, HEADER), jobs=2, finished=finished.append) == 0
    assert [record["result"]["square"] for record in finished] == [0]
    assert len(toy.lines()) == 1


def test_what_cannot_be_prepared_stops_everything(store):
    for jobs in (1, 2):
        with pytest.raises(InputError, match=r"^--task: GLUE's rte could not be loaded\.$"):
            run_trials(plan(1), refuse, store, jobs)
    with pytest.raises(RunError, match="a worker process was killed by SIGKILL"):
        run_trials(plan(1), die, store, jobs=2)
    assert multiprocessing.active_children() == []
    assert store.results() == store.failures() == []


def test_this_process_goes_on_after_a_failure_alone(folder, toy, store):
    trials = [trial | {"end": "diverge" if trial["number"] == 1 else "well"} for trial in plan(3)]
    failed = []
    assert run_trials(trials, toy, store, failed=lambda *failure: failed.append(failure)) == 1
    assert failed == [(trials[1], "the training loss became nan in epoch 2; try a smaller --lr.")]
    assert {record["result"]["process"] for record in store.results()} == {os.getpid()}
    assert {record["result"]["threads"] for record in store.results()} == {torch.get_num_threads()}
    assert run_trials(trials, toy, store) == 1  # what failed is tried again, and nothing else
    assert [key for key, _ in toy.lines()] == [key_of(trial) for trial in (*trials, trials[1])]
    for end, kind in (("refuse", InputError), ("bug", KeyError)):
        with pytest.raises(kind):
            run_trials(plan(1, end=end), toy, store)


def test_nothing_to_do_prepares_nothing(toy, store):
    run_trials(plan(2), toy, store)
    for jobs in (1, 2):
        assert run_trials(plan(2), refuse, store, jobs) == 0
    assert run_trials(plan(3), toy, store) == 0
    assert [key for key, _ in toy.lines()] == [key_of(trial) for trial in plan(3)]


def test_one_sweep_at_a_time(folder, toy, store):
    with open_pool(toy, store), pytest.raises(InputError, match="another sweep is running"):
        sweep(folder, plan(1), toy)
    assert toy.lines() == []
