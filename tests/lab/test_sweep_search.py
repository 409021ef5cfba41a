"""Points proposed by optuna: the same whether the search was killed or not, and none evaluated twice."""

import importlib
import random
import sys

import pytest
from sweep_trials import HEADER, Toy, killed_after

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.pool import open_pool
from attrdrop.lab.runs.store import TrialStore

pytest.importorskip("optuna")
from attrdrop.lab.studies import search as module
from attrdrop.lab.studies.search import Point, search

SPACE = {"p": (0.1, 0.9, 0.1), "q": (0.1, 0.9, 0.1), "layers": ["all", "first"], "seeds": (1, 3)}


def value(params):
    """Largest, 0, at p = 0.3 and q = 0.6."""
    return -((params["p"] - 0.3) ** 2) - (params["q"] - 0.6) ** 2


def values(points):
    return list(map(value, points))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def test_points_are_of_the_space_and_get_better(folder, capfd):
    points = search(SPACE, values, folder, trials=30, seed=0)
    assert len(points) == 30
    grid = [tenth / 10 for tenth in range(1, 10)]
    for point in points:
        assert point.value == value(point.params)
        assert point.params["p"] in grid
        assert point.params["q"] in grid
        assert point.params["layers"] in ("all", "first")
        assert point.params["seeds"] in (1, 2, 3)
        assert type(point.params["seeds"]) is int
    early, late = points[:10], points[-10:]
    assert sum(point.value for point in late) > sum(point.value for point in early)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in folder.iterdir()] == ["optuna.db"]


def test_direction(folder):
    points = search({"x": (0.0, 1.0)}, lambda points: [point["x"] for point in points], folder, 20, 0, 1, "minimize")
    assert sum(point.value for point in points[-10:]) < sum(point.value for point in points[:10])


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_seed_fixes_the_points(folder, other, jobs):
    sizes = []

    def noted(points):
        sizes.append(len(points))
        return values(points)

    points = search(SPACE, noted, folder, 13, seed=3, jobs=jobs)
    assert sizes == ([1] * 13 if jobs == 1 else [4, 4, 4, 1])
    assert search(SPACE, values, other, 13, seed=3, jobs=jobs) == points
    assert search(SPACE, values, other, 13, seed=4, jobs=jobs, subject={"seed": 4}) != points


def test_more_points_later(folder, other):
    first = search(SPACE, values, folder, 12, seed=0)
    assert search(SPACE, values, folder, 9, seed=0) == first
    more = search(SPACE, values, folder, 20, seed=0)
    assert more[:12] == first
    assert more == search(SPACE, values, other, 20, seed=0)


def test_what_else_is_evaluated_is_another_study(folder):
    points = search(SPACE, values, folder, 3, seed=0, subject={"task": "rte", "seeds": [0, 1]})
    for subject, space in (({"task": "cola", "seeds": [0, 1]}, SPACE), (None, {"p": (0.1, 0.9)})):
        found = search(space, lambda points: [0.5] * len(points), folder, 2, seed=0, subject=subject)
        assert [point.value for point in found] == [0.5, 0.5]
    assert search(SPACE, values, folder, 3, seed=0, subject={"seeds": [0, 1], "task": "rte"}) == points


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_point_without_a_value_counts(folder, missing):
    def diverging(points):
        return [point["p"] if point["p"] > 0.5 else missing for point in points]

    points = search({"p": (0.0, 1.0)}, diverging, folder, 40, 0)
    assert len(points) == 40
    assert all((point.value is None) == (point.params["p"] <= 0.5) for point in points)
    assert sum(point.value is None for point in points[-20:]) < 5  # none of these regions is proposed for long
    assert len({point.params["p"] for point in points}) == 40


@pytest.mark.parametrize("jobs", [1, 3])
def test_kills_at_many_moments(folder, other, tmp_path, jobs):
    toy = Toy(tmp_path / "begun")

    def start():
        with open_pool(toy, TrialStore(folder, HEADER)) as pool:

            def evaluate(points):
                trials = [{"number": seed, "milliseconds": 20} | point for point in points for seed in (0, 1)]
                pool.run(trials)
                return values(points)

            return search(SPACE, evaluate, folder, 15, 0, jobs)

    kills = sum(killed_after(random.uniform(0.05, 0.3), start) for _ in range(7))
    assert kills > 2
    undisturbed = search(SPACE, values, other, 15, 0, jobs)
    assert start() == undisturbed
    distinct = {tuple(point.params.values()) for point in undisturbed}
    assert len(TrialStore.load(folder).results()) == 2 * len(distinct)
    assert len(toy.lines()) <= 2 * len(distinct) + kills


def test_an_interrupted_point_is_repeated(folder, other):
    calls = []

    def interrupted(points):
        calls.append(points)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return values(points)

    for _ in range(2):
        calls = calls[:2]
        with pytest.raises(KeyboardInterrupt):
            search(SPACE, interrupted, folder, 12, 0, jobs=2)
    assert search(SPACE, values, folder, 12, 0, jobs=2) == search(SPACE, values, other, 12, 0, jobs=2)


def test_machines_share_a_storage(folder, other, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    here, there = [], []

    def lost(points):
        here.extend(points)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, lost, folder, 10, 0, storage=storage)
    found = search(SPACE, lambda points: there.extend(points) or values(points), other, 5, 0, storage=storage)
    assert [point.params for point in found] == there
    assert here[0] not in there  # another machine may be at it

    points = search(SPACE, lambda points: here.extend(points) or values(points), folder, 10, 0, storage=storage)
    assert len(points) == 10
    assert here[1] == here[0]
    assert Point(here[0], value(here[0])) in points
    assert not list(folder.iterdir())


def test_a_database_that_cannot_be_used(folder, tmp_path):
    (folder / "optuna.db").write_text("something else entirely, and long enough to be no header of a database")
    with pytest.raises(InputError, match=r"--output: optuna\.db cannot be used: .*not a database"):
        search(SPACE, values, folder, 1, 0)
    for storage in ("nonsense", "nodialect://host/name", f"sqlite:///{tmp_path}/none/study.db"):
        with pytest.raises(InputError, match="--storage: the database cannot be used: "):
            search(SPACE, values, folder, 1, 0, storage=storage)


def test_errors_of_an_evaluation_are_its_own(folder):
    def absent(points):
        import no_such_package  # noqa: F401

    with pytest.raises(ImportError, match="no_such_package"):
        search(SPACE, absent, folder, 1, 0)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        importlib.reload(module)
