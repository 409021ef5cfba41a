"""What benchmarks of training steps share: the memory of an arm, and the command line."""

import csv
import json

import pytest
from bench_setup import compiled_kernels, one_thread  # noqa: F401

from bench import flops, timing


@pytest.mark.parametrize(
    ("kind", "arm", "settings"),
    [
        ("text", "plain", {"model": "tiny", "batch": 32, "n": 256}),
        pytest.param("images", "attribution alone, z+", {"model": "resnet10", "batch": 32}, marks=pytest.mark.slow),
        pytest.param("points", "attribution alone", {"batch": 16, "points": 512}, marks=pytest.mark.slow),
    ],
)
def test_the_memory_of_an_arm_is_its_own(kind, arm, settings):
    module = f"bench.steps.{kind}"
    pytest.importorskip(module)
    found = timing.in_fresh_process(module, ["--memory-of", arm, "--settings", json.dumps(settings)])
    assert 0 < found["peak_mb"] < 2000


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("images", ["--batch", "1"], "'1' is not a whole number from 2 on"),
        ("images", ["--size", "large"], "'large' is not a whole number from 1 on"),
        ("images", ["--model", "resnet9"], "invalid choice: 'resnet9'"),
        ("images", ["--arms", "plane"], "invalid choice: 'plane'"),
        ("images", ["--dtype", "float16"], "invalid choice: 'float16'"),
        ("points", ["--batch", "1"], "'1' is not a whole number from 2 on"),
        ("points", ["--channels", "2"], "'2' is not a whole number from 3 on"),
        ("points", ["--points", "0"], "'0' is not a whole number from 1 on"),
        ("points", ["--model", "pointnet3"], "invalid choice: 'pointnet3'"),
        ("points", ["--arms", "RelDrop2"], "invalid choice: 'RelDrop2'"),
        ("text", ["--n", "0"], "'0' is not a whole number from 1 to 2048"),
        ("text", ["--n", "1024"], "--n must be at most 512, the positions of minilm, got 1024"),
        ("text", ["--threads", "0"], "'0' is not a whole number from 1 on"),
    ],
)
def test_arguments_are_checked(kind, arguments, message, capsys):
    step = pytest.importorskip(f"bench.steps.{kind}")
    with pytest.raises(SystemExit):
        step.parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "images", "points"])
def test_settings_that_none_gives_are_those_of_the_class(kind):
    step = pytest.importorskip(f"bench.steps.{kind}")
    options, settings = vars(step.parse(["--device", "cpu"])), vars(step.Settings())
    assert {name: options[name] for name in settings} == settings


def test_the_flops_of_a_step_are_near_its_bound():
    """At sizes where products are all there is, and counted for our operators as for torch's."""
    text = pytest.importorskip("bench.steps.text")
    settings = text.Settings(model="tiny", batch=2, n=128, attention_dropout=0, threads=1)
    plain, ours = (flops.counted(text.BENCH.build(settings, arm)) for arm in ("plain", "ADDrop"))
    assert ours / plain == pytest.approx(text.BENCH.bound(settings, "ADDrop"), rel=0.01)
    assert settings.clock == "processor"


def test_rows_are_there_as_arms_are_done(tmp_path, monkeypatch):
    text = pytest.importorskip("bench.steps.text")
    build = text.TextSteps.build

    def stops(self, settings, arm):
        if arm == "ADDrop, RD":
            raise KeyboardInterrupt
        return build(self, settings, arm)

    monkeypatch.setattr(text.TextSteps, "build", stops)
    arguments = ["--device", "cpu", "--model", "tiny", "--batch", "2", "--n", "8", "--seconds", "0", "--no-memory"]
    with pytest.raises(KeyboardInterrupt):
        text.main([*arguments, "--arms", "ADDrop", "ADDrop, RD", "--output", str(tmp_path / "rows.csv")])
    written = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["variant"] for row in written] == ["plain", "ADDrop"]
    assert all(float(row["gflop"]) > 0 for row in written)
