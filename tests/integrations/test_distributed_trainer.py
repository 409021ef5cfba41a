"""The Trainer on two processes: what it gives on one, under each engine that it may be told to use."""

import importlib.util
import json

import distributed_trainer
import pytest
import torch
from safetensors.torch import load_file
from torchrun import run

DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
ZERO = [pytest.param(f"zero{stage}", marks=DEEPSPEED) for stage in (1, 2, 3)]

ATTRIBUTIONS = ["GA", "IGA", "AA", "RD"]


def compare(found, whole, tolerance):
    assert found.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", *ZERO])
def test_two_processes_train_as_one_and_go_on_from_a_checkpoint(tmp_path, name):
    """In float32, where a rounding may turn a bit of a mask in later steps, the first step drops the same."""
    run("distributed_trainer.py", tmp_path, name, *ATTRIBUTIONS)
    for attribution in ATTRIBUTIONS:
        check(tmp_path / attribution, name, attribution)


def check(folder, name, attribution):
    """What the script left for one attribution."""
    rows = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    steps = zip(*(row["counted"] for row in rows), strict=True)
    counted = [tuple(map(sum, zip(*step, strict=True))) for step in steps]  # over processes
    assert rows[0]["counted"] != rows[1]["counted"]
    assert [row["logged"] for row in rows] == [[dropped / valid for dropped, valid in counted]] * 2

    dtype = distributed_trainer.dtype_of(name)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    alone, counted_alone = distributed_trainer.train(folder / "alone", "alone", attribution, dtype)
    trained = load_file(folder / "whole/model.safetensors")
    assert counted[0] == counted_alone[0]
    if dtype == torch.float64:
        assert counted == counted_alone
        compare(trained, alone.model.state_dict(), tolerance)
    compare(load_file(folder / "resumed/model.safetensors"), trained, tolerance)
    if name == "ddp":  # whose checkpoint is a plain one
        checkpoint = folder / f"checkpoint-{distributed_trainer.SAVED}"
        again, _ = distributed_trainer.train(folder / "again_alone", "alone", attribution, dtype, resume=checkpoint)
        compare(trained, again.model.state_dict(), tolerance)
