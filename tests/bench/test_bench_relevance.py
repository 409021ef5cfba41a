"""The benchmark of relevance: its rows, and rivals that give what ours gives where they are there."""

import pytest
import torch
from bench_setup import one_thread  # noqa: F401

from bench.steps import relevance, relevance_peers

TINY = {
    "resnet18": relevance.Settings(batch=2, size=16),
    "llama": relevance.Settings(model="llama", batch=1, size=8),
}


@pytest.mark.parametrize("model", TINY)
def test_every_arm_of_ours_has_a_row(model):
    if model == "llama":
        pytest.importorskip("transformers")
    captured = f"captured, {relevance.OF[model][0]}"
    rows = list(relevance.BENCH.measure(TINY[model], ["plain", *relevance.OURS, captured], 0, memory=False))
    assert [row.variant for row in rows] == ["plain", *relevance.OF[model], captured]
    assert len({row.backend for row in rows[1:]}) == 1  # that of the gate
    assert all(row.ratio_to == "plain" and row.op == "relevance" and row.median_ms > 0 for row in rows)
    assert {row.shape for row in rows} == {str(TINY[model])}


@pytest.mark.parametrize("arm", ["zennit, epsilon-plus-flat", "LXT, AttnLRP"])
def test_rivals_agree(arm, monkeypatch):
    """The others do not quite: captum has BatchNorms as layers, zennit's epsilon at sums is 1e-6 and ours 0."""
    if relevance_peers.missing(arm) is not None:
        pytest.skip(f"needs {arm.partition(',')[0]}")
    build = relevance.build_model

    def without_eps(settings):
        model = build(settings)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0  # zennit leaves it in the norm that it has merged
        return model

    monkeypatch.setattr(relevance, "build_model", without_eps)
    name = arm.partition(", ")[2]
    settings = next(TINY[model] for model, arms in relevance.OF.items() if name in arms)
    found, wanted = (relevance.BENCH.build(settings, each)() for each in (arm, name))
    assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    assert torch.equal(relevance.BENCH.build(settings, name)(), wanted)  # nothing is left patched


def test_an_arm_whose_rival_is_not_there_says_so(monkeypatch):
    def lacking(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(relevance_peers.importlib, "import_module", lacking)
    assert str(relevance_peers.missing("captum, epsilon")) == "no captum.attr"
    assert relevance_peers.missing("epsilon") is None
