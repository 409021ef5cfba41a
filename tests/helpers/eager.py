"""AD-DROP by the paper's text, slowly: every A materialised, full sorts, -inf scores in a second pass."""

from __future__ import annotations

import scipy.special
import torch

from attrdrop import unpack_mask
from attrdrop._core.seeds import derive_seed
from attrdrop.addrop import attribution_target
from attrdrop.reference.keep_mask import candidates, draw


class EagerPass:
    """Attention with materialised probabilities, which autograd can be asked about; or under given boolean masks.

    shares: layers whose probabilities are scaled (Eq. 3). given: probabilities that take the place of a layer's.
    """

    def __init__(self, eligible, keeps=None, shares=None, given=None):
        self.eligible, self.keeps, self.shares, self.given = eligible, keeps, shares or {}, given or {}
        self.probabilities, self.valid = [], []

    def attend(self, call, plain):
        if call.module not in self.eligible:
            return plain()
        groups = call.query.shape[1] // call.key.shape[1]
        k, v = call.key.repeat_interleave(groups, 1), call.value.repeat_interleave(groups, 1)
        scores = call.query @ k.transpose(-1, -2) * (call.query.shape[-1] ** -0.5 if call.scale is None else call.scale)
        if call.bias() is not None:
            scores = scores + call.bias()
        valid = torch.ones_like(scores, dtype=torch.bool) if call.mask is None else call.valid().expand(scores.shape)
        if call.is_causal:
            valid = valid.tril()
        index = len(self.probabilities)
        allowed = valid if self.keeps is None or self.keeps[index] is None else self.keeps[index]
        probability = torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1)
        probability = torch.where(allowed.any(-1, keepdim=True), probability, 0.0) * self.shares.get(index, 1.0)
        probability = self.given.get(index, probability)
        self.probabilities.append(probability)
        self.valid.append(valid)
        return (probability @ v).transpose(1, 2).contiguous()


def attributions(model, inputs, addrop, layers=None):
    """What each layer is ranked by, (B, H, n_q, n_k), and its valid positions."""
    config, scope = addrop.config, addrop._scope
    first = EagerPass(scope)
    outputs = model(**inputs, attrdrop=first)
    if config.attribution in ("AA", "RD"):
        return first.probabilities, first.valid
    target = attribution_target(outputs, inputs, config.target, model)
    if config.attribution == "GA":
        return torch.autograd.grad(target, first.probabilities, allow_unused=True), first.valid
    predicted = outputs.logits.argmax(-1)

    def gradients(layers, **changes):
        changed = EagerPass(scope, **changes)
        target = attribution_target(model(**inputs, attrdrop=changed), inputs, config.target, model, predicted)
        return torch.autograd.grad(target, [changed.probabilities[layer] for layer in layers])

    whole = [probability.detach() for probability in first.probabilities]
    total = [0.0] * len(whole)
    chosen = range(len(whole)) if layers is None else sorted(layers)
    for share, weight in nodes_of(config):
        if config.iga_scope == "joint":
            found = gradients(chosen, given={layer: (share * whole[layer]).requires_grad_() for layer in chosen})
        else:
            found = [gradients([layer], shares={layer: share})[0] for layer in chosen]
        for layer, gradient in zip(chosen, found, strict=True):
            total[layer] = total[layer] + weight * gradient
    return [a * b for a, b in zip(whole, total, strict=True)], first.valid


def nodes_of(config):
    """Shares and weights of Eq. 3's integral from 0 to 1."""
    m = config.iga_steps
    if config.iga_rule == "riemann":
        return [(k / m, 1 / m) for k in range(1, m + 1)]
    places, weights = scipy.special.roots_legendre(m)
    return list(zip((1 + places) / 2, weights / 2, strict=True))


def eager_masks(model, inputs, addrop, layers=None):
    """Boolean masks of each layer in the first step; None for layers that are not among ``layers``."""
    config = addrop.config
    keeps = []
    for index, (b, valid) in enumerate(zip(*attributions(model, inputs, addrop, layers), strict=True)):
        if layers is not None and index not in layers:
            keeps.append(None)
            continue
        is_random = config.attribution == "RD"
        region = valid if is_random else candidates(b.detach(), valid, config.p, low=config.region == "low")
        rate = config.p * config.q if is_random else config.q
        rows, _, _ = draw(region, valid, rate, derive_seed(config.seed, 0), index, None)
        keeps.append(unpack_mask(rows, valid.shape[-1]))
    return keeps


def eager_step(model, inputs, addrop, layers=None):
    """The loss of the whole first step, after its backward, and its masks."""
    keeps = eager_masks(model, inputs, addrop, layers)
    loss = model(**inputs, attrdrop=EagerPass(addrop._scope, keeps)).loss
    loss.backward()
    return loss.detach(), keeps


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def bits_of(masks):
    """Boolean masks of a pass 2."""
    return [None if site.keep is None else unpack_mask(site.keep.rows, site.keep.shape[3]) for site in masks.sites]


def equal_bits(ours, theirs):
    """By layer; None where a layer has none."""
    return all(
        (a is None and b is None) or (a is not None and torch.equal(a, b)) for a, b in zip(ours, theirs, strict=True)
    )


def check_a_step(model, inputs, addrop, layers=None):
    """Bits, loss and gradients of attrdrop's first step equal the eager one's, in float64."""
    masks = addrop.attribute(**inputs)
    assert all(p.grad is None for p in model.parameters())
    loss = model(**inputs, attrdrop=masks).loss
    loss.backward()
    ours = gradients_of(model)
    model.zero_grad()
    expected_loss, keeps = eager_step(model, inputs, addrop, layers)
    for mine, theirs in zip(bits_of(masks), keeps, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)
    assert addrop.statistics().dropped > 0
    assert abs(float(loss.detach() - expected_loss)) < 1e-9
    theirs = gradients_of(model)
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, atol=1e-9, rtol=1e-9)
