"""relevance and layer_relevance: against the slow restatement, conservation, and what must stay as it was."""

import contextlib
import copy

import pytest
import torch
from lrp_restatement import restated
from nets import NETS, build, in_place_resnet, prepare
from torch import nn

from attrdrop import lrp
from attrdrop.models import resnet10

RULES = {
    "epsilon": (lrp.Epsilon(1e-2), {"conv": ("epsilon", 1e-2), "linear": ("epsilon", 1e-2)}),
    "zplus": (lrp.ZPlus(1e-3), {"conv": ("zplus", 1e-3), "linear": ("zplus", 1e-3)}),
    "epsilon_plus": (lrp.EpsilonPlus(1e-2, 1e-3), {"conv": ("zplus", 1e-3), "linear": ("epsilon", 1e-2)}),
    "epsilon_plus_flat": (
        lrp.EpsilonPlusFlat(1e-2, 1e-3),
        {"conv": ("zplus", 1e-3), "linear": ("epsilon", 1e-2), "first": ("flat",)},
    ),
    "epsilon_flat": (
        lrp.EpsilonFlat(1e-2), {"conv": ("epsilon", 1e-2), "linear": ("epsilon", 1e-2), "first": ("flat",)},
    ),
    "gamma": (lrp.Gamma(0.3, 1e-3), {"conv": ("gamma", 0.3, 1e-3), "linear": ("gamma", 0.3, 1e-3)}),
    "zero": (lrp.Zero(), {"conv": ("epsilon", 0), "linear": ("epsilon", 0)}),
    "alphabeta": (
        lrp.AlphaBeta(1.5, 0.5, 1e-3), {"conv": ("alphabeta", 1.5, 0.5, 1e-3), "linear": ("alphabeta", 1.5, 0.5, 1e-3)},
    ),
    "epsilon_alpha2_beta1_flat": (
        lrp.EpsilonAlpha2Beta1Flat(1e-2, 1e-3),
        {"conv": ("alphabeta", 2, 1, 1e-3), "linear": ("epsilon", 1e-2), "first": ("flat",)},
    ),
    "epsilon_gamma_box": (
        lrp.EpsilonGammaBox([-2.5, -3.0, -2.0], torch.tensor([2.0, 3.0, 2.5]), 1e-2, 0.25, 1e-3),
        {
            "conv": ("gamma", 0.25, 1e-3), "linear": ("epsilon", 1e-2),
            "first": ("zbox", [-2.5, -3.0, -2.0], [2.0, 3.0, 2.5], 1e-3),
        },
    ),
    "wsquare": (
        lrp.Composite(lrp.AlphaBeta(1, 0, 1e-3), lrp.Epsilon(1e-2), lrp.WSquare(1e-3)),
        {"conv": ("zplus", 1e-3), "linear": ("epsilon", 1e-2), "first": ("wsquare", 1e-3)},
    ),
}  # fmt: skip
TINY = {
    "epsilon": lrp.Epsilon(1e-14), "zplus": lrp.ZPlus(1e-14), "gamma": lrp.Gamma(0.3, 1e-14),
    "epsilon_plus_flat": lrp.EpsilonPlusFlat(1e-14, 1e-14), "zero": lrp.Zero(),
    "epsilon_gamma_box": lrp.EpsilonGammaBox(-4.0, 4.0, 1e-14, 0.3, 1e-14),
}  # fmt: skip


def assert_same(found, wanted, tolerance=1e-9):
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def logit(net, x, target):
    return net(x).detach().gather(1, target[:, None])[:, 0]


def total(r):
    return r.flatten(1).sum(1)


@pytest.fixture
def small():
    net = prepare(resnet10(5, 4))
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eps = 1e-5  # it trains
    return net, torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 4, 2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_the_restatement(name, rule):
    net, x, target = build(name)
    ours, restatement = RULES[rule]
    assert_same(lrp.relevance(net, x, target, rule=ours), restated(net, x, target, restatement)["input"])


SUMS_ARE_POSITIVE = ("vgg", "vgg_norm", "pointnet")


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name in NETS for rule in TINY if rule in ("epsilon", "zero") or name in SUMS_ARE_POSITIVE],
)
def test_relevance_is_conserved(name, rule):
    """Without biases and shifts the relevance of the input sums to the logit, and so does that of every layer.

    z+ and gamma lose what reaches an output without any positive contribution: only where no ReLU follows.
    """
    net, x, target = build(name)
    net = prepare(net, has_shift=False)
    wanted = logit(net, x, target)
    assert (total(lrp.relevance(net, x, target, rule=TINY[rule])) / wanted - 1).abs().max() < 1e-6
    has_norm = {name: isinstance(module, nn.BatchNorm2d) for name, module in net.named_children()}
    names = [place for place in has_norm if not has_norm.get(str(int(place) + 1))] if "0" in has_norm else ["head"]
    if name.startswith("resnet"):
        names = ["stem", "stages.0", "stages.1.0", "stages.3", "head"]
    for found in lrp.layer_relevance(net, x, target, names, rule=TINY[rule]).values():
        assert (total(found) / wanted - 1).abs().max() < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_layers_and_stop(rule):
    net, x, target = build("vgg")
    ours, restatement = RULES[rule]
    wanted = restated(net, x, target, restatement)
    names = ["1", "2", "4", "8", "12"]
    found = lrp.layer_relevance(net, x, target, names, rule=ours)
    for name in names:
        assert_same(found[name], wanted[f"_{name}"])
        assert_same(lrp.relevance(net, x, target, rule=ours, stop_at=name), wanted[f"_{name}"])
        assert_same(lrp.relevance(net, x, target, rule=ours, stop_at=net[int(name)]), wanted[f"_{name}"])
    assert_same(lrp.relevance(net, x, target, rule=ours, stop_at="14"), wanted["_14"])


def test_stop_of_the_plain_gradient_and_of_a_residual_net(small):
    net, x, target = small
    for rule in (lrp.GradientTimesInput(), lrp.AbsGradient(), lrp.EpsilonPlusFlat()):
        found = lrp.layer_relevance(net, x, target, ["stem.0", "stages.1", "stages.2.0.norms.0"], rule=rule)
        for name, wanted in found.items():
            if name != "stem.0" or not isinstance(rule, lrp.Composite):
                assert_same(lrp.relevance(net, x, target, rule=rule, stop_at=name), wanted)


def test_plain_gradients_are_those_of_autograd():
    net, x, target = prepare(in_place_resnet()), torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 4, 2])
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(net(leaf).gather(1, target[:, None]).sum(), leaf)
    assert_same(lrp.relevance(net.train(), x, target, rule=lrp.GradientTimesInput()), x * grad, 1e-12)
    assert_same(lrp.relevance(net, x, target, rule=lrp.AbsGradient()), grad.abs(), 1e-12)


def test_gates_are_not_skipped(small):
    """A large stabiliser is far from the plain gradient, a tiny one is at it; z+ differs from both."""
    net, x, target = small
    plain = lrp.relevance(net, x, target, rule=lrp.GradientTimesInput())
    assert_same(lrp.relevance(net, x, target, rule=lrp.Epsilon(1e-15)), plain, 1e-6)
    for rule in (lrp.Epsilon(1e-2), lrp.ZPlus(), lrp.Gamma(), lrp.EpsilonFlat()):
        found = lrp.relevance(net, x, target, rule=rule)
        assert (found - plain).abs().max() > 1e-2 * plain.abs().max()


def test_starts(small):
    net, x, target = small
    logits = net(x).detach()
    of = {c: lrp.relevance(net, x, torch.full((3,), c), rule=lrp.Epsilon()) for c in range(5)}
    by_sample = (3, 1, 1, 1)
    chosen = torch.stack([of[int(c)][i] for i, c in enumerate(target)])
    one = lrp.relevance(net, x, target, rule=lrp.Epsilon(), start="one")
    assert_same(one, chosen / logit(net, x, target).view(by_sample))
    weights = nn.functional.one_hot(target, 5) - logits.softmax(1)
    contrastive = sum(weights[:, c].view(by_sample) * of[c] for c in range(5))
    assert_same(lrp.relevance(net, x, target, rule=lrp.Epsilon(), start="contrastive"), contrastive)
    assert torch.equal(lrp.relevance(net, x, "pred"), lrp.relevance(net, x, logits.argmax(1)))


def snapshot(net):
    return {
        "state": {name: values.clone() for name, values in net.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()},
        "wants": {name: p.requires_grad for name, p in net.named_parameters()},
        "training": {name: module.training for name, module in net.named_modules()},
        "hooks": {
            name: [len(values) for key, values in vars(module).items() if "hook" in key and isinstance(values, dict)]
            for name, module in net.named_modules()
        },
        "rng": torch.get_rng_state(),
    }


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("stop_at", [None, "stages.1"])
@pytest.mark.parametrize("rule", [lrp.EpsilonPlusFlat(), lrp.GradientTimesInput()])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_changes(small, rule, fails, stop_at):
    net, x, target = small
    net.train()
    net.stages[0].eval()  # frozen
    net.stages[1][0].convs[0].weight.requires_grad_(False)
    net.head.bias.grad = torch.ones_like(net.head.bias)
    net.stages[2].register_forward_hook(lambda *_: torch.rand(1) and None)

    def fail(*_):
        raise KeyError("planted")

    handle = net.stages[3].register_forward_hook(fail) if fails else None
    before, kept = snapshot(net), x.clone()
    with pytest.raises(KeyError, match="planted") if fails else contextlib.nullcontext():
        lrp.relevance(net, x, target, rule=rule, stop_at=stop_at)
    assert_equal(snapshot(net), before)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert torch.is_grad_enabled()
    if handle is not None:
        handle.remove()
    net(x).sum().backward()  # a training step still works
    assert net.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stop_at", [None, "net.stem"])
@pytest.mark.parametrize("rule", [lrp.EpsilonPlusFlat(), lrp.GradientTimesInput()])
def test_a_model_that_changes_its_input(small, rule, stop_at):
    net, x, target = small

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            x -= 0.5
            return self.net(x.mul_(2))

    kept = x.clone()
    found = lrp.relevance(Scales(), x, target, rule=rule, stop_at=stop_at)
    assert torch.equal(x, kept)
    moved = (x - 0.5) * 2
    wanted = lrp.relevance(net, moved, target, rule=rule, stop_at=stop_at and "stem")
    is_gradient = stop_at is None and isinstance(rule, lrp.GradientTimesInput)
    assert_same(found, wanted / moved * 2 * x if is_gradient else wanted)


def test_callers_without_gradients(small):
    net, x, target = small
    wanted = lrp.relevance(net, x, target)
    with torch.no_grad():
        assert torch.equal(lrp.relevance(net, x, target), wanted)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(lrp.relevance(net, x, target), wanted)
        assert torch.equal(lrp.relevance(net, x.clone(), target.clone()), wanted)
    assert torch.equal(lrp.relevance(net, x.clone().requires_grad_(True), target), wanted)
    assert not wanted.requires_grad


def test_wrapped_models(small, tmp_path):
    net, x, target = small
    wanted = lrp.relevance(net, x, target)
    assert_same(lrp.relevance(torch.compile(net, backend="eager"), x, target), wanted)
    partly = copy.deepcopy(net)
    partly.stages[1] = torch.compile(partly.stages[1], backend="eager")
    assert_same(lrp.relevance(partly, x, target), wanted)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(net).train())
        assert_same(lrp.relevance(wrapped, x, target), wanted)
        wrapped(x).square().sum().backward()
        net.train()(x).square().sum().backward()
        for ours, theirs in zip(wrapped.parameters(), net.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_inside_a_compiled_function():
    net = prepare(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ))  # fmt: skip
    x, target = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 3])
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for rule in (lrp.Epsilon(), lrp.EpsilonPlusFlat()):

            def attribute(x, target, rule=rule):
                return lrp.relevance(net, x, target, rule=rule)

            compiled = torch.compile(attribute, fullgraph=True, backend="aot_eager")
            assert_same(compiled(x, target), attribute(x, target))


def test_layouts_and_types(small):
    net, x, target = small
    wanted = lrp.relevance(net, x, target)
    assert_same(lrp.relevance(net.to(memory_format=torch.channels_last), x, target), wanted)
    assert_same(lrp.relevance(net, x.to(memory_format=torch.channels_last), target), wanted)
    assert_same(lrp.relevance(net, x.flip(3).flip(3)[::1], target), wanted)
    net, x = net.float(), x.float()
    single = lrp.relevance(net, x, target)
    assert_same(single.double(), wanted, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = lrp.relevance(net, x, target)
    assert coarse.dtype == torch.float32
    assert nn.functional.cosine_similarity(coarse.flatten(), single.flatten(), 0) > 0.98
    assert lrp.relevance(net.bfloat16(), x.bfloat16(), target).dtype == torch.float32


def test_output_objects(small):
    net, x, target = small

    class Wrapped(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.net, self.form = net, form

        def forward(self, x):
            return self.form(self.net(x))

    wanted = lrp.relevance(net, x, target)
    assert torch.equal(lrp.relevance(Wrapped(lambda y: (y, None)), x, target), wanted)
    assert torch.equal(lrp.relevance(Wrapped(lambda y: {"a": y}), x, target, output=lambda o: o["a"]), wanted)
    padded = Wrapped(lambda y: {"a": y.repeat(1, 2)})
    assert_same(lrp.relevance(padded, x, target, output=lambda o: o["a"][:, :5]), wanted)


def test_empty_batch(small):
    net, x, target = small
    assert lrp.relevance(net, x[:0], target[:0]).shape == (0, 3, 8, 8)
    unlike = lrp.relevance(net, x, target)
    assert_same(lrp.relevance(net, x[1:2], target[1:2]), unlike[1:2])  # samples do not see each other


X, T = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((len, X, T), {}, TypeError, "model must be a torch.nn.Module, got builtin"),
        ((None, [1.0], T), {}, TypeError, "inputs must be a torch.Tensor, got list"),
        ((None, X.byte(), T), {}, TypeError, "inputs must be floating point .* got torch.uint8"),
        ((None, X[0], T), {}, ValueError, "inputs must have a batch dimension and one more"),
        ((None, X / 0, T), {}, ValueError, "inputs hold NaN or infinite values"),
        ((None, X, T.int()), {}, ValueError, r"target must be int64 of shape \(2,\) or 'pred', got torch.int32"),
        ((None, X, T[:1]), {}, ValueError, r"got torch.int64 of shape \(1,\)"),
        ((None, X, 1), {}, ValueError, "target must be int64 .* got int"),
        ((None, X, "true"), {}, ValueError, "target must be 'pred' or class indices, got 'true'"),
        ((None, X, T + 3), {}, ValueError, r"target must lie in \[0, 4\), got 3 to 4"),
        ((None, X, -T), {}, ValueError, r"target must lie in \[0, 4\), got -1 to 0"),
        ((None, X, T), {"rule": "epsilon"}, TypeError, "rule must be a rule or composite of attrdrop.lrp, got 'ep"),
        ((None, X, T), {"start": "two"}, ValueError, "start must be one of logit, one, contrastive, got 'two'"),
        ((None, X, T), {"attention": "x"}, ValueError, "attention must be one of attnlrp, detach, got 'x'"),
        ((None, X, T), {"unknown": "skip"}, ValueError, "unknown must be one of error, gradient, got 'skip'"),
        ((None, X, T), {"stop_at": "no"}, ValueError, "stop_at must name a submodule such as 0, got 'no'"),
        ((None, X, T), {"stop_at": nn.ReLU()}, ValueError, "stop_at must be a submodule .* ReLU that is not in it"),
        ((nn.ReLU(), X, T), {}, ValueError, "the model has no linear layer"),
        ((nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), X, T), {}, ValueError, r"logits of shape \(N, cl"),
        ((nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 6)), nn.Linear(6, 4)), X, T), {}, ValueError, "one row of"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    model = nn.Sequential(nn.Linear(3, 4)) if arguments[0] is None else arguments[0]
    with pytest.raises(error, match=message):
        lrp.relevance(model, *arguments[1:], **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lrp.Epsilon(0), ValueError, "eps must be finite and above 0, got 0"),
        (lambda: lrp.Epsilon("1"), TypeError, "eps must be a number above 0, got str"),
        (lambda: lrp.ZPlus(-1.0), ValueError, "stabilizer must be finite and above 0"),
        (lambda: lrp.Gamma(-1.0), ValueError, "gamma must be finite and 0 or more, got -1.0"),
        (lambda: lrp.Gamma({"*": -1.0}), ValueError, "gamma must be finite and 0 or more, got -1.0"),
        (lambda: lrp.AlphaBeta(2, 2), ValueError, "alpha - beta must be 1, got 2 - 2"),
        (lambda: lrp.AlphaBeta(0, -1), ValueError, "beta must be finite and 0 or more, got -1"),
        (lambda: lrp.ZBox(1, 0), ValueError, "low must be at most high, got 1.0 above 0.0"),
        (lambda: lrp.ZBox(0, [1, -1]), ValueError, "low must be at most high"),
        (lambda: lrp.ZBox([0, 1], [1, 1, 1]), ValueError, "low and high must have as many values, got 2 and 3"),
        (
            lambda: lrp.ZBox(torch.zeros(2, 2), 1),
            ValueError,
            r"low must be .* one value per channel, got shape \(2, 2\)",
        ),
        (lambda: lrp.ZBox(0, "1"), TypeError, "high must be a number or one per channel, got str"),
        (lambda: lrp.Composite(conv=lrp.Composite()), TypeError, "conv must be a rule for single layers, such as Eps"),
        (lambda: lrp.Composite(linear=None), TypeError, "linear must be a rule for single layers"),
    ],
)
def test_rules_check_their_numbers(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", ["pass", "block"])
def test_relevance_passes_or_ends(kind):
    torch.manual_seed(0)
    net = prepare(nn.Sequential(
        nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5),
    ))  # fmt: skip
    x, target = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.tensor([1, 3])
    ours = lrp.Composite(first=lrp.Pass() if kind == "pass" else lrp.Block())
    found = lrp.relevance(net, x, target, rule=ours)
    epsilon = ("epsilon", 1e-3)
    wanted = restated(net, x, target, {"conv": epsilon, "linear": epsilon, "first": (kind,)})
    assert torch.equal(found, wanted["input"]) if kind == "block" else not assert_same(found, wanted["input"])
    assert_same(lrp.relevance(net, x, target, rule=ours, stop_at="2"), wanted["_2"])


def test_alpha_beta_of_one_and_none_is_z_plus(small):
    net, x, target = small
    assert_same(
        lrp.relevance(net, x, target, rule=lrp.AlphaBeta(1, 0)), lrp.relevance(net, x, target, rule=lrp.ZPlus())
    )


def test_gamma_by_layer(small):
    net, x, target = small
    by_layer = lrp.Gamma({"stem.*": 0.5, "stages.*": 0.0, "*": 0.1}, 1e-3)
    first_only = lrp.Composite(lrp.Gamma(0.0, 1e-3), lrp.Gamma(0.1, 1e-3), first=lrp.Gamma(0.5, 1e-3))
    assert_same(lrp.relevance(net, x, target, rule=by_layer), lrp.relevance(net, x, target, rule=first_only), 1e-12)
    with pytest.raises(
        ValueError, match=r"gamma has no value for the layer stages\.0\.0\.convs\.0, which matches none"
    ):
        lrp.relevance(net, x, target, rule=lrp.Gamma({"stem.*": 0.5}))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lrp.Pass(), r"layer 0 \(Linear\): Pass needs outputs with the shape of the input, \(2, 3\), not \(2, 4\)"),
        (lrp.ZBox([0, 0], 1), r"layer 0 \(Linear\): low has 2 values, and the layer's input 3 channels"),
    ],
)
def test_rules_that_do_not_fit_a_layer(rule, message):
    with pytest.raises(ValueError, match=message):
        lrp.relevance(nn.Sequential(nn.Linear(3, 4)), X, T, rule=rule)


def test_layers_must_be_there_and_run(small):
    net, x, target = small
    with pytest.raises(ValueError, match="layers must name at least one submodule"):
        lrp.layer_relevance(net, x, target, [])
    with pytest.raises(ValueError, match="layers must name a submodule such as stem, stages, head, got 'steam'"):
        lrp.layer_relevance(net, x, target, ["steam"])
    net.unused = nn.ReLU()
    with pytest.raises(ValueError, match="ReLU asked for did not run"):
        lrp.relevance(net, x, target, stop_at="unused")
