"""What is attributed is what the model's loss reads: tokens, their shift, and what the loss divides by."""

import models
import pytest
import torch
from eager import bits_of
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BlipTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RobertaConfig,
    RobertaForCausalLM,
    TrOCRConfig,
    TrOCRForCausalLM,
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

import attrdrop.integrations.transformers  # noqa: F401  (registers the attention)
from attrdrop import ADDrop
from attrdrop.addrop import attribution_target

SIZE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
GPT = dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)
DECODER = dict(vocab_size=99, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=40)
SHIFTING = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT)),
    "openai-gpt": lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT)),
    "roberta": lambda: RobertaForCausalLM(RobertaConfig(**SIZE, is_decoder=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2)),
    "blip": lambda: BlipTextLMHeadModel(BlipTextConfig(**SIZE, encoder_hidden_size=32, is_decoder=True)),
}
OTHERS = {
    "bart": lambda: BartForCausalLM(BartConfig(**DECODER)),
    "trocr": lambda: TrOCRForCausalLM(TrOCRConfig(**DECODER)),
    "masked": lambda: BertForMaskedLM(BertConfig(**SIZE)),
}
ALL = {**SHIFTING, **OTHERS}


def build(name, attention="attrdrop"):
    torch.manual_seed(0)
    model = ALL[name]() if name in ALL else mixtral()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.set_attn_implementation(attention)
    return model.train()


def mixtral():
    return MixtralForCausalLM(
        MixtralConfig(**SIZE, num_key_value_heads=2, output_router_logits=True, router_aux_loss_coef=0.9)
    )


def language(answer=None, **more):
    """Tokens; all are labels, or the last so many."""
    tokens = torch.randint(3, 99, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = tokens if answer is None else tokens.clone().index_fill_(1, torch.arange(8 - answer), -100)
    return dict(input_ids=tokens, labels=labels, **more)


@pytest.mark.parametrize("answer", [None, 3])
@pytest.mark.parametrize("name", ALL)
def test_gold_is_minus_the_models_own_loss(name, answer):
    model, inputs = build(name), language(answer)
    outputs = model(**inputs)
    torch.testing.assert_close(attribution_target(outputs, inputs, "gold", model), -outputs.loss)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "masked"])
def test_a_loss_over_num_items_in_batch(name):
    model, inputs = build(name), language(num_items_in_batch=torch.tensor(7))
    outputs = model(**inputs)
    torch.testing.assert_close(attribution_target(outputs, inputs, "gold", model), -outputs.loss)


@pytest.mark.parametrize("target", ["gold", "pseudo"])
@pytest.mark.parametrize("name", [*ALL, "mixtral"])
def test_the_positions_are_those_that_the_loss_reads(name, target):
    """A single answer at the end: a causal loss reads the position before it. Mixtral's loss has a further term."""
    model, inputs = build(name), language(1)
    outputs = model(**inputs)
    value = attribution_target(outputs, inputs, target, model)
    (gradient,) = torch.autograd.grad(value, outputs.logits)
    place = 7 if name in OTHERS else 6
    assert (gradient.ne(0).any(-1) == (torch.arange(8) == place)).all()


def test_labels_that_are_shifted_already():
    model, inputs = build("gpt2"), language(2)
    inputs["shift_labels"] = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    outputs = model(**inputs)
    torch.testing.assert_close(attribution_target(outputs, inputs, "gold", model), -outputs.loss)


def test_outputs_without_a_graph():
    model, inputs = build("gpt2").eval(), language()
    with torch.no_grad():
        outputs = model(**inputs)
    torch.testing.assert_close(attribution_target(outputs, inputs, "gold", model), -outputs.loss)


@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": torch.tensor(5)}], ids=["mean", "sum"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_masks_are_those_of_the_models_own_loss(name, more):
    model, inputs = build(name), language(**more)
    for options in (dict(), dict(attribution="IGA", iga_steps=4)):
        gold, own = (
            ADDrop(model, target=target, pass1="eval", cross_tuning=False, **options).attribute(**inputs)
            for target in ("gold", lambda outputs, _batch: -outputs.loss)
        )
        for mine, theirs in zip(bits_of(gold), bits_of(own), strict=True):
            assert torch.equal(mine, theirs)


def test_steps_of_iga_in_one_batch_under_num_items_in_batch():
    model, inputs = build("gpt2"), language(num_items_in_batch=torch.tensor(5))
    single, several = (
        ADDrop(model, attribution="IGA", iga_steps=6, iga_batch=n, pass1="eval", target="gold", cross_tuning=False)
        for n in (1, 3)
    )
    for mine, theirs in zip(bits_of(several.attribute(**inputs)), bits_of(single.attribute(**inputs)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda out, _batch: out.logits, r"target must give one number .* got a tensor of shape \(3, 8, 99\)"),
        (lambda out, _batch: out.loss.item(), "got float"),
        (lambda out, _batch: None, "got NoneType"),
        (lambda out, _batch: out.loss.detach(), "got one without a graph"),
    ],
)
def test_callables_that_give_no_target_are_named(target, message):
    with pytest.raises(ValueError, match=message):
        ADDrop(build("gpt2"), target=target, cross_tuning=False)(**language())


@pytest.mark.parametrize("attribution", ["GA", "IGA"])
def test_a_target_of_one_entry_may_have_dimensions(attribution):
    addrop = ADDrop(
        build("gpt2"), attribution=attribution, iga_steps=2, cross_tuning=False,
        target=lambda out, _batch: -out.loss.view(1, 1),
    )  # fmt: skip
    assert addrop(**language()).loss.isfinite()


@pytest.mark.parametrize("attribution", ["GA", "IGA"])
def test_a_sample_whose_label_is_ignored_has_no_gold_target(attribution):
    """As the model's own loss leaves it out: its rows tie, and the others are ranked as without it."""
    model, inputs = models.build("bert"), models.batch("bert")
    inputs["labels"][1] = -100

    def kept(samples):
        addrop = ADDrop(model, attribution=attribution, target="gold", iga_steps=2, q=1.0, cross_tuning=False)
        return bits_of(addrop.attribute(**{name: value[samples] for name, value in inputs.items()}))

    for every, alone in zip(kept([0, 1, 2]), kept([0]), strict=True):
        assert torch.equal(every[:1], alone)
        assert torch.equal(every[1], inputs["attention_mask"][1].bool().expand_as(every[1]))  # all dropped, so rescued
    outputs = model(**inputs)
    assert outputs.loss.isfinite()
    found = attribution_target(outputs, inputs, "gold", model)
    torch.testing.assert_close(found, outputs.logits[[0, 2], inputs["labels"][[0, 2]]].sum())
    assert attribution_target(outputs, {"labels": torch.full((3,), -100)}, "gold", model) == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0], r"an int64 tensor of shape \(3,\), got list"),
        (torch.tensor([0.0, 1.0, 0.0]), r"shape \(3,\), got torch.float32 of shape \(3,\)"),
        (torch.tensor([0, 1]), r"shape \(3,\), got torch.int64 of shape \(2,\)"),
        (torch.tensor([0, 1, 2]), r"labels in \[0, 2\), or -100 for a sample to be ignored, got 2"),
        (torch.tensor([0, -1, 1]), r"labels in \[0, 2\), .* got -1"),
    ],
)
def test_gold_labels_that_are_none_are_named(labels, message):
    model, inputs = models.build("bert"), models.batch("bert")
    outputs = model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match=message):
        attribution_target(outputs, {"labels": labels}, "gold", model)
    taken = attribution_target(outputs, {"labels": torch.tensor([[0], [1], [0]], dtype=torch.int32)}, "gold", model)
    assert taken == outputs.logits[torch.arange(3), [0, 1, 0]].sum()
