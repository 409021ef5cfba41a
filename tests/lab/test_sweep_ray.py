"""Sweeps on the machines of a Ray cluster: what dies there, a trial has its one result."""

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sweep_trials import HEADER, Toy, at_work, plan, sweep, wait_until
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.store import TrialStore, key_of

HELPERS = Path(__file__).parents[1] / "helpers"


PATIENCE = {  # a busy machine takes long to start a cluster; Ray reads these when it is imported
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_raylet_start_wait_time_s": "300",
}


@pytest.fixture(scope="module")
def ray():
    os.environ.update(PATIENCE)
    return pytest.importorskip("ray", reason="needs the extra sweep-ray")


@pytest.fixture
def cluster(ray, monkeypatch):
    """Of two machines, each with the core for one trial; the second may be killed."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, configure_logging=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def executor():
    from attrdrop.lab.runs.ray_pool import RayExecutor

    return RayExecutor()


def squares(folder):
    return {record["trial"]["number"]: record["result"]["square"] for record in TrialStore(folder, HEADER).results()}


@pytest.mark.slow
def test_a_machine_and_a_process_are_killed_on_the_way(tmp_path, cluster):
    """Of twelve trials two are held until the machine of one and the process of the other are dead."""
    toy, go, ended = Toy(tmp_path / "begun"), tmp_path / "go", []
    trials = [trial | ({"until": str(go)} if trial["number"] in (4, 5) else {}) for trial in plan(12)]
    held = {key_of(trial) for trial in trials[4:6]}
    machine = cluster.list_all_nodes()[1]

    def kill():
        try:
            wait_until(lambda: held <= {key for key, _ in toy.lines()}, seconds=300)
            processes = [int(process) for key, process in toy.lines() if key in held]
            cluster.remove_node(machine, allow_graceful=False)
            wait_until(lambda: len(at_work(processes)) == 1, seconds=300)
            os.kill(*at_work(processes), signal.SIGKILL)
        finally:
            go.touch()

    with ThreadPoolExecutor() as beside:
        killed = beside.submit(kill)
        failures = sweep(
            tmp_path / "ray", trials, toy, executor=executor(), finished=lambda record: ended.append(record["trial"])
        )
        killed.result()
    assert failures == 0
    assert sorted(map(key_of, ended)) == sorted(map(key_of, trials))
    begun = Counter(key for key, _ in toy.lines())
    assert begun == {key_of(trial): 2 if key_of(trial) in held else 1 for trial in trials}
    assert sweep(tmp_path / "local", trials, Toy(tmp_path / "local_begun")) == 0
    assert squares(tmp_path / "ray") == squares(tmp_path / "local")


@pytest.mark.slow
def test_trials_that_fail_and_errors(tmp_path, cluster):
    toy = Toy(tmp_path / "begun")
    trials = [*plan(2), {"number": 2, "end": "diverge"}, {"number": 3, "end": "kill"}]
    assert sweep(tmp_path / "out", trials, toy, executor=executor()) == 2
    failures = {
        record["trial"]["number"]: record["message"] for record in TrialStore(tmp_path / "out", HEADER).failures()
    }
    assert "became nan" in failures[2]
    assert "died 4 times" in failures[3]
    assert sum(key == key_of(trials[3]) for key, _ in toy.lines()) == 4
    with pytest.raises(InputError, match="7 is no probability"):
        sweep(tmp_path / "out", [{"number": 5, "end": "refuse"}], toy, executor=executor())
    assert squares(tmp_path / "out") == {0: 0, 1: 1}


def test_what_is_wrong_is_named():
    found = CliRunner().invoke(app, ["sweep", "--address", "auto"])
    assert found.exit_code == 2
    assert "only --executor ray takes one" in found.output
    found = CliRunner().invoke(app, ["sweep", "--executor", "slurm"])
    assert "'slurm' is not one of local, ray" in found.output
