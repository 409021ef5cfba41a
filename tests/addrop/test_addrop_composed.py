"""ADDrop in models that are made of an encoder and a decoder model."""

import pytest
from composed import batch, build
from eager import check_a_step
from models import attended

from attrdrop import ADDrop
from attrdrop.addrop import ATTRIBUTIONS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about how it computes losses


@pytest.mark.parametrize("attention", ["encoder", "decoder", "cross", ("encoder", "decoder", "cross")])
@pytest.mark.parametrize("name", ["text", "image", "sound"])
def test_each_kind_of_attention_is_masked_as_eagerly(name, attention):
    addrop = ADDrop(build(name), p=0.3, q=0.4, attention=attention, cross_tuning=False)
    check_a_step(addrop.model, batch(name), addrop, None)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_every_attribution_counts_all_attention_of_both_models(attribution):
    addrop = ADDrop(
        build("text"), attribution=attribution, iga_steps=2, attention=["decoder", "cross", "encoder"],
        cross_tuning=False,
    )  # fmt: skip
    assert ADDrop(addrop.model).config  # that another one prepares the model again does no harm
    addrop(**batch("text")).loss.backward()
    assert attended(addrop) == 2 * 2 * 4 * (9 * 9 + 7 * 8 // 2 + 7 * 9)


@pytest.mark.parametrize("attention", ["encoder", "decoder"])
def test_an_adapted_encoder(attention):
    addrop = ADDrop(build("deberta"), attention=attention, cross_tuning=False)
    addrop(**batch("deberta")).loss.backward()
    layers = {"encoder": 3 * 9 * 9, "decoder": 2 * 7 * 8 // 2}
    assert attended(addrop) == 2 * 4 * layers[attention]
