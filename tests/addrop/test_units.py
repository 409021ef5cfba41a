"""ADDropConfig.units: feed-forward units and heads, against models run by hand and the method restated in loops."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from eager import bits_of, gradients_of
from models import batch, build
from torch import nn
from units_restatement import FORWARDS, Taps, masks

from attrdrop import ADDrop, ADDropConfig, unpack_mask
from attrdrop._core.seeds import derive_seed
from attrdrop.addrop.units import HEADS, NextInput, NextInputs, Units

ALL = ("attention", "feed-forward", "heads")
KINDS = {"heads": HEADS, "feed-forward": 1}


def new_addrop(model, units=ALL, **options):
    return ADDrop(model, **{**dict(p=0.4, q=0.6, units=units, cross_tuning=False, seed=3), **options})


def unit_bits(pass2, width=40, heads=4):
    """By (kind, layer), as the restatement has them."""
    return {
        (kind, site.index): unpack_mask(site.units[unit].rows, heads if kind == "heads" else width)
        for site in pass2.sites
        for kind, unit in KINDS.items()
        if unit in site.units
    }


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(bits, theirs[place]) for place, bits in ours.items())


@pytest.mark.parametrize("name", FORWARDS)
def test_a_step_is_the_method_restated(name):
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    forward = partial(FORWARDS[name], model, inputs)
    addrop = new_addrop(model)
    pass2 = addrop.attribute(**inputs)
    layers = len(pass2.sites)
    expected = masks(forward, derive_seed(3, 0), 0.4, 0.6, range(layers))
    assert len(expected) == 2 * layers
    assert_same_bits(unit_bits(pass2), expected)

    n = pass2.sites[0].keep.shape[3]
    attention = {site.index: unpack_mask(site.keep.rows, n) for site in pass2.sites}
    found = {}
    for whose in ("ours", "theirs"):
        model.zero_grad()
        if whose == "ours":
            loss = model(**inputs, attrdrop=pass2).loss
        else:
            _, loss = forward(Taps(attention, expected))
        loss.backward()
        found[whose] = loss.detach(), gradients_of(model)
    (loss, gradients), (expected_loss, expected_gradients) = found["ours"], found["theirs"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("units", "layers", "region"), [("heads", [1], "high"), ("feed-forward", [0, -1], "low")])
def test_layers_and_region_are_those_of_attention(units, layers, region):
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)
    pass2 = new_addrop(model, units, layers=layers, region=region).attribute(**inputs)
    forward = partial(FORWARDS["bert"], model, inputs)
    expected = masks(forward, derive_seed(3, 0), 0.4, 0.6, [x % 3 for x in layers], low=region == "low")
    assert_same_bits(unit_bits(pass2), {place: bits for place, bits in expected.items() if place[0] == units})
    assert bits_of(pass2) == [None] * 3


def test_attention_is_masked_as_it_was():
    model, inputs = build("bert"), batch("bert")
    alone, default, together = (
        bits_of(ADDrop(model, p=0.4, q=0.6, cross_tuning=False, **given).attribute(**inputs))
        for given in (dict(units="attention"), {}, dict(units=ALL))
    )
    for bits, same, beside_others in zip(alone, default, together, strict=True):
        assert torch.equal(bits, same)
        assert torch.equal(bits, beside_others)


def test_one_gradient_call(monkeypatch):
    calls, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or real(*a, **k))
    new_addrop(build("bert")).attribute(**batch("bert"))
    assert len(calls) == 1


@pytest.mark.parametrize("attribution", ["GA", "RD"])
def test_masks_do_not_depend_on_how_a_step_is_split(attribution):
    model, inputs = build("bert", torch.float64), batch("bert", dtype=torch.float64)

    def run(parts):
        addrop = new_addrop(model, attribution=attribution, accumulation_steps=len(parts))
        found = []
        for part in parts:
            given = {name: x[part] for name, x in inputs.items()}
            pass2 = addrop.attribute(**given)
            model(**given, attrdrop=pass2)
            found.append(unit_bits(pass2))
        return {place: torch.cat([bits[place] for bits in found]) for place in found[0]}, addrop.statistics()

    (whole, counts), (parts, same_counts) = run([slice(0, 3)]), run([slice(0, 1), slice(1, 3)])
    assert_same_bits(whole, parts)
    assert counts.feed_forward == same_counts.feed_forward
    assert counts.heads == same_counts.heads


def test_random_units_are_dropped_at_p_q():
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, attribution="RD")
    for step in range(6):
        addrop.start_step(step)
        addrop(**inputs)
    found = addrop.statistics()
    for counts, rows in ((found.feed_forward, 6 * 3 * 3 * 20 * 40), (found.heads, 6 * 3 * 3 * 4)):
        assert counts.valid == counts.candidates == rows
        assert abs(counts.fraction_dropped - 0.24) < 5 * (0.24 * 0.76 / rows) ** 0.5
    assert abs(found.fraction_dropped - 0.24) < 0.02


def test_statistics_by_kind():
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, ("feed-forward", "heads"), p=0.5, q=0.5)
    pass2 = addrop.attribute(**inputs)
    found = addrop.statistics()
    bits = unit_bits(pass2)
    assert found.valid == found.dropped == 0
    for counts, kind in ((found.feed_forward, "feed-forward"), (found.heads, "heads")):
        of_kind = [x for (name, _), x in bits.items() if name == kind]
        assert counts.valid == sum(x.numel() for x in of_kind)
        assert counts.dropped == sum(int((~x).sum()) for x in of_kind) > 0
        assert counts.dropped < counts.candidates < counts.valid
    numbers = found.as_dict()
    assert numbers["heads_fraction_dropped"] == found.heads.fraction_dropped
    assert numbers["feed_forward_dropped"] == found.feed_forward.dropped
    assert not any("heads" in name for name in ADDrop(model).statistics().as_dict())
    addrop.reset_statistics()
    assert addrop.statistics().heads.valid == 0


def hooks_of(model):
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, NextInput)]


@pytest.mark.parametrize("attribution", ["GA", "RD"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_gradient_checkpointing_changes_nothing(name, attribution):
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    addrop = new_addrop(model, attribution=attribution)

    def run():
        addrop.start_step(0)
        model.zero_grad()
        pass2 = addrop.attribute(**inputs)
        model(**inputs, attrdrop=pass2).loss.backward()
        assert not hooks_of(model)
        return unit_bits(pass2), gradients_of(model)

    bits, gradients = run()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if attribution == "RD":
        addrop = new_addrop(model, attribution=attribution)
    addrop._samples.set(0)
    again, same = run()
    assert_same_bits(bits, again)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(same[parameter], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("attribution", ["GA", "RD"])
def test_nothing_stays_on_the_model(attribution):
    model, inputs = build("bert"), batch("bert")
    plain = model(**inputs).loss
    addrop = new_addrop(model, attribution=attribution)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    pass2 = addrop.attribute(**inputs)
    model(**inputs, attrdrop=pass2).loss.backward()
    assert not hooks_of(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(model(**inputs).loss, plain)


def test_a_forward_that_breaks_off_drops_nothing_later():
    model, inputs = build("bert"), batch("bert")
    plain = model(**inputs).loss
    addrop = new_addrop(model)

    def fail(_module, _inputs):
        raise MemoryError

    pass2 = addrop.attribute(**inputs)
    handle = model.bert.encoder.layer[1].intermediate.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model(**inputs, attrdrop=pass2)
    handle.remove()
    assert hooks_of(model)  # the block of layer 1 was awaited
    alive = weakref.ref(pass2)
    del pass2
    gc.collect()
    assert alive() is None
    assert torch.equal(model(**inputs).loss, plain)
    assert not hooks_of(model)


def test_blocks_are_found_by_their_sizes():
    second = {
        "bert": "output.dense", "distilbert": "ffn.lin2", "albert": "ffn_output", "modernbert": "mlp.Wo",
        "gpt2": "mlp.c_proj", "llama": "mlp.down_proj", "gemma": "mlp.down_proj", "vit": "mlp.fc2", "bart": "fc2",
        "t5": "DenseReluDense.wo", "swin": "", "deberta-v3": "output.dense", "mpnet": "output.dense",
    }  # fmt: skip
    for name, path in second.items():
        model = build(name, **({"intermediate_size": 64} if name == "deberta-v3" else {}))
        addrop = new_addrop(model, ("feed-forward",))
        pass2 = addrop.attribute(**batch(name))
        assert pass2.sites, name
        names = {module: found for found, module in model.named_modules()}
        for site in pass2.sites:
            (projection,) = addrop._units.projections(site.module)
            assert names[projection].endswith(path), names[projection]
            assert "attention" not in names[projection]
            (kept,) = site.units.values()
            width = projection.in_features if hasattr(projection, "in_features") else projection.nx
            assert kept.rows.shape[2] == (width + 31) // 32
        assert addrop.statistics().feed_forward.dropped > 0
        model(**batch(name), attrdrop=pass2).loss.backward()
        assert not hooks_of(model)


class Layer(nn.Module):
    def __init__(self, hidden=8, inner=12):
        super().__init__()
        self.before = nn.Sequential(nn.Linear(hidden, inner), nn.Linear(inner, hidden))
        self.attention = nn.ModuleDict({"own": nn.Linear(hidden, hidden), "out": nn.Linear(inner, hidden)})
        self.down_first = nn.Sequential(nn.Linear(hidden, 4), nn.Linear(4, hidden))
        self.up, self.down = nn.Linear(hidden, 2 * inner), nn.Linear(inner, hidden)


def test_what_is_no_feed_forward_block():
    model = nn.ModuleList([Layer(), Layer()])
    found = Units(("feed-forward",), model).projections(model[1].attention.own)
    assert found == (model[1].down,)
    assert Units(("attention", "heads"), model).projections(model[1].attention.own) == ()


class Adapted(nn.Module):
    """A linear layer with a correction of low rank beside it, as PEFT makes them."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_what_stands_in_for_a_linear_layer():
    model = build("bert")
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense, layer.output.dense = Adapted(layer.intermediate.dense), Adapted(layer.output.dense)
    addrop = new_addrop(model, "feed-forward")
    pass2 = addrop.attribute(**batch("bert"))
    for site, layer in zip(pass2.sites, model.bert.encoder.layer, strict=True):
        assert addrop._units.projections(site.module) == (layer.output.dense,)
        assert site.units[1].rows.shape == (3, 20, 2)


class Doubled:
    def change(self, number, x):
        return number * x


def test_a_change_is_for_one_call_of_its_thread():
    layer, x, doubled = nn.Identity(), torch.ones(2), Doubled()
    NextInput(layer, doubled.change, 2)
    with ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(layer, x).result(), x)
    assert torch.equal(layer(x), 2 * x)
    assert torch.equal(layer(x), x)
    inputs = NextInputs()
    inputs.change(layer, doubled.change, 2)
    inputs.change(layer, doubled.change, 3)
    assert torch.equal(layer(x), 3 * x)
    inputs.change(layer, doubled.change, 4)
    inputs.forget()
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("kind", ["IGA", "AA"])
def test_attributions_that_rank_attention_alone(kind):
    with pytest.raises(ValueError, match=f"units must be 'attention' only if attribution is '{kind}', which ranks"):
        ADDropConfig(attribution=kind, units=("attention", "heads"))
    assert ADDropConfig(attribution=kind, units="attention").units == ("attention",)


@pytest.mark.parametrize(
    ("given", "message"), [((), "units must name at least one of"), ("head", "units must be 'atten")]
)
def test_units_have_names(given, message):
    with pytest.raises(ValueError, match=message):
        ADDropConfig(units=given)


def test_compiled_models_drop_heads_and_no_feed_forward_units():
    eager, other, inputs = *(build("bert", num_hidden_layers=1) for _ in range(2)), batch("bert")
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"units must not name 'feed-forward' where torch\.compile runs the model"):
        new_addrop(compiled)(**inputs)
    losses = [new_addrop(model, ("attention", "heads"))(**inputs).loss.detach() for model in (eager, compiled)]
    torch.testing.assert_close(*losses)


def test_blocks_that_run_by_chunks():
    model = build("bert", chunk_size_feed_forward=5)
    with pytest.raises(ValueError, match="chunk_size_feed_forward of the model must be 0 if units has 'feed-forward'"):
        new_addrop(model)
    new_addrop(model, "heads")


def test_models_without_such_blocks():
    model, inputs = build("bert", intermediate_size=32), batch("bert")  # as wide as the model: not told apart
    with pytest.raises(ValueError, match="units has 'feed-forward', but beside the attention of BertSelfAttention no"):
        new_addrop(model)(**inputs)
    assert not hooks_of(model)


def test_inputs_that_are_in_pieces():
    model, inputs = build("bert"), batch("bert")
    for layer in model.bert.encoder.layer:
        dense = layer.intermediate.dense.forward
        layer.intermediate.dense.forward = lambda x, dense=dense: dense(x).flatten(0, 1)
    with pytest.raises(
        ValueError, match=r"has inputs of shape \(60, 40\), which do not show which sample they belong to"
    ):
        new_addrop(model)(**inputs)
    assert not hooks_of(model)
