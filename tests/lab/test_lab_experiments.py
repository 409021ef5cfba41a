"""What `finetune`, `train-images` and `train-points` have in common: whatever ends them, the same command goes on."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
from lab_runs import names, one_thread, results, squares, start, sticks, wait_for_runs  # noqa: F401
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.images.report import ImageReport
from attrdrop.lab.points.report import PointReport
from attrdrop.lab.runs.results import kind_of
from attrdrop.lab.text.report import TextReport

METRIC = {"name": "accuracy", "better": 1, "percent": True}
KINDS = ["finetune", "train-images", "train-points"]


@dataclass
class Case:
    """A command, the arm beside plain, what is drawn of a trained plain model, and where results go."""

    command: list[str]
    report: type
    arm: str
    figure: str | None
    folder: Path

    @property
    def output(self):
        return self.folder / "out"

    def whole(self, *arguments, output=None):
        chosen = [*self.command, "--threads", 1, "--output", output or self.output, *arguments]
        return list(map(str, chosen))

    def __call__(self, *arguments, output=None):
        return CliRunner().invoke(app, self.whole(*arguments, output=output), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, arrays in (("train-images", squares()), ("train-points", sticks())):
        np.savez(folder / f"{name}.npz", **arrays)
    label = ["yes", "no"] * 60
    pd.DataFrame({"text": [f"{word} film" for word in label], "label": label}).to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture(params=KINDS)
def case(request, files, tiny_bert, tmp_path):
    arrays = ["--dataset", "npz", "--data", files / f"{request.param}.npz", "--batch-size", 16]
    narrow = ["--model", "pointnet", "--width", 0.125, "--points", 16, "--mode", "calibrated", "--beta", 0.25]
    texts = ["--model", tiny_bert, "--train", files / "train.csv", "--epochs", 4]
    made = {
        "finetune": (texts, TextReport, "ad-drop", None),
        "train-images": ([*arrays, "--epochs", 1], ImageReport, "reldrop", "maps_plain.png"),
        "train-points": ([*arrays, *narrow, "--epochs", 4], PointReport, "reldrop", "relevance_plain.png"),
    }
    arguments, report, arm, figure = made[request.param]
    command = [request.param, *arguments, "--arms", f"plain,{arm}", "--seeds", 2]
    return Case(command, report, arm, figure, tmp_path)


@pytest.mark.slow
def test_killed_and_interrupted_experiments_go_on(case):
    output, command = case.output, case.whole()
    process = start(*command)
    wait_for_runs(process, output, 1)
    process.kill()
    process.communicate()
    kept = results(output)["runs"]
    assert 1 <= len(kept) < 3
    assert not results(output)["complete"]
    assert case.figure is None or (output / case.figure).exists()
    assert "Traceback" not in CliRunner().invoke(app, ["report", str(output)]).output

    process = start(*command)
    wait_for_runs(process, output, len(kept) + 1)
    process.send_signal(signal.SIGINT)  # this early it comes in a garbage collection, where Python ignores it
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 130, printed
    assert f"{len(kept)} of 4 runs are in" in printed
    assert f"run {len(kept)} of 4" not in printed
    assert f"run {len(kept) + 1} of 4" in printed
    more = results(output)["runs"]
    assert more[: len(kept)] == kept
    assert f"Stopped early: {len(more)} of 4 runs are finished and kept" in printed
    assert "Traceback" not in printed
    assert case.report.load(output).runs == more
    trials = {path: path.stat().st_mtime_ns for path in (output / "trials").iterdir()}

    printed, _ = start(*command).communicate(timeout=300)
    content = results(output)
    assert content["complete"], printed
    assert content["runs"][: len(more)] == more
    order = [(run["seed"], run["arm"]) for run in content["runs"]]
    assert order == [(0, "plain"), (0, case.arm), (1, case.arm), (1, "plain")]
    assert {path: path.stat().st_mtime_ns for path in trials} == trials  # nothing was done again
    assert not [name for name in names(output) + names(output / "trials") if name.startswith(".") and name != ".lock"]
    assert len(names(output / "trials")) == 4


@pytest.mark.slow
def test_two_jobs_score_as_one_does_and_their_times_are_marked(case):
    one, two = case.folder / "one", case.folder / "two"
    alone, together = case(output=one), case("--jobs", 2, output=two)
    assert alone.exit_code == together.exit_code == 0, alone.output + together.output
    assert names(one) == names(two)
    assert names(one / "trials") == names(two / "trials")
    for run, other in zip(results(one)["runs"], results(two)["runs"], strict=True):
        assert (run["arm"], run["seed"]) == (other["arm"], other["seed"])
        assert (run.pop("jobs"), other.pop("jobs")) == (1, 2)
        for epoch, same in zip(run.pop("epochs"), other.pop("epochs"), strict=True):
            assert len(epoch.pop("step_seconds")) == len(same.pop("step_seconds"))
            assert epoch == same
        for name in ("seconds", "peak_memory_bytes"):
            del run[name], other[name]
        assert run == other
    assert (results(one)["jobs"], results(two)["jobs"]) == (1, 2)
    assert results(one)["summary"]["times_comparable"]
    assert not results(two)["summary"]["times_comparable"]
    assert set(pd.read_csv(two / "runs.csv").jobs) == {2}
    assert "* 2 jobs at once: times are not comparable" in " ".join(together.output.split())
    assert "*" not in alone.output
    times = [line for line in together.output.splitlines() if "step, ms" in line]
    assert times
    assert all("*" in line for line in times)
    assert not any("*" in line for line in together.output.splitlines() if "accuracy" in line and "±" in line)

    again = case("--jobs", 2, output=one)  # what is done is not done again, and stays comparable
    assert again.exit_code == 0
    assert "4 of 4 runs are in" in again.output
    assert set(pd.read_csv(one / "runs.csv").jobs) == {1}


def test_other_settings_are_refused_by_the_first_that_differs(case):
    assert case("--seeds", 1, "--arms", "plain").exit_code == 0
    before = {path: path.read_bytes() for path in case.output.rglob("*") if path.is_file()}
    for arguments, difference in (
        (["--lr", "0.007"], "--lr was"),
        (["--arms", case.arm], f"--arms was plain, is now {case.arm}"),
        (["--train-size", 40], "task sizes train was"),
    ):
        refused = case("--seeds", 1, "--arms", "plain", *arguments)
        assert refused.exit_code == 2, refused.output
        message = " ".join(refused.output.split())
        assert "Error: --output:" in message
        assert f"holds results of other settings or data: {difference}" in message
        assert message.endswith("; give another folder, or --overwrite.")
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_start_is_refused(case):
    case.output.mkdir()
    with filelock.FileLock(case.output / ".lock"):
        refused = case()
    assert refused.exit_code == 2
    assert "--output: another experiment is running in" in refused.output
    assert names(case.output) in ([], [".lock"])


def test_results_of_an_earlier_version_are_refused_and_shown(case):
    assert case("--seeds", 1, "--arms", "plain").exit_code == 0
    content = results(case.output)
    for path in (case.output / "trials").iterdir():
        path.unlink()
    (case.output / "trials").rmdir()
    for run in content["runs"]:
        del run["jobs"]
    (case.output / "results.json").write_text(json.dumps(content))
    refused = case("--seeds", 1, "--arms", "plain")
    assert refused.exit_code == 2
    assert "to another command or version" in refused.output
    assert results(case.output) == content
    assert CliRunner().invoke(app, ["report", str(case.output)]).exit_code == 0


def test_report_before_the_first_run(case, tmp_path):
    kind = case.command[0]
    header = {"kind": kind, "settings": {"arms": ["plain"]}, "task": {"sizes": {}, "metric": METRIC}, "complete": False}
    case.report(header | {"environment": {"device": "cpu"}}, []).save(tmp_path)
    assert kind_of(tmp_path) == kind
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert outcome.exit_code == 0
    assert "No run is finished yet" in outcome.output
    other = KINDS[KINDS.index(kind) - 1]
    wrong = CliRunner().invoke(app, [other, "--output", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "another command" in " ".join(wrong.output.split())


def test_a_loss_that_explodes_is_told_and_kept(case):
    outcome = case("--lr", "1e30", "--seeds", 1, "--arms", "plain", "--epochs", 3)
    assert outcome.exit_code == 1
    assert "plain, seed 0: the training loss became" in outcome.output
    assert "try a smaller --lr" in outcome.output
    assert "0 of 1 runs are finished" in outcome.output
    assert results(case.output)["runs"] == []


def test_a_folder_with_something_else_is_refused(case, tmp_path):
    case.output.mkdir()
    (case.output / "mine").write_text("mine")
    assert_refused(case(), tmp_path / "none", "--output", "is not empty")


@pytest.mark.parametrize("kind", KINDS)
def test_help_fits_a_terminal_of_80_columns(kind):
    outcome = CliRunner().invoke(app, [kind, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert outcome.exit_code == 0
    lines = [line.rstrip() for line in outcome.output.splitlines()]
    assert max(map(len, lines)) <= 80
    prose = "\n".join(lines[: lines.index(next(line for line in lines if "Options" in line and "─" in line))])
    wrapped = {"train-images": " weights, with several seeds, and erase blocks of the same size. The\n"}
    assert wrapped.get(kind, "with several seeds") in prose
