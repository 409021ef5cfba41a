"""A model whose attention is not told of a pass: the sentence says where it got lost."""

import types

import composed
import pytest
import torch
from models import batch, build
from torch import nn
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from attrdrop import ADDrop
from attrdrop.addrop import ATTRIBUTIONS


class Forgetful(nn.Module):
    """Takes keywords and does not hand them on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        return self.inner(input_ids, attention_mask=attention_mask, labels=labels)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.nets = nn.ModuleDict({"body": Forgetful(inner)})

    def forward(self, **inputs):
        return self.nets["body"](**inputs)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_a_module_that_drops_the_keyword_is_named(name, attribution):
    model = Forgetful(build(name)).train()
    with pytest.raises(ValueError, match=r"Forgetful.forward does not .* on to inner \(\w+For.*; pass \*\*kwargs"):
        ADDrop(model, attribution=attribution, cross_tuning=False)(**batch(name))
    with pytest.raises(ValueError, match=r"Forgetful.forward does not .* attrdrop on to nets.body.inner \(\w+For"):
        ADDrop(Around(build(name)).train(), attribution=attribution, cross_tuning=False)(**batch(name))


def test_attention_of_the_users_own_is_named():
    model = build("bert")
    for layer in model.bert.encoder.layer:
        own = lambda self, hidden, *args, **kwargs: (self.value(hidden), None)  # noqa: E731
        layer.attention.self.forward = types.MethodType(own, layer.attention.self)
    with pytest.raises(ValueError, match="BertForSequenceClassification computes attention in its own code"):
        ADDrop(model, cross_tuning=False)(**batch("bert"))


def test_an_encoder_that_does_not_run_is_said():
    model, inputs = build("bart"), batch("bart")
    encoded = model.get_encoder()(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    addrop = ADDrop(model, cross_tuning=False)
    with pytest.warns(UserWarning, match=r"no module of attention='encoder' \(BartEncoder\) runs on this batch"):
        addrop(**inputs, encoder_outputs=encoded)
    assert addrop.statistics().valid == 0


@pytest.mark.parametrize("attention", ["cross", ("decoder", "cross")])
def test_cross_attention_that_is_not_told_is_named(attention):
    """Its self-attention alone would be masked."""
    decoder = GPT2Config(
        vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, is_decoder=True, add_cross_attention=True
    )
    encoder = BertConfig(**composed.SIZE)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    model.set_attn_implementation("attrdrop")
    with pytest.raises(ValueError, match=r"GPT2Block.forward does not .* decoder.transformer.h.0.cross.*; mask"):
        ADDrop(model.train(), attention=attention, cross_tuning=False)(**composed.batch("text"))


def test_a_decoder_with_attention_of_its_own_is_named():
    decoder = TrOCRConfig(
        vocab_size=99, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=40,
        max_position_embeddings=64,
    )  # fmt: skip
    encoder = ViTConfig(**composed.IMAGES, patch_size=4)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.set_attn_implementation("attrdrop")
    assert ADDrop(model).config.attention == ("encoder",)
    with pytest.raises(ValueError, match="TrOCRForCausalLM computes attention in its own code"):
        ADDrop(model, attention="decoder")


def test_a_diagnosis_leaves_the_model_alone():
    model = Forgetful(build("bert")).train()
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="does not pass the keyword attrdrop"):
        ADDrop(model, attribution="AA", cross_tuning=False)(**batch("bert"))
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_that_is_told_in_part_is_said():
    model = build("bert")
    attention = model.bert.encoder.layer[1].attention.self
    told = attention.forward
    attention.forward = lambda *args, attrdrop=None, **kwargs: told(*args, **kwargs)
    addrop = ADDrop(model, cross_tuning=False)
    with pytest.warns(
        UserWarning, match="attention: that of BertSelfAttention stays plain and is not a layer of AD-DROP"
    ):
        addrop(**batch("bert"))
    assert addrop.statistics().valid == 2 * 4 * 20 * (20 + 12 + 20)
