"""IGA, AA and RD in the step, and the kinds of attention of encoder-decoder models.

That a step equals the eager one under each attribution, for every model, stands in test_addrop.py.
"""

import inspect

import pytest
import torch
from eager import bits_of, check_a_step, eager_masks, equal_bits, gradients_of
from models import ALL, CLASSIFIERS, EVERY, SIZE, attended, batch, build, with_dropout
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from attrdrop import ADDrop, use_backend
from attrdrop._core.backends import TRITON_MISSING
from attrdrop.addrop import ATTRIBUTIONS, integrated, passes
from attrdrop.addrop.attention import AttentionPass1
from attrdrop.addrop.integrated import IntegratedPass1, ScaledPass1
from attrdrop.addrop.passes import AttentionCall, Draws, Pass1, Pass2, Site
from attrdrop.addrop.quadrature import nodes
from attrdrop.addrop.replay import Repeat, Replay
from attrdrop.addrop.step import STRATEGIES
from attrdrop.reference.keep_mask import candidates, draw

SEQ2SEQ = ("marian", "bart", "t5")


def new_addrop(model, attribution, **options):
    return ADDrop(model, **{**dict(p=0.3, q=0.4, attribution=attribution, iga_steps=3, cross_tuning=False), **options})


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("region", ["high", "low"])
def test_iga_is_the_equation_layer_by_layer(steps, region):
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    addrop = new_addrop(model, "IGA", iga_steps=steps, region=region, p=0.45, q=0.7)
    assert equal_bits(bits_of(addrop.attribute(**inputs)), eager_masks(model, inputs, addrop))


@pytest.mark.parametrize(("name", "target"), [*((name, "pseudo") for name in ALL), ("bert", "gold"), ("t5", "gold")])
def test_steps_in_one_batch_are_the_steps_one_by_one(name, target):
    model, inputs = with_dropout(build(name, torch.float64)), batch(name, dtype=torch.float64)
    single, several, all_at_once = (
        new_addrop(model, "IGA", iga_steps=4, iga_batch=at_once, pass1="eval", target=target, q=0.7)
        for at_once in (1, 3, 99)
    )
    expected = bits_of(single.attribute(**inputs))
    for addrop in (several, all_at_once):
        assert equal_bits(bits_of(addrop.attribute(**inputs)), expected)
        assert addrop.statistics() == single.statistics()
    assert addrop(**inputs).loss.isfinite()


def test_steps_in_one_batch_take_fewer_forwards(monkeypatch):
    model, inputs = build("bert"), batch("bert", size=1)
    sizes = []
    real = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **kwargs: sizes.append(len(kwargs["input_ids"])) or real(self, **kwargs)
    )
    new_addrop(model, "IGA", iga_steps=6, iga_batch=3, pass1="eval", layers=[0, 2]).attribute(**inputs)
    assert sizes == [1, 3, 2, 3, 2]


@pytest.mark.parametrize("target", ["gold", lambda out, _batch: out.logits[:, 1].square().sum()], ids=["gold", "own"])
@pytest.mark.parametrize("layers", [[1], [0, -1]])
def test_iga_of_other_targets_and_layers(target, layers):
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    addrop = new_addrop(model, "IGA", target=target, layers=layers)
    expected = eager_masks(model, inputs, addrop, {index % 3 for index in layers})
    assert equal_bits(bits_of(addrop.attribute(**inputs)), expected)


def test_the_pseudo_label_is_that_of_the_whole_attention():
    """A model whose prediction flips under scaling: its label may not be chosen again at each step."""
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    logits = []
    model.register_forward_hook(lambda _model, _inputs, out: logits.append(out.logits.detach()))

    def bits(target="pseudo"):
        logits.clear()
        return bits_of(new_addrop(model, "IGA", iga_steps=20, layers="first", target=target).attribute(**inputs))

    bits()
    with torch.no_grad():  # sample 0 is on the border between its classes half way between k = m and k = 1
        model.classifier.bias -= (logits[0][0] + logits[1][0]) / 2
    ours = bits()
    labels = [step.argmax(-1) for step in logits]
    assert any(not torch.equal(label, labels[0]) for label in labels)
    assert equal_bits(ours, bits(lambda out, _batch: chosen(out, labels[0])))
    assert not equal_bits(ours, bits(lambda out, _batch: out.logits.amax(-1).sum()))


def chosen(outputs, labels):
    return outputs.logits.gather(-1, labels[:, None]).sum()


def test_iga_in_float32_moves_few_bits():
    single, double = build("bert"), build("bert", torch.float64)
    inputs = batch("bert")
    ours = bits_of(new_addrop(single, "IGA", keys="fp32", q=1.0).attribute(**inputs))
    exact = bits_of(new_addrop(double, "IGA", q=1.0).attribute(**inputs))
    moved = sum(int((a != b).sum()) for a, b in zip(ours, exact, strict=True))
    assert moved <= 0.001 * sum(a.numel() for a in ours)


@pytest.mark.parametrize("name", EVERY)
def test_modules_below_a_layer_are_not_run_again_and_change_nothing(name, monkeypatch):
    model, inputs = with_dropout(build(name)), batch(name)
    torch.manual_seed(3)
    ours = bits_of(new_addrop(model, "IGA").attribute(**inputs))
    after = torch.get_rng_state()
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    monkeypatch.setattr(Replay, "below", lambda _self, _index: {})
    torch.manual_seed(3)
    whole = bits_of(new_addrop(model, "IGA").attribute(**inputs))
    assert equal_bits(ours, whole)
    assert torch.equal(after, torch.get_rng_state())
    torch.manual_seed(3)
    new_addrop(model, "GA").attribute(**inputs)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("name", EVERY)
def test_the_steps_of_iga_see_the_dropout_of_the_first(name):
    model, inputs = with_dropout(build(name)), batch(name)
    draws = Draws(0.3, 0.4, 0, torch.arange(3))
    pass1 = IntegratedPass1(draws, ADDrop(model)._scope, (), nodes("riemann", 1))
    logits = pass1.run(model, inputs).logits
    for site in pass1.sites:
        site.is_masked = True
    pass1.walk_back(logits.sum())
    for integrand in pass1._integrands:
        with pass1._replay.replayed(integrand.site.index, Repeat(3, 1)):
            pass1._before.restore()
            scaled = ScaledPass1(draws, pass1.sites, integrand, [1.0])
            assert torch.equal(model(**inputs, attrdrop=scaled).logits, logits)


def test_what_a_step_runs():
    """Forwards of the lowest layer, of the second and of the classifier, pass 2 included."""
    model, inputs = build("bert"), batch("bert")
    runs = [0, 0, 0]
    layers = model.bert.encoder.layer
    for index, module in enumerate((layers[0].attention.self, layers[1].attention.self, model.classifier)):
        module.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    expected = {
        ("GA", "all"): [2, 2, 2],
        ("AA", "all"): [2, 2, 1],
        ("AA", "first"): [1, 1, 1],
        ("RD", "all"): [1, 1, 1],
        ("IGA", "first"): [4, 4, 4],
        ("IGA", "all"): [2 + 2, 2 + 4, 2 + 6],
        ("IGA", "all", "gauss"): [2 + 3, 2 + 6, 2 + 9],
        ("IGA", "all", "riemann", "joint"): [2 + 3, 2 + 3, 2 + 3],
        ("IGA", (1,), "gauss", "joint"): [2, 2 + 3, 2 + 3],
    }
    for (attribution, chosen_layers, *options), counts in expected.items():
        options = dict(zip(("iga_rule", "iga_scope"), options, strict=False))
        addrop = new_addrop(model, attribution, layers=chosen_layers, **options)
        addrop(**inputs)  # counts the layers
        runs[:] = [0, 0, 0]
        addrop(**inputs)
        assert runs == counts, (attribution, chosen_layers, options)


@pytest.mark.parametrize(("layers", "lowest"), [("all", 0), ([1], 1), ([-1], 2)], ids=str)
def test_nothing_below_the_lowest_masked_layer_is_walked(layers, lowest):
    """Products of pass 1, counted: a forward, and inputs' gradients from the top to that layer's head outputs."""
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, "GA", layers=layers)
    with FlopCounterMode(display=False) as counted:
        addrop.attribute(**inputs)
    flops = sum(count for op, count in counted.get_flop_counts()["Global"].items() if "mm" in str(op))
    samples, tokens, h, f = 3, 3 * 20, SIZE["hidden_size"], SIZE["intermediate_size"]
    attention, feed_forward, head = 4 * h * h, 2 * h * f, samples * (h * h + 2 * h)
    forward = tokens * 3 * (attention + feed_forward) + head
    walk = tokens * ((2 - lowest) * (attention + feed_forward) + h * h + feed_forward) + head
    assert flops == 2 * (forward + walk)


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_aa_ranks_the_attention_weights_of_the_model_itself(name):
    model, inputs = with_dropout(build(name, torch.float64)), batch(name, dtype=torch.float64)
    addrop = new_addrop(model, "AA", pass1="eval")
    ours = addrop.attribute(**inputs)
    model.set_attn_implementation("eager")
    weights = model.eval()(**inputs, output_attentions=True).attentions
    for site, weight in zip(ours.sites, weights, strict=True):
        valid = weight > 0
        rows, _, _ = draw(candidates(weight, valid, 0.3, low=False), valid, 0.4, ours.draws.seed, site.index, None)
        assert torch.equal(site.keep.rows, rows)


def biased_call(dtype=torch.float32, mask=None, shape=(5, 7)):
    """Two key heads for four, and a position bias; integers, so that the products are exact in every order."""
    generator = torch.Generator().manual_seed(0)
    n_q, n_k = shape
    q, k = (torch.randint(-9, 10, (2, *rest, 8), generator=generator).to(dtype) for rest in ((4, n_q), (2, n_k)))
    bias = torch.randn(1, 4, n_q, n_k, generator=generator).to(dtype)
    return AttentionCall(nn.Identity(), q, k, k, mask, bias, 0.3, 0.0, False)


def masked_sites(call):
    """Two, so that the call is not the last."""
    return [Site(index, module, is_masked=True) for index, module in enumerate((call.module, nn.Identity()))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 5, 7).masked_fill(torch.eye(5, 7) > 0, -torch.inf)])
def test_aa_under_a_bias_ranks_the_scores(dtype, mask):
    call = biased_call(dtype, mask if mask is None else mask.to(dtype))
    sites = masked_sites(call)
    AttentionPass1(sites, Draws(0.4, 0.6, 3, torch.arange(2))).attend(call, lambda: call.value)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    products = call.query.double() @ call.key.repeat_interleave(2, 1).double().transpose(-1, -2)
    scores = (products * torch.tensor(0.3, dtype=wide).double() + call.bias().double()).to(wide)
    scores = scores.bfloat16().to(wide) if dtype == torch.bfloat16 else scores
    valid = torch.ones(5, 7, dtype=torch.bool) if mask is None else mask == 0
    valid = valid.expand(scores.shape)
    rows, _, counts = draw(candidates(scores, valid, 0.4, low=False), valid, 0.6, 3, 0, None)
    assert torch.equal(sites[0].keep.rows, rows)
    assert torch.equal(sites[0].keep.counts, counts)
    assert counts[2] > 0


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("attribution", ["AA", "IGA"])
def test_a_bias_goes_to_the_op_as_it_is(attribution, monkeypatch):
    """Neither the scores nor a unit matrix are made on the way."""
    call = biased_call(shape=(37, 53), mask=torch.ones(2, 1, 1, 53, dtype=torch.bool))
    draws, sites, lse, given = Draws(0.4, 0.6, 3, torch.arange(2)), masked_sites(call), torch.zeros(2, 4, 37), {}
    monkeypatch.setattr(passes, "keep_mask", lambda x, y, **more: given.update(x=x, y=y, **more))
    monkeypatch.setattr(integrated, "masked_attention", lambda *_, **__: (call.value, lse))
    total = torch.ones(2, 37, 4, 8)
    with Largest() as largest:
        if attribution == "AA":
            AttentionPass1(sites, draws).attend(call, lambda: call.value)
        else:
            sums = [(total.transpose(1, 2), call.value)]
            pass1 = IntegratedPass1(draws, {call.module}, (), nodes("riemann", 1))
            pass1._rank(integrated.Integrand(sites[0], call, total, pass1._before, sums))
    assert largest.elements <= 2 * 4 * 37 * 8
    if attribution == "AA":
        assert [given[name] for name in ("x", "y", "bias")] == [call.query, call.key, call.position_bias]
        assert given["scale"] == 0.3
    else:
        assert given["weight"] == (call.query, call.key, lse, 0.3, call.position_bias)


def test_aa_without_a_bias_ranks_queries_by_keys(monkeypatch):
    call, given = biased_call()._replace(position_bias=None), {}
    monkeypatch.setattr(passes, "keep_mask", lambda x, y, **more: given.update(x=x, y=y, **more))
    AttentionPass1(masked_sites(call), Draws(0.4, 0.6, 3, torch.arange(2))).attend(call, lambda: call.value)
    assert given["x"] is call.query
    assert given["y"] is call.key
    assert given["bias"] is None
    assert given["scale"] == 1.0


def test_each_attribution_has_a_strategy_of_the_same_two_verbs():
    assert tuple(STRATEGIES) == ATTRIBUTIONS
    for verb in ("attribute", "mask"):
        assert len({inspect.signature(getattr(strategy, verb)) for strategy in STRATEGIES.values()}) == 1
    for name, strategy in STRATEGIES.items():
        addrop = new_addrop(build("bert"), name)
        assert type(addrop._strategy) is strategy
        assert isinstance(addrop.attribute(**batch("bert")), Pass2)


def test_rd_drops_each_valid_position_with_probability_pq():
    model, inputs = build("bert"), batch("bert", size=16)
    addrop = new_addrop(model, "RD", p=0.5, q=0.6)
    drops, steps = 0.0, 12
    for step in range(steps):
        addrop.start_step(step)
        masks = addrop.attribute(**inputs)
        model(**inputs, attrdrop=masks)
        for bits in bits_of(masks):
            assert not bits[1, :, :, 12:].any()
            drops = drops + (~bits).double()
    found = addrop.statistics()
    assert found.candidates == found.valid == steps * 3 * 4 * 20 * (15 * 20 + 12)
    spread = (0.3 * 0.7 / found.valid) ** 0.5
    assert abs(found.fraction_dropped - 0.3) < 5 * spread
    share = (drops / (3 * steps))[torch.arange(16) != 1]  # of each place, over steps and layers
    place_spread = (0.3 * 0.7 / (3 * steps)) ** 0.5
    assert (share - 0.3).abs().max() < 5.5 * place_spread
    assert 0.9 * place_spread < share.std() < 1.1 * place_spread


def test_rd_depends_on_the_sample_and_not_on_the_call():
    model, inputs = build("bert"), batch("bert", size=4)
    addrop = new_addrop(model, "RD")

    def bits(parts):
        addrop.load_state_dict({"epoch": 1, "step": 0, "calls": 0, "samples": 0})
        found = []
        for index in range(parts):
            part = {key: value.chunk(parts)[index] for key, value in inputs.items()}
            masks = addrop.attribute(**part)
            model(**part, attrdrop=masks)
            found.append(torch.stack(bits_of(masks)))
        return torch.cat(found, 1)

    assert torch.equal(bits(1), bits(2))
    assert torch.equal(bits(1), bits(4))
    assert not torch.equal(bits(1)[:, 0], bits(1)[:, 2])


def test_rd_counts_once_where_the_model_runs_twice_under_its_masks():
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, "RD")
    masks = addrop.attribute(**inputs)
    assert addrop.statistics().valid == 0
    first, second = (model(**inputs, attrdrop=masks).loss for _ in range(2))
    assert torch.equal(first, second)
    assert addrop.statistics().valid == 3 * 4 * 20 * (20 + 12 + 20)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("layers", [[0], [-1], [0, -2]])
def test_layers(attribution, layers):
    model, inputs = build("bert"), batch("bert")
    masks = new_addrop(model, attribution, layers=layers).attribute(**inputs)
    model(**inputs, attrdrop=masks)
    masked = [site.index for site in masks.sites if site.keep is not None]
    assert masked == sorted(index % 3 for index in layers)
    with pytest.raises(ValueError, match=r"layers has \[3\], but the model has 3 attention layers: 0 to 2"):
        new_addrop(model, attribution, layers=[0, 3]).attribute(**inputs)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_nothing_is_left_behind(attribution, monkeypatch):
    model, inputs = with_dropout(build("bert"), 0.5), batch("bert")
    model.bert.embeddings.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    graphs = []
    real = Pass1._attend_plainly

    def watch(self, call, site, plain):
        out = real(self, call, site, plain)
        graphs.append(call.query.grad_fn)
        return out

    monkeypatch.setattr(Pass1, "_attend_plainly", watch)
    before = torch.get_rng_state()
    masks = new_addrop(model, attribution, pass1="eval").attribute(**inputs)
    assert torch.equal(before, torch.get_rng_state())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not gradients_of(model)
    if attribution == "AA":
        assert graphs
        assert set(graphs) == {None}
    model(**inputs, attrdrop=masks).loss.backward()
    assert gradients_of(model)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_unreachable_attention_is_named(attribution):
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, attribution)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="never calls transformers' attention interface"):
        addrop.attribute(**inputs)
    model.set_attn_implementation("attrdrop")
    assert addrop.attribute(**inputs) is not None


@pytest.mark.skipif(TRITON_MISSING is not None, reason=str(TRITON_MISSING))
@pytest.mark.parametrize(
    "attribution", ["GA", "RD", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AA", "IGA"))]
)
def test_triton_makes_the_same_bits(attribution):
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, attribution, layers="first")

    def bits():
        addrop.start_step(1)
        addrop.start_step(0)
        masks = addrop.attribute(**inputs)
        model(**inputs, attrdrop=masks)
        return bits_of(masks)

    ours = bits()
    with use_backend("triton"):
        assert equal_bits(ours, bits())


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("attention", ["decoder", "cross", ("encoder", "cross"), ("encoder", "decoder", "cross")])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_attention_of_the_decoder(name, attention, attribution):
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    addrop = new_addrop(model, attribution, attention=attention)
    check_a_step(model, inputs, addrop)
    kinds = (attention,) if isinstance(attention, str) else attention
    each = {"encoder": 20 * (20 + 12 + 20), "decoder": 3 * 20 * 21 // 2, "cross": 20 * (20 + 12 + 20)}
    assert attended(addrop) == 2 * 4 * sum(each[kind] for kind in kinds)


def test_kinds_of_attention_that_a_model_lacks_are_named(monkeypatch):
    for name in CLASSIFIERS:
        with pytest.raises(ValueError, match=r"attention is for encoder-decoder models, which \w+ is not"):
            ADDrop(build(name), attention="decoder")
    monkeypatch.setattr("attrdrop.addrop.scope.CROSS_NAMES", ("memory",))
    for attention in ("cross", "decoder"):
        with pytest.raises(ValueError, match=f"attention '{attention}': no module of BartDecoder is named as a cross"):
            ADDrop(build("bart"), attention=attention)
