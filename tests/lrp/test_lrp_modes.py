"""Relevance is taken in evaluation mode: of a model whose outputs are others there, it is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

from attrdrop import RelCutMix, RelDrop, RelDropPoints, lrp

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


class Reidentification(nn.Module):
    """Logits of identities in training mode, features in evaluation mode; kind: how training gives its logits."""

    def __init__(self, kind="logits", features=6, classes=9):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, features, 3), nn.BatchNorm2d(features), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(features, classes)
        self.kind = kind
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, identities=None):
        features = self.body(x).mean((2, 3))
        if not self.training:
            return features
        self.seen += 1
        logits = self.head(features)
        if self.kind == "margin":
            logits = logits - nn.functional.one_hot(identities, logits.shape[1])
        return (logits, features) if self.kind == "pair" else logits


class Cloud(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 9)

    def forward(self, points):
        features = self.body(points).relu().amax(1)
        return self.head(features) if self.training else features


USES = {
    "relevance": lambda model, **more: lrp.relevance(model, IMAGES, LABELS, **more),
    "layers": lambda model, **more: lrp.layer_relevance(model, IMAGES, LABELS, ["body"], **more),
    "stop": lambda model, **more: lrp.relevance(model, IMAGES, LABELS, stop_at="body", **more),
    "gradient": lambda model, **more: lrp.relevance(model, IMAGES, "pred", rule=lrp.AbsGradient(), **more),
    "images": lambda model, **more: RelDrop(model, p=1.0, alpha=0.0, **more)(IMAGES, LABELS),
    "mixed": lambda model, **more: RelCutMix(model, 9, p=1.0, alpha=0.0, **more)(IMAGES, LABELS),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["logits", "pair"])
def test_features_in_evaluation_mode_are_no_logits(use, kind):
    model = Reidentification(kind).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"gives 6 numbers per sample in evaluation mode, .* 9 in training .* output="
        ):
            USES[use](model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    USES[use](model, output=model.head)


def test_features_of_clouds_are_no_logits():
    clouds = torch.randn(4, 12, 3)
    with pytest.raises(ValueError, match=r"6 numbers .* 9 in training mode; pass output="):
        RelDropPoints(Cloud().train())(clouds, LABELS)
    model = Cloud().train()
    assert RelDropPoints(model, output=model.head)(clouds, LABELS).shape == clouds.shape


def test_one_sample_and_a_new_head():
    model = Reidentification().train()
    model.forward = lambda x: model.head(model.body(x).mean((2, 3)))
    lrp.relevance(model, IMAGES[:1], LABELS[:1])
    model.head = nn.Linear(6, 4)
    lrp.relevance(model, IMAGES, LABELS)


def test_a_model_that_needs_labels_in_training_is_warned_about_once():
    model = Reidentification("margin").train()
    with pytest.warns(UserWarning, match=r"does not run in training mode .* 6 per sample, .* output=") as found:
        RelDrop(model, p=1.0, alpha=0.0)(IMAGES, LABELS)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrp.relevance(model, IMAGES, LABELS)
        lrp.relevance(Reidentification("margin").eval(), IMAGES, LABELS)
        lrp.relevance(Reidentification("margin").train(), IMAGES, LABELS, output=lambda out: out)
