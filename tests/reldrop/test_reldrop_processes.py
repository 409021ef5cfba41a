"""RelDrop on images and points with several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_reldrop import KINDS
from torch.nn import functional


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_draw_what_one_does(tmp_path, kind):
    make_model, make_batch, transform, settings = KINDS[kind]
    inputs, labels = make_batch(8)
    model = make_model(is_frozen=True)
    expected = transform(model, **settings)(inputs, labels)
    functional.cross_entropy(model(expected), labels).backward()
    helpers, result = Path(__file__).parents[1] / "helpers", tmp_path / "result.pt"
    script = helpers / "distributed_reldrop.py"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, result, kind]
    subprocess.run(run, check=True, timeout=240, env={**os.environ, "PYTHONPATH": str(helpers)})
    found, gradients = torch.load(result)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal((inputs != found), (inputs != expected))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
