"""Small random models that are made of an encoder and a decoder model, and batches of them."""

import models
import torch
from transformers import (
    BertConfig,
    DebertaV2Config,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    Wav2Vec2Config,
)

SIZE = {**models.SIZE, "num_hidden_layers": 2}
IMAGES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=16)
SOUNDS = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, conv_dim=(8, 8),
    conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    feat_proj_dropout=0.0, apply_spec_augment=False,
)  # fmt: skip
MODELS = {
    "text": (EncoderDecoderModel, EncoderDecoderConfig, lambda: BertConfig(**SIZE, **models.NO_DROPOUT)),
    "image": (
        VisionEncoderDecoderModel,
        VisionEncoderDecoderConfig,
        lambda: ViTConfig(**IMAGES, patch_size=4, **models.NO_DROPOUT),
    ),
    "sound": (SpeechEncoderDecoderModel, SpeechEncoderDecoderConfig, lambda: Wav2Vec2Config(**SOUNDS)),
    "deberta": (EncoderDecoderModel, EncoderDecoderConfig, lambda: DebertaV2Config(**models.DEBERTA_V3)),
}


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    model, config, encoder = MODELS[name]
    decoder = BertConfig(**{**SIZE, "hidden_size": encoder().hidden_size}, **models.NO_DROPOUT, is_decoder=True)
    decoder.add_cross_attention = True
    built = model(config.from_encoder_decoder_configs(encoder(), decoder))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    built.config.decoder_start_token_id, built.config.pad_token_id = 1, 0
    built.set_attn_implementation("attrdrop")
    return built.to(dtype).train()


def batch(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    labels = models.distinct_tokens(2, 7, generator)
    inputs = {
        "image": dict(pixel_values=torch.randn(2, 3, 16, 16, generator=generator).to(dtype)),
        "sound": dict(input_values=torch.randn(2, 96, generator=generator).to(dtype)),
    }
    text = dict(input_ids=models.distinct_tokens(2, 9, generator), attention_mask=torch.ones(2, 9, dtype=torch.int64))
    return dict(**inputs.get(name, text), labels=labels)
