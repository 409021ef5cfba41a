"""Trials on disk: what is kept, what is refused, and that no kill leaves half of anything."""

import itertools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_trials import HEADER, killed_after, plan, started, wait_until

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.store import TrialStore, key_of

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def filled(folder, count, header=HEADER):
    store = TrialStore(folder, header)
    with store.locked():
        for trial in plan(count):
            store.save(trial, {"score": trial["number"] / 2}, 0.5)
    return store


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def names_with(trials):
    return sorted([".lock", "sweep.json", *(f"trials/{key_of(trial)}.json" for trial in trials)])


@given(st.dictionaries(st.text(), plain | st.lists(plain)), st.randoms())
def test_a_key_depends_on_no_order(trial, shuffling):
    items = list(trial.items())
    shuffling.shuffle(items)
    assert key_of(dict(items)) == key_of(trial) == key_of(json.loads(json.dumps(trial)))


@given(st.dictionaries(st.text(), plain), st.text(), plain)
def test_another_value_is_another_key(trial, name, value):
    other = trial | {name: value}
    assert (key_of(trial) == key_of(other)) == (json.dumps(trial, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_what_is_saved_comes_back(folder):
    store = TrialStore(folder, HEADER)
    first, second, third = plan(3, p=0.3)
    assert store.pending([first, second, first]) == [first, second]
    assert not folder.exists()
    with store.locked():
        store.save(second, {"score": 0.5}, 1.5)
        store.save(first, {"score": [0.25]}, 2.5)
    assert names(folder) == sorted(
        [".lock", "sweep.json", *(f"trials/{key_of(trial)}.json" for trial in (first, second))]
    )
    for reader in (store, TrialStore(folder, HEADER), TrialStore.load(folder)):
        assert reader.pending([third, second]) == [third]
        assert [record["trial"] for record in reader.results()] == [second, first]
        found = reader.results([first, third, second])
        assert [(record["result"], record["seconds"]) for record in found] == [
            ({"score": [0.25]}, 2.5), ({"score": 0.5}, 1.5),
        ]  # fmt: skip
        assert reader.record(third) is None
    assert TrialStore.load(folder).header == HEADER


def test_a_plan_may_grow_and_shrink(folder):
    filled(folder, 4)
    store = TrialStore(folder, HEADER)
    assert store.pending(plan(6)) == plan(6)[4:]
    assert store.pending(plan(2)) == []
    assert [record["trial"] for record in store.results(plan(2))] == plan(2)
    assert len(store.results()) == 4


def test_failures_stay_until_there_is_a_result(folder):
    store = TrialStore(folder, HEADER)
    first, second = plan(2)
    with store.locked():
        store.fail(first, "it diverged.")
        store.fail(second, "it diverged, too.")
        assert [(record["trial"], record["message"]) for record in store.failures()] == [
            (first, "it diverged."), (second, "it diverged, too."),
        ]  # fmt: skip
        assert store.pending([first, second]) == [first, second]
        store.save(first, {}, 1.0)
    assert [record["trial"] for record in TrialStore.load(folder).failures()] == [second]
    assert store.pending([first, second]) == [second]


def test_the_header_is_that_of_the_latest_start(folder):
    filled(folder, 1, HEADER | {"started": "then", "versions": "old"})
    store = TrialStore(folder, HEADER | {"started": "now", "versions": "new"})
    with store.locked():
        assert TrialStore.load(folder).header == HEADER | {"started": "then", "versions": "new"}


@pytest.mark.parametrize("key", ["settings", "task"])
def test_other_settings_are_refused_or_overwritten(folder, key):
    filled(folder, 2)
    (folder / "optuna.db").write_text("a study")
    other = HEADER | {key: {"name": "another"}}
    before = names(folder)
    with pytest.raises(InputError, match=r"--output: .*other settings or data.*--overwrite"):
        TrialStore(folder, other)
    store = TrialStore(folder, other, overwrite=True)
    assert store.pending(plan(2)) == plan(2)
    assert store.results() == store.failures() == []
    assert names(folder) == before
    with store.locked():
        store.save(plan(1)[0], {}, 0.0)
    with store.locked():  # what is new is not overwritten
        assert store.pending(plan(2)) == plan(2)[1:]
    assert names(folder) == names_with(plan(1))


def test_a_folder_with_something_else_is_refused(folder):
    folder.mkdir()
    (folder / ".hidden").write_text("")
    TrialStore(folder, HEADER)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"--output: .* is not empty"):
        TrialStore(folder, HEADER)
    with pytest.raises(InputError, match=r"--output: .* is a file"):
        TrialStore(folder / "thesis.tex", HEADER)
    with pytest.raises(InputError, match="holds no results of 'attrdrop sweep'"):
        TrialStore.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"trial": {"number": 0}, "res',
        "[]",
        '{"trial": {"number": 1}}',
        "\0\0",
        '{"trial": {"number": 0}, "finished": "now"}',
    ],
)
def test_a_file_that_is_no_record_is_named(folder, content):
    store = filled(folder, 2)
    path = folder / "trials" / f"{key_of(plan(1)[0])}.json"
    path.write_text(content)
    for read in (lambda: store.pending(plan(2)), store.results):
        with pytest.raises(InputError, match=rf"{path.name} is not a record of a trial: .*delete the file"):
            read()
    path.unlink()
    assert store.pending(plan(2)) == plan(1)


def test_a_header_that_cannot_be_read_is_refused(folder):
    filled(folder, 1)
    (folder / "sweep.json").write_text('{"settings": ')
    with pytest.raises(InputError, match="another folder, or --overwrite"):
        TrialStore(folder, HEADER)


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """The current folder is one that cannot be written. Root could, so it is an ordinary user meanwhile."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    user = os.geteuid()
    os.seteuid(user or 65534)
    yield
    os.seteuid(user)
    tmp_path.chmod(0o755)


@pytest.mark.usefixtures("read_only")
def test_a_folder_that_cannot_be_written_is_named():
    store = TrialStore(Path("sweep"), HEADER)
    with pytest.raises(InputError, match="--output: sweep cannot be written: Permission denied"), store.locked():
        pass


def test_a_result_that_cannot_be_written_is_no_result(folder):
    store = filled(folder, 1)
    with store.locked():
        (folder / "failed").write_text("in the way")
        with pytest.raises(InputError, match=r"--output: .* cannot be written"):
            store.fail(plan(2)[1], "it diverged.")


def test_one_sweep_at_a_time(folder):
    store = TrialStore(folder, HEADER)
    with store.locked():
        for overwrite in (False, True):
            other = TrialStore(folder, HEADER, overwrite)
            with pytest.raises(InputError, match="--output: another sweep is running in"), other.locked():
                pass
        store.save(plan(1)[0], {}, 0.0)
        assert len(TrialStore.load(folder).results()) == 1
    with TrialStore(folder, HEADER).locked():
        pass


def test_a_dead_process_holds_nothing(folder):
    def hold(store):
        with store.locked():
            (folder / ".held").touch()
            wait_until(lambda: False)

    process = started(hold, TrialStore(folder, HEADER))
    wait_until((folder / ".held").exists)
    with pytest.raises(InputError, match="another sweep is running"), TrialStore(folder, HEADER).locked():
        pass
    process.kill()
    process.join()
    with TrialStore(folder, HEADER).locked():
        pass


def test_no_kill_leaves_half_a_file(folder):
    def save(numbers):
        store = TrialStore(folder, HEADER)
        with store.locked():
            for number in numbers:
                store.save({"number": number % 5}, {"long": "x" * 300_000}, 0.0)

    save(range(5))
    drafts = attempts = 0
    while attempts < 12 or (not drafts and attempts < 200):  # on a busy machine fewer die in the midst of one
        assert killed_after(random.uniform(0.02, 0.08), save, itertools.count())
        attempts += 1
        drafts += any(".json." in name for name in names(folder))
        assert all(len(record["result"]["long"]) == 300_000 for record in TrialStore.load(folder).results())
    assert drafts  # some died in the midst of a file
    with TrialStore(folder, HEADER).locked():
        assert names(folder) == names_with(plan(5))
