"""Every line of ours on the page about moving from other libraries runs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attrdrop import lrp
from attrdrop.integrations.captum import LRP
from attrdrop.integrations.quantus import explain_func

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "moving.md"
ROW = re.compile(r"^\| .*? \| (`.*?`).* \|$", re.MULTILINE)
LINES = sorted({line.strip("`") for line in ROW.findall(PAGE.read_text())})


def metric(model, x_batch, y_batch, explain_func, explain_func_kwargs):
    """As Quantus calls what it is given."""
    return explain_func(model=model, inputs=x_batch, targets=y_batch, device="cpu", **explain_func_kwargs)


@pytest.fixture(scope="module")
def names():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5)
    ).eval()
    x, target = torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    known = {"nn": nn, "lrp": lrp, "LRP": LRP, "explain_func": explain_func, "metric": metric}
    known |= {"model": model, "x": x, "target": target, "images": x.numpy(), "classes": target.numpy()}
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    language_model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, vocab_size=20)).eval()
    return known | {"language_model": language_model, "input_ids": torch.randint(20, (2, 5))}


def test_the_page_has_lines_of_ours():
    assert len(LINES) > 25


@pytest.mark.parametrize("line", LINES)
def test_lines_run(line, names):
    found = eval(line, dict(names))
    if isinstance(found, lrp.Rule):
        if not isinstance(found, lrp.Pass):  # for layers that keep the shape
            rule = found if isinstance(found, lrp.Composite) else lrp.Composite(first=found)
            assert lrp.relevance(names["model"], names["x"], names["target"], rule=rule).abs().sum() > 0
        return
    if isinstance(found, LRP):
        found = found.attribute(names["x"], 1)
    found = found[0] if isinstance(found, tuple) else found
    for relevance in found.values() if isinstance(found, dict) else [found]:
        assert np.isfinite(np.asarray(relevance)).all()
        assert np.abs(np.asarray(relevance)).sum() > 0
