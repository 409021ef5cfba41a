"""LayerDrop: layers are numbered in the order of the model, and one that a step skips is skipped."""

import pytest
import torch
from models import LAYERS_OF_BOTH, SEQ2SEQ, SIZE
from transformers import BartConfig, BartForConditionalGeneration, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from attrdrop import ADDrop
from attrdrop.addrop import ATTRIBUTIONS

LAYERS = 6


def wav2vec2(layerdrop):
    small = dict(conv_dim=[16, 16], conv_stride=[4, 4], conv_kernel=[8, 4], num_feat_extract_layers=2)
    more = dict(num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=16, mask_time_prob=0.0)
    sizes = {**SIZE, "num_hidden_layers": LAYERS}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**sizes, **small, **more, layerdrop=layerdrop))
    model.set_attn_implementation("attrdrop")
    sound = torch.randn(2, 400, generator=torch.Generator().manual_seed(1))
    return model.train(), dict(input_values=sound, labels=torch.tensor([0, 1]))


def bart(layerdrop):
    fields = {**SEQ2SEQ, **LAYERS_OF_BOTH, "encoder_layers": LAYERS, "encoder_layerdrop": layerdrop}
    model = BartForConditionalGeneration(BartConfig(**fields))
    model.set_attn_implementation("attrdrop")
    tokens = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    return model.train(), dict(input_ids=tokens, labels=tokens)


def attention_of(model):
    encoder = model.wav2vec2.encoder if hasattr(model, "wav2vec2") else model.get_encoder()
    return [layer.attention if hasattr(layer, "attention") else layer.self_attn for layer in encoder.layers]


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("layers", ["all", "first", [0, 5], [-1]])
@pytest.mark.parametrize("make", [wav2vec2, bart])
def test_layers_are_those_of_the_model(make, layers, attribution):
    model, inputs = make(0.5)
    addrop = ADDrop(model, attribution=attribution, iga_steps=2, layers=layers, cross_tuning=False)
    chosen = {"all": range(LAYERS), "first": [0]}[layers] if isinstance(layers, str) else [i % LAYERS for i in layers]
    seen = set()
    for _ in range(8):
        masks = addrop.attribute(**inputs)
        model(**inputs, attrdrop=masks).loss.backward()
        assert [site.module for site in masks.sites] == attention_of(model)
        masked = {site.index for site in masks.sites if site.keep is not None}
        assert masked <= set(chosen)
        seen.add(frozenset(masked))
        addrop.start_step(addrop.state_dict()["step"] + 1)
    assert set().union(*seen) == set(chosen)
    assert len(seen) > 1


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_layers_that_are_always_skipped(attribution):
    model, inputs = wav2vec2(1.0)
    addrop = ADDrop(model, attribution=attribution, iga_steps=2, cross_tuning=False)
    addrop(**inputs).loss.backward()
    assert addrop.statistics().dropped == 0
