"""ADDrop: one step equals the method carried out eagerly, and every promise around the step."""

import gc
import math
import weakref

import pytest
import torch
from eager import EagerPass, bits_of, check_a_step, gradients_of
from models import EVERY, UNREACHABLE, attended, batch, build
from torch import nn
from torch.utils.checkpoint import checkpoint

from attrdrop import ADDrop, ADDropConfig
from attrdrop.addrop import ATTRIBUTIONS, attribution_target


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layers", ["all", "first"])
def test_a_step_equals_the_eager_one_in_float64(name, layers, attribution):
    model = build(name, torch.float64)
    options = dict(attribution=attribution, iga_steps=3, layers=layers, cross_tuning=False)
    addrop = ADDrop(model, p=0.3, q=0.4, **options)
    check_a_step(model, batch(name, dtype=torch.float64), addrop, None if layers == "all" else [0])


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "marian", "vit", "llama"])
def test_a_step_in_float32_errs_at_most_twice_as_much_as_torch(name):
    single, double = build(name), build(name, torch.float64)
    inputs = batch(name)
    addrop = ADDrop(single, p=0.3, q=0.4, cross_tuning=False)
    masks = addrop.attribute(**inputs)
    keeps = bits_of(masks)

    def run(model, context):
        model.zero_grad()
        model(**batch(name, dtype=model.dtype), attrdrop=context).loss.backward()
        return gradients_of(model)

    exact = run(double, EagerPass(ADDrop(double)._scope, keeps))
    ours, torchs = run(single, masks), run(single, EagerPass(addrop._scope, keeps))
    for parameter, expected in exact.items():
        scale = float(expected.abs().max())
        mine = float((ours[parameter] - expected).abs().max())
        theirs = float((torchs[parameter] - expected).abs().max())
        assert mine <= 2 * theirs + 4e-6 * scale + 1e-7, parameter


@pytest.mark.parametrize("zero", ["p", "q"])
def test_without_candidates_or_drops_it_is_plain_training_bit_for_bit(zero):
    def train(attention, wrap):
        model = build("bert", attention=attention)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        step = wrap(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(5)
        losses = []
        for index in range(4):
            out = step(**batch("bert", seed=index))
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(out.loss.item())
        return losses, model.state_dict()

    options = {"p": 0.5, "q": 0.5, "cross_tuning": False, zero: 0.0}
    losses, state = train("attrdrop", lambda model: ADDrop(model, **options))
    plain_losses, plain_state = train("sdpa", lambda model: model)
    assert losses == plain_losses
    assert all(torch.equal(state[key], plain_state[key]) for key in state)


def test_one_gradient_call_that_stops_at_the_lowest_masked_layer(monkeypatch):
    model, inputs = build("bert"), batch("bert")
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or real(*a, **k))
    visited = []

    def watch(layer):
        def hook(_module, _inputs, output):
            if output.requires_grad:
                output.register_hook(lambda _grad: visited.append(layer))

        return hook

    for index, layer in enumerate(model.bert.encoder.layer):
        layer.attention.self.value.register_forward_hook(watch(index))
    ADDrop(model, layers=[1, -1], cross_tuning=False).attribute(**inputs)
    assert len(calls) == 1
    assert visited == [2]  # layer 1 is where the walk ends: nothing below its head outputs is visited


@pytest.mark.parametrize("attribution", ["GA", "IGA"])
def test_pass_one_leaves_nothing_but_bits(monkeypatch, attribution):
    model, inputs = build("bert"), batch("bert")
    alive = []
    real = type(model).forward

    def forward(self, *args, **kwargs):
        assert not any(logits() is not None for logits in alive)  # each graph is freed before the next forward
        out = real(self, *args, **kwargs)
        alive.append(weakref.ref(out.logits))
        return out

    monkeypatch.setattr(type(model), "forward", forward)
    masks = ADDrop(model, attribution=attribution, iga_steps=3, cross_tuning=False).attribute(**inputs)
    assert masks is not None
    assert len(alive) == (1 if attribution == "GA" else 1 + 3 * 2)
    assert not any(logits() is not None for logits in alive)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["bert", "marian", "swin"])
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_a_step_leaves_no_cycles_behind(name, attribution):
    """What only the collector of cycles frees may hold a graph for long."""
    options = dict(iga_steps=3, iga_batch=2, pass1="eval") if attribution == "IGA" else {}
    addrop, inputs = ADDrop(build(name), attribution=attribution, cross_tuning=False, **options), batch(name)
    for _ in range(2):
        addrop(**inputs).loss.backward()
    gc.collect()
    gc.disable()
    try:
        addrop(**inputs).loss.backward()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(("name", "attribution"), [*(("bert", kind) for kind in ATTRIBUTIONS), ("swin", "GA")])
def test_masks_do_not_depend_on_accumulation(name, attribution):
    model, inputs = build(name), batch(name, size=4)

    def accumulated(parts):
        model.zero_grad()
        config = ADDropConfig(p=0.4, q=0.5, attribution=attribution, iga_steps=2, cross_tuning=False)
        addrop = ADDrop(model, config, accumulation_steps=parts)
        for index in range(parts):
            part = {key: value.chunk(parts)[index] for key, value in inputs.items()}
            (addrop(**part).loss / parts).backward()
        assert addrop.state_dict() == {"epoch": 1, "step": 1, "calls": 0, "samples": 0}
        return gradients_of(model), addrop.statistics()

    whole, statistics = accumulated(1)
    for parts in (2, 4):
        split, split_statistics = accumulated(parts)
        assert split_statistics.dropped == statistics.dropped
        for parameter, gradient in whole.items():
            torch.testing.assert_close(split[parameter], gradient, atol=1e-5, rtol=1e-4)


def test_steps_differ_and_resume():
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model, cross_tuning=False)
    losses = [addrop(**inputs).loss.item() for _ in range(3)]
    assert len(set(losses)) == 3
    resumed = ADDrop(model, cross_tuning=False)
    resumed.load_state_dict({"epoch": 1, "step": 2, "calls": 0, "samples": 0})
    assert resumed(**inputs).loss.item() == losses[2]


def test_the_batch_size_is_that_of_the_main_input():
    model, inputs = build("bert"), batch("bert")
    positions = torch.arange(20)[None]
    addrop = ADDrop(model, cross_tuning=False)
    assert addrop(position_ids=positions, **inputs).loss.isfinite()
    assert addrop.statistics().steps == 1


def test_schedules_are_called_with_the_step():
    seen = []

    def schedule(step):
        seen.append(step)
        return 0.0 if step == 0 else 0.5

    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model, p=schedule, q=1.0, cross_tuning=False)
    addrop(**inputs)
    assert addrop.statistics().steps == 0
    addrop(**inputs)
    assert seen == [0, 1]
    assert addrop.statistics().steps == 1


def test_statistics():
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model, p=0.5, q=1.0, layers="first", cross_tuning=False, count_dead=True)
    addrop(**inputs)
    statistics = addrop.statistics()
    # The 8 padded queries of sample 1 reach no logit: their rows tie, so all 12 keys are candidates, then rescued.
    assert statistics.valid == 4 * (20 * 20 + 12 * 12 + 20 * 20)
    assert statistics.dead_valid == 4 * 8 * 12
    assert statistics.candidates == 4 * (20 * 10 + 12 * 6 + 20 * 10)
    assert statistics.rescued_rows == 4 * 8
    assert statistics.dead_dropped == 0
    assert statistics.dropped == 4 * (20 * 10 + 12 * 6 + 20 * 10)
    assert statistics.fraction_dropped == statistics.dropped / statistics.valid
    assert statistics.as_dict()["fraction_candidates"] == statistics.candidates / statistics.valid
    assert statistics.fraction_dead == statistics.dead_valid / (statistics.valid + statistics.dead_valid)
    addrop.reset_statistics()
    assert addrop.statistics().steps == 0


def test_pass_one_in_evaluation_mode_restores_every_flag():
    model, inputs = build("bert"), batch("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.bert.embeddings.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    seen = []
    model.classifier.register_forward_hook(lambda module, *_: seen.append(module.training))
    addrop = ADDrop(model, pass1="eval", cross_tuning=False)
    addrop(**inputs)
    assert seen == [False, True]
    assert {name: module.training for name, module in model.named_modules()} == flags
    with pytest.raises(RuntimeError, match="boom"):
        addrop.__class__(model, pass1="eval", cross_tuning=False, target=boom)(**inputs)
    assert {name: module.training for name, module in model.named_modules()} == flags


def boom(_outputs, _batch):
    raise RuntimeError("boom")


def test_gold_and_custom_targets():
    model, inputs = build("bert"), batch("bert")
    outputs = model(**inputs)
    gold = attribution_target(outputs, inputs, "gold", model)
    assert torch.equal(gold, outputs.logits[torch.arange(3), inputs["labels"]].sum())
    pseudo = attribution_target(outputs, inputs, "pseudo", model)
    assert torch.equal(pseudo, outputs.logits.max(-1).values.sum())
    custom = ADDrop(model, target=lambda out, _batch: out.logits[:, 0].sum(), cross_tuning=False)
    assert custom(**inputs).loss.isfinite()
    model.config.problem_type = "regression"
    assert torch.equal(attribution_target(outputs, inputs, "pseudo", model), -outputs.loss)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_gradient_checkpointing(attribution):
    plain, checkpointed = build("bert"), build("bert")
    for model in (plain, checkpointed):
        model.config.attention_probs_dropout_prob = 0.2
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.2
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        options = dict(attribution=attribution, iga_steps=3, cross_tuning=False)
        ADDrop(model, **options)(**batch("bert")).loss.backward()
    for (name, a), (_, b) in zip(gradients_of(plain).items(), gradients_of(checkpointed).items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=True hides them"):
        ADDrop(checkpointed, cross_tuning=False)(**batch("bert"))


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_autocast_in_bfloat16(dropout, attribution):
    model, inputs = build("bert"), batch("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = dropout
    addrop = ADDrop(model, attribution=attribution, iga_steps=2, cross_tuning=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = addrop(**inputs).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert addrop.statistics().dropped > 0


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_lora_and_frozen_models(attribution):
    peft = pytest.importorskip("peft")
    base = build("bert")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    model.train()
    options = dict(attribution=attribution, iga_steps=2, cross_tuning=False)
    addrop = ADDrop(model, **options)
    addrop(**batch("bert")).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert addrop.statistics().dropped > 0
    frozen = build("bert").requires_grad_(False)
    assert ADDrop(frozen, **options).attribute(**batch("bert")) is not None


@pytest.mark.parametrize("attribution", ["GA", pytest.param("RD", marks=pytest.mark.slow)])  # the others' is GA's
def test_compiled_models(attribution):
    eager, other = build("bert"), build("bert")
    for model in (eager, other):
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.1
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    steps = [ADDrop(model, attribution=attribution, cross_tuning=False) for model in (eager, compiled)]
    for index in range(3):
        losses = [step(**batch("bert", seed=index)).loss for step in steps]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    for (name, a), (_, b) in zip(gradients_of(eager).items(), gradients_of(other).items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_a_compiled_function_that_calls_it(attribution):
    """The step runs uncompiled, between two graphs."""

    def losses(wrap):
        addrop = ADDrop(build("bert"), attribution=attribution, iga_steps=2, cross_tuning=False)
        step = wrap(lambda **inputs: addrop(**inputs).loss * 2 + 1)
        found = [step(**batch("bert", seed=index)) for index in range(2)]
        found[1].backward()
        return found, addrop.statistics()

    (expected, counted), (found, also_counted) = (
        losses(wrap) for wrap in (lambda step: step, lambda step: torch.compile(step, backend="aot_eager"))
    )
    torch.testing.assert_close(found, expected)
    assert counted == also_counted


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_four_dimensional_masks(kind):
    model = build("bert")
    inputs = batch("bert")
    columns = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(3)) < 0.7
    columns |= torch.eye(20, dtype=torch.bool)
    lowest = torch.finfo(torch.float32).min
    mask = columns if kind == "bool" else torch.zeros(columns.shape).masked_fill(~columns, lowest)
    addrop = ADDrop(model, p=0.5, q=1.0, layers="first", cross_tuning=False)
    loss = addrop(**{**inputs, "attention_mask": mask}).loss
    loss.backward()
    assert attended(addrop) == 4 * int(columns.sum())
    again = ADDrop(model, p=0.5, q=1.0, layers="first", cross_tuning=False)
    expected = again(**{**inputs, "attention_mask": columns}).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", UNREACHABLE)
def test_models_that_never_call_the_interface_are_refused(name):
    with pytest.raises(ValueError, match="computes attention in its own code"):
        ADDrop(UNREACHABLE[name]())


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="model must be a transformers model"):
        ADDrop(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a transformers model, got str"):
        ADDrop("bert-base-uncased")
    with pytest.raises(ValueError, match="attends with 'sdpa'; load it with attn_implementation='attrdrop'"):
        ADDrop(build("bert", attention="sdpa"))


class Wrapper(nn.Module):
    """A module of the user's own around a model; its outputs are a dict."""

    def __init__(self):
        super().__init__()
        self.inner = build("bert")

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        out = self.inner(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        return {"loss": out.loss, "logits": out.logits}


class Deaf(Wrapper):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return super().forward(input_ids, attention_mask, labels)


@pytest.mark.parametrize("target", ["pseudo", "gold"])
@pytest.mark.parametrize("attribution", ["GA", "IGA"])
def test_a_module_around_the_model(attribution, target):
    losses = []
    for model in (build("bert"), Wrapper().train()):
        addrop = ADDrop(model, attribution=attribution, target=target, iga_steps=2, cross_tuning=False)
        out = addrop(**batch("bert"))
        losses.append(out["loss"])
        assert addrop.statistics().dropped > 0
    assert torch.equal(*losses)


def test_a_module_that_takes_no_more_keywords_is_named():
    with pytest.raises(ValueError, match=r"Deaf.forward must take \*\*kwargs and pass them on to the BertFor"):
        ADDrop(Deaf())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (dict(p=1.1), ValueError, r"p must lie in \[0, 1\], got 1.1"),
        (dict(q=math.nan), ValueError, r"q must lie in \[0, 1\]"),
        (dict(p="0.3"), TypeError, "p must be a number"),
        (dict(attribution="LRP"), ValueError, "attribution must be 'GA' or 'IGA' or 'AA' or 'RD', got 'LRP'"),
        (dict(iga_steps=0), ValueError, "iga_steps must be a positive int, got 0"),
        (dict(iga_steps=2.5), ValueError, "iga_steps must be a positive int, got 2.5"),
        (dict(iga_batch=0), ValueError, "iga_batch must be a positive int, got 0"),
        (
            dict(iga_batch=2),
            ValueError,
            "iga_batch must be 1 unless pass1 is 'eval' and target is not a callable, got 2",
        ),
        (dict(iga_batch=2, pass1="eval", target=boom), ValueError, "iga_batch must be 1 unless pass1 is 'eval'"),
        (dict(attention="self"), ValueError, "attention must be 'encoder' .* or 'cross' or 'vision' or a list of them"),
        (dict(attention=("cross", 1)), ValueError, "attention must be .* got 1"),
        (dict(attention=[]), ValueError, "attention must name at least one of 'encoder', 'decoder', 'cross', 'vision'"),
        (dict(layers="last"), ValueError, "layers must be 'all' or 'first' or a list of indices, got 'last'"),
        (dict(layers=[]), ValueError, "layers must be"),
        (dict(target="silver"), ValueError, "target must be 'pseudo' or 'gold' or a callable"),
        (dict(pass1="test"), ValueError, "pass1 must be 'train' or 'eval'"),
        (dict(keys="fp8"), ValueError, "keys must be"),
        (dict(alternate="batches"), ValueError, "alternate must be 'epochs' or 'steps', got 'batches'"),
        (dict(every=0), ValueError, "every must be a positive int, got 0"),
    ],
)
def test_wrong_settings_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        ADDropConfig(**fields)


def test_wrong_calls_are_named():
    model, inputs = build("bert"), batch("bert")
    with pytest.raises(ValueError, match=r"layers has \[7\], but the model has 3 attention layers: 0 to 2"):
        ADDrop(model, layers=[0, 7], cross_tuning=False)(**inputs)
    with pytest.raises(ValueError, match="the batch needs at least one tensor"):
        ADDrop(model, cross_tuning=False)()
    with pytest.raises(ValueError, match="target 'gold' needs labels"):
        ADDrop(model, target="gold", cross_tuning=False)(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="epoch must be an int of at least 1, got 0"):
        ADDrop(model).start_epoch(0)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 2"):
        ADDrop(model, p=lambda step: 2, cross_tuning=False)(**inputs)
    with pytest.raises(TypeError, match="pass the batch as keywords"):
        ADDrop(model)(inputs["input_ids"])
    with pytest.raises(ValueError, match="accumulation_steps must be a positive int, got 0"):
        ADDrop(model, accumulation_steps=0)
    with pytest.raises(TypeError, match="give either config or its fields"):
        ADDrop(model, ADDropConfig(), p=0.1)


def test_a_shared_module_under_checkpointing_is_refused():
    model = build("albert")
    layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    real = layer.forward
    layer.forward = lambda *args, **kwargs: checkpoint(real, *args, use_reentrant=False, **kwargs)
    with pytest.raises(ValueError, match="turn gradient checkpointing off for this model"):
        ADDrop(model, cross_tuning=False)(**batch("albert")).loss.backward()
