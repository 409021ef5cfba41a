"""Relevance of a trained classifier lies on the object, where the object is known: more than that of lesser methods."""

import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("mlxtend")
import planted_truth

from attrdrop import lrp, metrics
from attrdrop.lrp.engine import Propagation


class Undivided(torch.autograd.Function):
    """A sum whose relevance is copied to both terms, R instead of R x / (x + y)."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x + y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        relevance = grad * (x + y)
        return tuple(relevance / torch.where(term < 0, term - 1e-6, term + 1e-6) for term in (x, y))


class Undividing(Propagation):
    """The propagation with residual sums as in the released code of RelDrop."""

    sums = 0

    def _run(self, handler, seen, args, kwargs):
        if seen.base == "add" and len(args) == 2 and all(isinstance(x, Tensor) and x.dim() == 4 for x in args):
            type(self).sums += 1
            total = Undivided.apply(*args)
            self.facts.note(total)
            return total
        return super()._run(handler, seen, args, kwargs)


@pytest.fixture(scope="module")
def planted():
    x, labels, masks = planted_truth.images(300, seed=1, part=1)
    model = planted_truth.classifier().eval()
    correct = model(x).argmax(1) == labels
    assert correct.float().mean() > 0.8
    return model, x[correct], labels[correct], masks[correct]


def scores(planted, rule):
    """Share of maxima inside the object, and mean rank accuracy."""
    model, x, labels, masks = planted
    relevance = lrp.relevance(model, x, labels, rule=rule)
    hits = metrics.pointing_game(relevance, masks).float().mean()
    return hits.item(), metrics.relevance_rank_accuracy(relevance, masks).mean().item()


@pytest.mark.parametrize("rule", [lrp.EpsilonPlusFlat(), lrp.EpsilonPlus(), lrp.EpsilonFlat(), lrp.Epsilon()])
def test_relevance_beats_gradients_and_undivided_sums(planted, rule, monkeypatch):
    hits, rank = scores(planted, rule)
    by_gradient = scores(planted, lrp.AbsGradient())
    monkeypatch.setattr(sys.modules["attrdrop.lrp.walk"], "Propagation", Undividing)
    by_undivided_sums = scores(planted, lrp.Epsilon())
    assert Undividing.sums > 0
    covered = planted[3].float().mean().item()
    for lesser in (by_gradient, by_undivided_sums):
        assert hits > lesser[0] + 0.1, (hits, lesser)
        assert rank > lesser[1] + 0.03, (rank, lesser)
    assert hits > 3 * covered


def test_z_plus_hits_the_object_mostly(planted):
    hits, rank = scores(planted, lrp.EpsilonPlusFlat())
    assert hits > 0.7
    assert rank > 0.5
