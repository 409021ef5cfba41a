"""ADDrop in models with a vision or audio tower: the language model's attention, or the tower's by name."""

import warnings

import pytest
import torch
from eager import bits_of, check_a_step
from models import attended
from vision_language import LENGTH, batch, build

from attrdrop import ADDrop
from attrdrop.addrop import ATTRIBUTIONS

CAUSAL, PATCHES = LENGTH * (LENGTH + 1) // 2, 5


@pytest.mark.parametrize(
    ("attention", "layers", "attribution"),
    [*(("encoder", None, kind) for kind in ATTRIBUTIONS), *(("vision", [0, 1], kind) for kind in ("GA", "AA", "RD"))],
)
def test_texts_with_different_numbers_of_images(attention, layers, attribution):
    model, inputs = build("llava", torch.float64), batch("llava", (2, 0, 2), torch.float64)
    inputs = {**inputs, "pixel_values": inputs["pixel_values"][:3], "input_ids": inputs["input_ids"].clone()}
    inputs["input_ids"][2, 7:11] = 5  # three images for three texts, as the eager step numbers them
    addrop = ADDrop(
        model, p=0.4, q=0.5, attention=attention, layers=layers or "all", attribution=attribution, iga_steps=2,
        cross_tuning=False,
    )  # fmt: skip
    check_a_step(model, inputs, addrop, layers)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("attention", ["encoder", "vision", ("encoder", "vision")])
def test_the_named_part_is_masked_alone(attention, attribution):
    """The tower's last layer is read by nobody (vision_feature_layer=-2), so the target does not depend on it."""
    model, inputs = build("llava"), batch("llava")
    addrop = ADDrop(model, attention=attention, attribution=attribution, iga_steps=2, cross_tuning=False)
    addrop(**inputs).loss.backward()
    layers = 2 if attribution in ("GA", "IGA") else 3
    expected = {"encoder": 2 * 3 * 4 * CAUSAL, "vision": layers * 4 * 4 * PATCHES**2}
    names = (attention,) if isinstance(attention, str) else attention
    assert attended(addrop) == sum(expected[name] for name in names)


def test_steps_that_run_at_once_need_as_many_images_as_texts():
    settings = dict(attribution="IGA", iga_steps=3, pass1="eval", cross_tuning=False)
    several = ADDrop(build("llava"), iga_batch=2, **settings)
    with pytest.raises(
        ValueError, match=r"iga_batch must be 1 if the first dimension of pixel_values .* 4 for 3 samples, got 2"
    ):
        several(**batch("llava"))
    found = [
        bits_of(ADDrop(build("llava"), iga_batch=at_once, **settings).attribute(**batch("llava", (1, 1, 1))))
        for at_once in (1, 2)
    ]
    assert sum((a != b).sum() for a, b in zip(*found, strict=True)) <= 8  # that rounding flips


def test_images_draw_apart():
    """Four images of three texts, each with a mask of its own."""
    addrop = ADDrop(build("llava"), attention="vision", layers="first", p=1.0, q=0.5, cross_tuning=False)
    inputs = batch("llava")
    inputs["pixel_values"][:] = inputs["pixel_values"][:1]
    bits = bits_of(addrop.attribute(**inputs))[0]
    assert bits.shape[0] == 4
    assert not any(torch.equal(bits[i], bits[j]) for i in range(4) for j in range(i))


def test_a_layer_that_is_asked_for_must_matter():
    with pytest.raises(RuntimeError, match=r"does not depend on attention layers \[2\] \(CLIPAttention\)"):
        ADDrop(build("llava"), attention="vision", layers=[1, 2], cross_tuning=False)(**batch("llava"))


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_batches_without_images_between_others(attribution):
    """Said once; the images of later batches are masked."""
    model = build("llava")
    addrop = ADDrop(model, attention=["encoder", "vision"], attribution=attribution, iga_steps=2, cross_tuning=False)
    text = {name: value for name, value in batch("llava", (0, 0)).items() if name != "pixel_values"}
    with pytest.warns(
        UserWarning, match=r"no module of attention='vision' \(CLIPVisionModel\) runs on this batch"
    ) as found:
        addrop(**text)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        addrop(**text)
    assert attended(addrop) == 2 * 2 * 2 * 4 * CAUSAL
    addrop.reset_statistics()
    addrop(**batch("llava"))
    assert attended(addrop) > 2 * 3 * 4 * CAUSAL


@pytest.mark.parametrize("name", ["paligemma", "qwen2-vl", "qwen2-audio"])
def test_other_language_models_beside_a_tower(name):
    inputs = batch(name, (1, 1, 1) if name == "paligemma" else (1, 2, 1))
    addrop = ADDrop(build(name), cross_tuning=False)
    addrop(**inputs).loss.backward()
    assert attended(addrop) == 2 * 3 * 4 * CAUSAL


@pytest.mark.parametrize(("attention", "valid"), [("encoder", 2 * 3 * 4 * CAUSAL), ("vision", 3 * 4 * 4 * PATCHES**2)])
def test_two_towers(attention, valid):
    addrop = ADDrop(
        build("clip"), attention=attention, target=lambda out, _: out.logits_per_image.sum(), cross_tuning=False
    )
    addrop(**batch("clip"))
    assert attended(addrop) == valid


@pytest.mark.parametrize("attribution", ["GA", "RD"])
def test_a_tower_that_attends_to_each_image_in_turn(attribution):
    model = build("qwen2-vl")
    addrop = ADDrop(model, attention="vision", attribution=attribution, cross_tuning=False)
    for images in ((1, 2, 1), (2, 1, 2), (1, 0, 1)):
        addrop.reset_statistics()
        addrop(**batch("qwen2-vl", images)).loss.backward()
        assert attended(addrop) == 2 * 4 * sum(images) * 16**2
    with pytest.raises(ValueError, match=r"layers must be 'all' where .* Qwen2VisionTransformer.* does, got 'first'"):
        ADDrop(model, attention="vision", layers="first", attribution=attribution, cross_tuning=False)(
            **batch("qwen2-vl")
        )


def test_the_attention_of_the_part_counts():
    model = build("llava", attention={"text_config": "attrdrop", "vision_config": "sdpa"})
    addrop = ADDrop(model, cross_tuning=False)
    addrop(**batch("llava"))
    assert attended(addrop) == 2 * 3 * 4 * CAUSAL
    with pytest.raises(ValueError, match="the CLIPVisionModel inside attends with 'sdpa'; load it with"):
        ADDrop(model, attention="vision")


def test_parts_that_cannot_be_reached_are_named():
    with pytest.raises(ValueError, match=r"PaliGemmaModel.forward does not pass .* on to model.vision_tower \(Siglip"):
        ADDrop(build("paligemma"), attention="vision", cross_tuning=False)(**batch("paligemma", (1, 1, 1)))
    with pytest.raises(ValueError, match=r"a model with a vision tower, which Qwen2AudioForCondit.* lacks"):
        ADDrop(build("qwen2-audio"), attention="vision")
    with pytest.raises(ValueError, match="attention is for encoder-decoder models, which LlamaModel is not"):
        ADDrop(build("llava"), attention="decoder")
