"""capture: what it runs again is relevance, whatever has changed in place, and what it cannot be is refused."""

import contextlib
import threading

import pytest
import torch
from nets import NETS, build, prepare
from torch import nn
from torch.nn import functional

from attrdrop import lrp
from attrdrop.models import pointnet2_ssg, resnet10

RULES = {
    "zero": lrp.Zero(),
    "epsilon": lrp.Epsilon(1e-2),
    "alpha-beta-flat": lrp.EpsilonAlpha2Beta1Flat(),
    "gamma-box": lrp.EpsilonGammaBox(-3.0, 3.0),
    "w2": lrp.Composite(first=lrp.WSquare(), layers=[(nn.Linear, lrp.Gamma({"*": 0.1}))]),
    "gradient": lrp.GradientTimesInput(),
}


def assert_same(found, wanted, tolerance=1e-12):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@contextlib.contextmanager
def code_of(model):
    """Counts how often the model's own code runs."""
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()


def assert_captured(model, example, batch, **options):
    """It runs the batch without the model's code, and gives its relevance."""
    captured = lrp.capture(model, *example, **options)
    with code_of(model) as runs:
        found = captured(*batch)
    assert not runs
    assert_same(found, lrp.relevance(model, *batch, **options))
    return captured


@pytest.fixture
def small():
    return build("in_place_resnet")


@pytest.mark.parametrize("name", NETS)
def test_it_is_the_relevance_of_other_inputs(name):
    net, x, target = build(name)
    assert_captured(net, (x, target), (torch.randn_like(x), target.flip(0)), rule=lrp.EpsilonPlusFlat())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_by_every_rule(rule, small):
    net, x, target = small
    assert_captured(net, (x, target), (x.flip(0), target), rule=rule)


def test_of_points():
    torch.manual_seed(0)
    net = prepare(pointnet2_ssg(classes=4, points=64, width=0.25))
    clouds, target = torch.randn(2, 2, 64, 3, dtype=torch.float64), torch.tensor([1, 3])
    assert_captured(net, (clouds[0], target), (clouds[1], target), rule=lrp.PointNetFlat())


@pytest.mark.parametrize(
    "options", [{"stop_at": "3"}, {"start": "contrastive"}, {"start": "one"}, {"output": lambda y: y[:, :4]}]
)
def test_with_every_option(options, small):
    net, x, target = small
    assert_captured(net, (x, target), (x.flip(0), target), **options)
    assert_captured(net, (x, "pred"), (torch.randn_like(x), "pred"), **options)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "modernbert"])
def test_of_texts(name):
    pytest.importorskip("transformers")
    import texts

    with texts.InDouble():
        model, batch = texts.build(name), texts.batch(name)
        position = None if name in ("bert", "modernbert") else "last"
        options = {"rule": lrp.Epsilon(1e-6), "position": position}
        other = {key: x.flip(1) if key.endswith("ids") else x.flip(0) for key, x in batch.items()}
        captured = assert_captured(model, (batch, "pred"), (other, "pred"), **options)
        whole = {**other, "attention_mask": torch.ones_like(batch["attention_mask"])}
        assert_same(captured(whole, "pred"), lrp.relevance(model, whole, "pred", **options))


def test_what_changes_in_place_counts():
    torch.manual_seed(0)
    net, x, target = resnet10(5, 4).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 4])
    captured = lrp.capture(net, x, target)
    before = captured(x, target)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    functional.cross_entropy(net.train()(x), target).backward()  # statistics of BatchNorm change as well
    optimizer.step()
    with code_of(net) as runs:
        found = captured(x, target)
    assert not runs
    assert net.training
    assert_same(found, lrp.relevance(net, x, target))
    assert not torch.allclose(found, before)
    net.load_state_dict(resnet10(5, 4).state_dict())
    assert_same(captured(x, target), lrp.relevance(net, x, target))
    assert all(module.training for module in net.modules())


def test_layouts_and_modes(small):
    net, x, target = small
    captured = lrp.capture(net, x[:1].expand(2, 3, 16, 16), target)
    wanted = lrp.relevance(net, x, target)
    for given in (
        x,
        x.to(memory_format=torch.channels_last),
        x.clone().requires_grad_(),
        x.repeat(1, 1, 2, 1)[:, :, :16],
    ):
        assert_same(captured(given, target), wanted)
    with torch.inference_mode():
        assert_same(captured(x.clone(), target.clone()), wanted)
    with torch.enable_grad():
        found = captured(x, target)
    assert not found.requires_grad
    assert not found.is_inference()
    assert found.data_ptr() != captured(x, target).data_ptr()
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(captured(x, target)))
    thread.start()
    thread.join()
    assert_same(elsewhere[0], wanted)


def test_autocast_is_that_of_the_example():
    net, x, target = build("vgg")
    net, x = net.float(), x.float()
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast:
        coarse, coarse_wanted = lrp.capture(net, x, target), lrp.relevance(net, x, target)
    fine, fine_wanted = lrp.capture(net, x, target), lrp.relevance(net, x, target)
    assert not torch.allclose(coarse_wanted, fine_wanted, rtol=1e-3)
    for context in (contextlib.nullcontext(), autocast):
        with context:
            assert_same(coarse(x, target), coarse_wanted, 1e-5)
            assert_same(fine(x, target), fine_wanted, 1e-5)


class Branching(nn.Module):
    """Computes otherwise on what its inputs hold."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = self.first(x)
        if self.kind == "number" and x.sum() > 0:
            y = y.relu()
        if self.kind == "shape":
            return self.last(y.relu()).index_add(0, torch.nonzero(x[:, 0] > 0)[:, 0], self.last(y[x[:, 0] > 0]))
        if self.kind == "equal" and torch.equal(x[0], x[1]):
            y = y.tanh()
        if self.kind == "data":
            y = y.data + y
        if self.kind in ("tolist", "numpy", "__dlpack__"):
            getattr(x.detach(), self.kind)()
        if self.kind == "random":
            y = functional.dropout(y, 0.5, True)
        return self.last(y)


@pytest.mark.parametrize(
    ("kind", "other"),
    [("number", [[1.0] * 4, [2.0] * 4]), ("shape", [[-1.0] * 4, [2.0] * 4]), ("equal", [[1.0] * 4] * 2)],
)
def test_another_branch_runs_as_relevance(kind, other):
    torch.manual_seed(0)
    net, target = Branching(kind).double().eval(), torch.tensor([0, 2])
    x = torch.tensor([[-1.0, -2.0, 0.5, -0.5], [-2.0, 1.0, 0.5, -1.0]], dtype=torch.float64)
    captured = assert_captured(net, (x, target), (1.5 * x, target), rule=lrp.Epsilon())
    other = torch.tensor(other, dtype=torch.float64)
    with code_of(net) as runs:
        found = captured(other, target)
    assert runs
    assert_same(found, lrp.relevance(net, other, target, rule=lrp.Epsilon()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_output_of_zero_under_lrp_0(dtype):
    """It needs a gate, which the other outputs do without."""
    torch.manual_seed(0)
    net, target = nn.Sequential(nn.Linear(4, 6, False), nn.Tanh(), nn.Linear(6, 3)).to(dtype), torch.tensor([0, 2])
    x = torch.randn(2, 4, dtype=dtype)
    zero = torch.stack([x[0], torch.zeros_like(x[0])])
    captured = assert_captured(net, (x, target), (x.flip(0), target), rule=lrp.Zero())
    with code_of(net) as runs:
        found = captured(zero, target)
    assert bool(runs) == (dtype == torch.float64)  # in bfloat16 gates are always there
    assert_same(found, lrp.relevance(net, zero, target, rule=lrp.Zero()))


def test_data_of_an_activation_are_a_constant():
    x, target = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 2])
    assert_captured(Branching("data").double(), (x, target), (x.flip(0), target), rule=lrp.Epsilon())


def test_draws_are_those_of_relevance():
    net, x, target = Branching("random"), torch.randn(2, 4), torch.tensor([0, 2])
    captured = lrp.capture(net, x, target, rule=lrp.Epsilon())
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(captured(x, target))
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(found[-1], lrp.relevance(net, x, target, rule=lrp.Epsilon()), 1e-5)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_bad_batches(small):
    net, x, target = small
    captured = lrp.capture(net, x, target)
    for inputs, classes, message in (
        (x[:1], target[:1], r"inputs must be torch.float64 of shape \(2, 3, 16, 16\) on cpu as in the example, got "
                            r"torch.float64 of shape \(1, 3, 16, 16\) on cpu; capture once for each"),
        (x.float(), target, "got torch.float32 of shape"),
        (x, "pred", r"target must be torch.int64 of shape \(2,\) on cpu as in the example, got pred"),
        (x, target.int(), "target must be torch.int64 .* got torch.int32"),
        ({"x": x}, target, r"inputs must be what they were in the example, inputs, got inputs\['x'\]"),
        (x * torch.nan, target, "inputs hold NaN or infinite values"),
        (x, target + 5, r"target must lie in \[0, 5\), got 6 to 7"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            captured(inputs, classes)
    assert_same(captured(x, target), lrp.relevance(net, x, target))


def test_batches_of_keywords_keep_what_is_no_tensor():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, pixel_values, doubles=False, more=()):
            return self.layer(pixel_values * 2 if doubles else pixel_values)

    net, x, target = Model(), torch.randn(2, 4), torch.tensor([0, 2])
    captured = lrp.capture(net, {"pixel_values": x, "doubles": True, "labels": None}, target, rule=lrp.Zero())
    other = {"doubles": True, "pixel_values": x.flip(0)}
    assert_same(captured(other, target), lrp.relevance(net, other, target, rule=lrp.Zero()), 1e-5)
    with pytest.raises(ValueError, match=r"inputs\['doubles'\] must be True as in the example, got False"):
        captured({"pixel_values": x, "doubles": False}, target)
    with pytest.raises(
        ValueError, match=r"inputs\['pixel_values'\], inputs\['doubles'\], got inputs\['pixel_values'\]$"
    ):
        captured({"pixel_values": x}, target)
    with pytest.raises(ValueError, match=r"inputs\['more'\] must be a tensor, or hold none, .* got a tuple of tensors"):
        lrp.capture(net, {"pixel_values": x, "more": (x,)}, target)


def test_what_cannot_be_captured(small):
    net, x, target = small
    with pytest.raises(ValueError, match="create_graph must be False in a capture, got True"):
        lrp.capture(net, x, target, rule=lrp.Epsilon(), create_graph=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'rules'"):
        lrp.capture(net, x, target, rules=lrp.Epsilon())
    with pytest.raises(ValueError, match="inputs hold NaN"):
        lrp.capture(net, x * torch.nan, target)
    for kind in ("tolist", "numpy", "__dlpack__"):
        with pytest.raises(
            ValueError, match=f"a capture cannot follow a model that takes values out by {kind}, unseen"
        ):
            lrp.capture(Branching(kind), torch.randn(2, 4), target, rule=lrp.Epsilon())
    assert_captured(net, (x, target), (x.flip(0), target))  # nothing is left on
