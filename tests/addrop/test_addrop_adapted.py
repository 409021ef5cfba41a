"""DeBERTa and MPNet, whose self-attention AD-DROP takes over: every promise around the step holds for them too."""

import copy
import io
import threading

import pytest
import torch
from eager import gradients_of
from models import ADAPTED, batch, build, with_dropout
from sentences import Sentences, arguments
from transformers import DebertaConfig, DebertaForSequenceClassification, MPNetConfig, MPNetForSequenceClassification

from attrdrop import ADDrop, ADDropConfig, ADDropTrainer
from attrdrop.addrop.adapters import adapt

ONE_OF_EACH = ["mpnet", "deberta", "deberta-v3"]


def attention_modules(model):
    return [module for module in model.modules() if type(module).__name__.endswith("SelfAttention")]


@pytest.mark.parametrize("name", ADAPTED)
def test_without_a_pass_the_model_is_what_it_was_bit_for_bit(name):
    def train(wrap):
        model = with_dropout(build(name))
        step = wrap(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        torch.manual_seed(5)
        for index in range(3):
            step(**batch(name, seed=index)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    ours, plain = train(lambda model: ADDrop(model, p=0.0, cross_tuning=False)), train(lambda model: model)
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_attention_weights_come_from_the_model_itself(name):
    model, inputs = build(name), batch(name)
    expected = model(**inputs, output_attentions=True).attentions
    addrop = ADDrop(model, cross_tuning=False)
    for mine, theirs in zip(model(**inputs, output_attentions=True).attentions, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert addrop(**inputs).attentions is None
    with pytest.raises(ValueError, match="cannot return attention weights in an AD-DROP step"):
        addrop(**inputs, output_attentions=True)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="leave output_attentions out"):
        addrop(**inputs)
    assert addrop(**inputs, output_attentions=False).attentions is None


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_layers_without_bits_attend_as_the_model_does(name):
    """In double, the first layer's mask alone keeps everything: what remains is the plain model."""
    model, inputs = build(name, torch.float64), batch(name, dtype=torch.float64)
    expected = model(**inputs, output_hidden_states=True)
    addrop = ADDrop(model, p=0.5, q=1e-9, layers="first", cross_tuning=False)
    found = addrop(**inputs, output_hidden_states=True)
    assert addrop.statistics().candidates > addrop.statistics().dropped == 0
    is_token = inputs["attention_mask"].bool()
    for mine, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[is_token], theirs[is_token], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["deberta", "deberta-v3"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_masks_of_every_type(name, dtype):
    inputs = batch(name)
    whole, other = (ADDrop(build(name), cross_tuning=False) for _ in range(2))
    loss = other(**{**inputs, "attention_mask": inputs["attention_mask"].to(dtype)}).loss
    torch.testing.assert_close(loss, whole(**inputs).loss)
    assert other.statistics() == whole.statistics()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_missing_mask_is_a_mask_of_ones(name):
    inputs = batch(name, size=1)
    assert inputs["attention_mask"].all()
    whole, bare = (ADDrop(build(name), cross_tuning=False) for _ in range(2))
    loss = bare(**{key: value for key, value in inputs.items() if key != "attention_mask"}).loss
    torch.testing.assert_close(loss, whole(**inputs).loss)
    assert bare.statistics() == whole.statistics()


@pytest.mark.parametrize("name", ["deberta", "deberta-v3"])
def test_a_layer_run_again_sees_the_pass_of_its_own_forward(name):
    """Under gradient checkpointing both backwards follow both forwards, whose masks differ."""
    plain, checkpointed = with_dropout(build(name)), with_dropout(build(name))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch(name)
    for model in (plain, checkpointed):
        torch.manual_seed(7)
        addrop = ADDrop(model, p=0.5, q=0.5, cross_tuning=False)
        losses = [addrop(**inputs).loss for _ in range(2)]
        assert addrop.statistics().dropped > 0
        sum(losses).backward()
    for (key, mine), (_, theirs) in zip(gradients_of(checkpointed).items(), gradients_of(plain).items(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, msg=key)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=True hides them"):
        addrop(**inputs)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_threads_do_not_share_a_pass(name):
    model = build(name)
    inputs = batch(name)
    addrop = ADDrop(model, p=0.5, q=0.5, cross_tuning=False)
    addrop.start_step(0)
    masks = [addrop.attribute(**inputs) for _ in range(2)] + [None]  # the second numbers its samples on
    expected = [model(**inputs, attrdrop=mask).loss.item() for mask in masks]
    assert len(set(expected)) == 3
    found = [[] for _ in masks]
    barrier = threading.Barrier(len(masks))

    def run(mask, losses):
        for _ in range(5):
            barrier.wait()
            losses.append(model(**inputs, attrdrop=mask).loss.item())

    threads = [threading.Thread(target=run, args=pair) for pair in zip(masks, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[loss] * 5 for loss in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_compiled_models(name):
    eager, other = build(name), build(name)
    for model in (eager, other):
        model.config.problem_type = "single_label_classification"  # DeBERTa's search for it does not compile
        for module in attention_modules(model):
            module.dropout.p = 0.1
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    steps = ADDrop(eager, cross_tuning=False), ADDrop(compiled, cross_tuning=False)
    for index in range(2):
        losses = [step(**batch(name, seed=index)).loss for step in steps]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    for (key, mine), (_, theirs) in zip(gradients_of(other).items(), gradients_of(eager).items(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(("name", "targets"), [("mpnet", ["q", "v"]), ("deberta-v3", ["query_proj", "value_proj"])])
def test_lora_and_frozen_models(name, targets):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build(name), peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets)).train()
    addrop = ADDrop(model, cross_tuning=False)
    addrop(**batch(name)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert addrop.statistics().dropped > 0
    frozen = build(name).requires_grad_(False)
    assert ADDrop(frozen, cross_tuning=False).attribute(**batch(name)) is not None


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_autocast_in_bfloat16(name, dropout):
    model = with_dropout(build(name), dropout)
    addrop = ADDrop(model, cross_tuning=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = addrop(**batch(name)).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert addrop.statistics().dropped > 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_attention_dropout_is_the_models_own(name):
    model, inputs = build(name), batch(name)
    addrop = ADDrop(model, cross_tuning=False)

    def loss_of():
        addrop.start_step(1)  # attribute counts no calls: begin the same step anew
        addrop.start_step(0)
        return model(**inputs, attrdrop=addrop.attribute(**inputs)).loss.item()

    without = loss_of()
    for module in attention_modules(model):
        module.dropout.p = 0.5
    dropping = loss_of()
    assert dropping == loss_of() != without  # drawn from the step's seed
    for module in attention_modules(model):
        module.dropout.eval()
    assert loss_of() == without


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_adapting_twice_copying_and_saving(name):
    model, inputs = build(name), batch(name)
    addrop = ADDrop(model, cross_tuning=False)
    masks = addrop.attribute(**inputs)
    expected = model(**inputs, attrdrop=masks).loss
    forwards = [module.forward for module in attention_modules(model)]
    hooks = len(model._forward_pre_hooks)
    assert adapt(model)
    assert all(a is b.forward for a, b in zip(forwards, attention_modules(model), strict=True))
    assert len(model._forward_pre_hooks) == hooks == 1
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for other in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0)
        assert torch.equal(model(**inputs, attrdrop=masks).loss, expected)
        assert not other(**inputs).logits.any()  # it runs on its own weights
        assert ADDrop(other, cross_tuning=False)(**inputs).loss.isfinite()
    assert model.state_dict().keys() == build(name).state_dict().keys()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_trainer(tmp_path, name):
    model = with_dropout(build(name), 0.1)
    config = ADDropConfig(p=0.5, q=0.5)
    trainer = ADDropTrainer(model=model, args=arguments(tmp_path), train_dataset=Sentences(), addrop=config)
    trainer.train()
    fractions = [row["addrop_fraction_dropped"] for row in trainer.state.log_history if "loss" in row]
    assert fractions[0] == 0.0
    assert 0.15 < fractions[1] < 0.5


def test_mpnet_loaded_with_the_implementation_masks_its_padding():
    """MPNet adds its mask to the scores, so it may not get a boolean one."""
    inputs = batch("mpnet")
    small = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    config = MPNetConfig(**small)
    model = MPNetForSequenceClassification._from_config(config, attn_implementation="attrdrop").eval()
    assert model.config._attn_implementation == "attrdrop"
    found = model(**inputs).logits
    model.config._attn_implementation = "eager"
    assert torch.equal(found, model(**inputs).logits)


def test_talking_heads_are_refused():
    config = DebertaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
        talking_head=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not support DeBERTa's talking heads"):
        ADDrop(DebertaForSequenceClassification(config).train(), cross_tuning=False)(**batch("deberta"))


def test_a_forward_that_was_replaced_before_is_kept():
    model, inputs = build("mpnet"), batch("mpnet")
    calls = []
    for module in attention_modules(model):
        module.forward = lambda *args, real=module.forward, **kwargs: calls.append(real) or real(*args, **kwargs)
    ADDrop(model)(**inputs)  # an odd epoch: no pass
    assert len(calls) == 3


def test_other_models_are_left_alone():
    model = build("bert")
    assert not adapt(model)
    assert not model._forward_pre_hooks
