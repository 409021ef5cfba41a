"""A search whose points several processes share, in a database of PostgreSQL: one is killed, and nothing is lost."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from sweep_trials import started, wait_until

DIGITS = 10  # of what a search proposes

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
POINTS = 15
NOBODY = pwd.getpwnam("nobody")


def run(program, *arguments, folder):
    """As nobody, where root is who tests: PostgreSQL refuses root."""
    user = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    command = [str(SERVERS[-1].with_name(program)), *arguments]
    log = folder / "log"
    with log.open("ab") as output:
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, timeout=120, **user)
    assert done.returncode == 0, log.read_text()[-2000:]


@pytest.fixture(scope="module")
def database():
    """URL of a database on a server of the test's own, in a temporary folder, on a free port of this machine."""
    if not SERVERS:
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="needs psycopg (pip install 'psycopg[binary]')")
    folder = Path(f"/tmp/attrdrop-postgres-{os.getpid()}")
    folder.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = ("--pgdata", str(folder / "data"))
    try:
        run("initdb", *data, "--username=tester", "--auth=trust", "--no-sync", folder=folder)
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        run("pg_ctl", *data, "--wait", "start", "--options", options, folder=folder)
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", *data, "--wait", "--mode=immediate", "stop", folder=folder)
    finally:
        shutil.rmtree(folder)


def work(storage, folder, log):
    """A machine's part of the search; a line at the beginning and the end of each point."""
    from attrdrop.lab.studies.search import search

    def evaluate(asked):
        for point in asked:
            log("begin", point)
            time.sleep(0.1)
            log("end", point)
        return [-((point["p"] - 0.3) ** 2) for point in asked]

    search({"p": (0.0, 1.0)}, evaluate, folder, POINTS, seed=0, storage=storage)


def note(file, what, point):
    with file.open("ab", buffering=0) as stream:
        stream.write(f"{what} {point['p']!r}\n".encode())


def lines(file, what):
    found = file.read_text().splitlines() if file.exists() else []
    return [line.split()[1] for line in found if line.startswith(what)]


@pytest.fixture
def journal(tmp_path):
    return f"journal:{tmp_path / 'points'}"


def study_of(storage):
    import optuna

    file = storage.partition("journal:")[2]
    kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(file)) if file else storage
    (name,) = optuna.get_all_study_names(storage=kept)
    return optuna.load_study(study_name=name, storage=kept)


@pytest.mark.parametrize("kept", ["database", pytest.param("journal", marks=pytest.mark.slow)])
def test_three_processes_share_a_search_and_one_is_killed(tmp_path, request, kept):
    """They start at once, in an empty place."""
    database = request.getfixturevalue(kept)
    folders = [tmp_path / str(number) for number in range(3)]
    logs = [folder / "log" for folder in folders]
    for folder in folders:
        folder.mkdir()
    processes = [
        started(work, database, folder, partial(note, log), errors=folder / "errors")
        for folder, log in zip(folders, logs, strict=True)
    ]
    wait_until(lambda: len(lines(logs[0], "begin")) > len(lines(logs[0], "end")) > 0)
    os.kill(processes[0].pid, signal.SIGKILL)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0], (folders[1] / "errors").read_text()
    states = Counter(trial.state.name for trial in study_of(database).trials)
    assert states["RUNNING"] == 1  # the lost machine's, which it will do when it is back

    work(database, folders[0], partial(note, logs[0]))
    trials = study_of(database).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    done = sorted(repr(round(trial.params["p"], DIGITS)) for trial in trials if trial.state.name == "COMPLETE")
    assert POINTS <= len(done) <= POINTS + 2
    assert sorted(point for log in logs for point in lines(log, "end")) == done
    assert len(set(done)) == len(done)
