"""Small random models that read images beside text, and batches of them."""

import torch
from models import GROUPED, SIZE
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

TEXT = {**SIZE, **GROUPED, "num_hidden_layers": 2}
TOWER = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, image_size=16, patch_size=8
)
PLACE, LENGTH = 98, 24  # the token in whose places an image's features go


def llava():
    vision, text = CLIPVisionConfig(**TOWER).to_dict(), LlamaConfig(**TEXT).to_dict()
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=PLACE, vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )  # fmt: skip


def paligemma():
    vision = dict(model_type="siglip_vision_model", **TOWER, projection_dim=32)
    text = dict(model_type="gemma", **TEXT, head_dim=8)
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=PLACE, projection_dim=32)
    )


def qwen2_vl():
    """Its tower attends to each image in a call of its own."""
    vision = dict(
        depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4, spatial_merge_size=2,
        temporal_patch_size=1,
    )  # fmt: skip
    text = dict(**TEXT, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]})
    config = Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=PLACE, vision_start_token_id=97, video_token_id=96
    )
    return Qwen2VLForConditionalGeneration(config)


def qwen2_audio():
    audio = dict(
        num_mel_bins=8, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=40, d_model=32,
        max_source_positions=16,
    )  # fmt: skip
    config = Qwen2AudioConfig(audio_config=audio, text_config=dict(model_type="qwen2", **TEXT), audio_token_id=PLACE)
    return Qwen2AudioForConditionalGeneration(config)


def clip():
    text = {name: value for name, value in SIZE.items() if name != "num_hidden_layers"}
    text.update(num_hidden_layers=2, eos_token_id=2, projection_dim=16)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=dict(**TOWER, projection_dim=16), projection_dim=16))


MODELS = {"llava": llava, "paligemma": paligemma, "qwen2-vl": qwen2_vl, "qwen2-audio": qwen2_audio, "clip": clip}


def build(name, dtype=torch.float32, attention="attrdrop"):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.set_attn_implementation(attention)
    return model.to(dtype).train()


def batch(name, images=(1, 2, 1), dtype=torch.float32):
    """images: how many each text has; each stands for four tokens, in LLaVA and Qwen2-VL."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (len(images), LENGTH), generator=generator)
    each = 8 if name == "qwen2-audio" else 4
    for row, count in enumerate(images):
        for start in range(2, 2 + count * (each + 1), each + 1):
            ids[row, start : start + each] = PLACE
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids.masked_fill(ids == PLACE, -100))
    count = sum(images)
    if name == "qwen2-audio":
        mask = torch.ones(count, 32, dtype=torch.int64)
        return dict(
            input_features=torch.randn(count, 8, 32, generator=generator), feature_attention_mask=mask, **inputs
        )
    if name == "qwen2-vl":
        inputs.update(image_grid_thw=torch.tensor([[1, 4, 4]] * count), mm_token_type_ids=(ids == PLACE).int())
        return dict(pixel_values=torch.randn(count * 16, 48, generator=generator), **inputs)
    if name == "paligemma":
        inputs["token_type_ids"] = torch.ones_like(ids)
    if name == "clip":
        inputs = dict(input_ids=ids % 90 + 3)
    return dict(pixel_values=torch.randn(count, 3, 16, 16, generator=generator).to(dtype), **inputs)
