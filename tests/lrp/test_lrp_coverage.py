"""Layers, ways of writing them and functions that relevance must see through, and what it must refuse."""

import pytest
import torch
from lrp_restatement import restated
from nets import prepare
from torch import nn
from torch.nn import functional as F

from attrdrop import lrp

EPSILON = (lrp.Epsilon(1e-2), {"conv": ("epsilon", 1e-2), "linear": ("epsilon", 1e-2)})
PLUS_FLAT = (
    lrp.EpsilonPlusFlat(1e-2, 1e-3), {"conv": ("zplus", 1e-3), "linear": ("epsilon", 1e-2), "first": ("flat",)},
)  # fmt: skip
GAMMA = (lrp.Gamma(0.3, 1e-3), {"conv": ("gamma", 0.3, 1e-3), "linear": ("gamma", 0.3, 1e-3)})


def assert_same(found, wanted, tolerance=1e-9):
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def net_of(*layers):
    """The layers between an image of 4 channels and 5 logits."""
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))


class Twice(nn.Module):
    """One layer and one norm used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        for _ in range(2):
            x = self.relu(self.norm(self.conv(x)))
        return x


class Shared(nn.Module):
    """A convolution whose output its BatchNorm and the sum use."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return torch.relu(y + torch.relu(self.norm(y)))


NORM, RELU = lambda channels: nn.BatchNorm2d(channels), nn.ReLU()
LAYERS = {
    "conv1d": lambda: net_of(nn.Flatten(2), nn.Conv1d(4, 6, 5, 2, padding=2, groups=2), nn.BatchNorm1d(6), nn.GELU()),
    "conv3d": lambda: net_of(
        nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, (2, 3, 3), padding=1), nn.BatchNorm3d(4), RELU, nn.AdaptiveAvgPool3d(2)
    ),
    "dilated": lambda: net_of(nn.Conv2d(4, 6, 3, 2, padding=2, dilation=2, groups=2, bias=False), NORM(6), nn.SiLU()),
    "no_padding": lambda: net_of(nn.Conv2d(4, 6, 3, padding="same"), nn.LeakyReLU(), nn.Conv2d(6, 6, (1, 3)), nn.ELU()),
    "transposed": lambda: net_of(
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), NORM(6), RELU, nn.ConvTranspose2d(6, 4, 2, bias=False),
        nn.Tanh(),
    ),
    "transposed_1d": lambda: net_of(nn.Flatten(2), nn.ConvTranspose1d(4, 3, 3, 2), nn.BatchNorm1d(3), nn.ReLU6()),
    "norms": lambda: net_of(
        nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), RELU, nn.Conv2d(6, 6, 3), nn.InstanceNorm2d(6, affine=True), RELU,
        nn.Conv2d(6, 4, 1), nn.InstanceNorm2d(4), nn.Flatten(2), nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(),
    ),
    "resampling": lambda: net_of(
        nn.Conv2d(4, 8, 3, padding=1), RELU, nn.PixelShuffle(2), nn.Conv2d(2, 4, 3, 2), RELU,
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1),
    ),
    "dropout_before_norm": lambda: net_of(nn.Conv2d(4, 6, 3, bias=False), nn.Dropout(0.5), NORM(6), RELU),
    "norm_first": lambda: net_of(NORM(4), nn.Conv2d(4, 6, 3), RELU, NORM(6), nn.Conv2d(6, 4, 3), nn.Hardswish()),
    "linear_norm": lambda: net_of(nn.Flatten(), nn.Linear(256, 9), nn.BatchNorm1d(9), RELU),
    "linear_norm_of_positions": lambda: net_of(nn.Flatten(2), nn.Linear(64, 4), nn.BatchNorm1d(4), RELU),
    "twice": lambda: net_of(Twice()),
    "shared": lambda: net_of(Shared()),
}  # fmt: skip


@pytest.mark.parametrize("rule", [EPSILON, PLUS_FLAT, GAMMA], ids=["epsilon", "epsilon_plus_flat", "gamma"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_restatement(name, rule):
    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    net = LAYERS[name]().double()
    net(x)  # lazy layers
    net = prepare(net)
    assert_same(lrp.relevance(net, x, target, rule=rule[0]), restated(net, x, target, rule[1])["input"])


class Body(nn.Module):
    """conv, body, conv, mean, linear; body is a function of the first convolution's output and of the net."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.head = nn.LazyConv2d(6, 3, padding=1), nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.other = nn.Parameter(torch.randn(2, 6, 8, 8))
        self.body = body

    def forward(self, x):
        y = self.conv2(self.body(self.conv1(x), self))
        return self.head(torch.relu(y).mean((2, 3)))


def in_place(*steps):
    """Calls that change y, after which y itself is used."""

    def body(y, net):
        for step in steps:
            step(y, net)
        return y

    return body


def norm_arguments(net):
    return net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, False, 0.1, net.norm.eps


def stepwise(y, net):
    out = torch.zeros_like(net.other)
    out[:, :3] = y[:, :3]
    out[:, 3:] += 2 * y[:, 3:]
    return out


def split_and_scale(y, net):
    a, b = y.relu().chunk(2, 1)
    a *= 2
    return torch.cat([a, b], 1)


def rows(y):
    a, b = y.transpose(0, 1).unflatten(0, (2, 3))
    return torch.cat([a, 2 * b]).transpose(0, 1)


SAME = {  # two ways to write one thing
    "functional_norm": (lambda y, n: F.batch_norm(y, *norm_arguments(n)), lambda y, n: n.norm(y)),
    "torch_batch_norm": (
        lambda y, n: torch.batch_norm(y, n.norm.weight, n.norm.bias, *norm_arguments(n)[:2], False, 0.1, 0.0, False),
        lambda y, n: n.norm(y),
    ),
    "dropout_norm": (lambda y, n: torch.relu(n.norm(F.dropout(y, 0.5, n.training))), lambda y, n: n.norm(y).relu()),
    "relu_in_place": (in_place(lambda y, n: y.relu_()), lambda y, n: F.relu(y)),
    "relu_positional": (in_place(lambda y, n: F.relu(y, True)), lambda y, n: nn.ReLU()(y)),
    "relu_keyword": (lambda y, n: torch.relu(input=y), lambda y, n: torch.clamp(y, min=0)),
    "relu_where": (lambda y, n: torch.where(y > 0, y, 0.0), lambda y, n: y.clamp_min(0)),
    "relu_mask": (lambda y, n: y * (y > 0), lambda y, n: torch.maximum(y, torch.zeros_like(y))),
    "hardtanh": (in_place(lambda y, n: F.hardtanh(y, 0.0, 6.0, True)), lambda y, n: F.relu6(y)),
    "leaky": (in_place(lambda y, n: F.leaky_relu_(y, 0.1)), lambda y, n: nn.LeakyReLU(0.1, True)(y)),
    "elu": (in_place(lambda y, n: F.elu_(y)), lambda y, n: F.elu(input=y)),
    "dropouts": (
        in_place(lambda y, n: F.dropout(y, training=False, inplace=True)), lambda y, n: nn.Dropout2d().eval()(y),
    ),
    "arithmetic": (
        in_place(lambda y, n: y.mul_(2).add_(n.scale).sub_(0.3).div_(2), lambda y, n: y.__ipow__(2)),
        lambda y, n: ((2 * y + n.scale - 0.3) / 2) ** 2,
    ),
    "layer_scale": (in_place(lambda y, n: y.mul_(n.scale)), lambda y, n: n.scale * y),
    "addcmul": (lambda y, n: torch.addcmul(y, y.relu(), y.tanh(), value=2), lambda y, n: y + 2 * (y.relu() * y.tanh())),
    "lerp": (lambda y, n: torch.lerp(y, y.relu(), y.tanh()), lambda y, n: y * (1 - y.tanh()) + y.relu() * y.tanh()),
    "glu": (
        lambda y, n: F.glu(torch.cat([y, y.flip(1)], 1), 1), lambda y, n: y * torch.sigmoid(y.flip(1)),
    ),
    "silu": (lambda y, n: y * torch.sigmoid(y), lambda y, n: F.silu(y)),
    "exact_gelu": (lambda y, n: y * 0.5 * (1 + torch.erf(y / 2**0.5)), lambda y, n: F.gelu(y)),
    "highway": (
        lambda y, n: torch.sigmoid(y) * y.relu() + (1 - torch.sigmoid(y)) * y,
        lambda y, n: y.relu() * torch.sigmoid(y).detach() + y * (1 - torch.sigmoid(y)).detach(),
    ),
    "max": (lambda y, n: y * 0 + y.max(2, keepdim=True)[0], lambda y, n: y * 0 + torch.amax(y, 2, keepdim=True)),
    "mean": (lambda y, n: y + y.mean((2, 3), True), lambda y, n: y + F.adaptive_avg_pool2d(y, 1)),
    "stride": (lambda y, n: y[:, :, ::2, 1::2], lambda y, n: F.max_pool2d(y[..., 1:], 1, 2)),
    "types": (lambda y, n: y.type(torch.float64).to(torch.float64), lambda y, n: y.double().type_as(y)),
    "data": (lambda y, n: y + y.data, lambda y, n: y + y.detach()),
    "iterate": (lambda y, n: rows(y), lambda y, n: torch.cat([y[:, :3], 2 * y[:, 3:]], 1)),
    "write": (stepwise, lambda y, n: torch.cat([y[:, :3], 2 * y[:, 3:]], 1)),
    "change_a_part": (split_and_scale, lambda y, n: torch.cat([2 * y[:, :3], y[:, 3:]], 1).relu()),
    "rearrange": (
        lambda y, n: y.reshape(2, 2, 3, 8, 8).permute(0, 2, 1, 3, 4).reshape(2, 6, 8, 8),
        lambda y, n: F.channel_shuffle(y, 2),
    ),
    "flatten_in_place": (lambda y, n: y.flatten(1).relu_().view(2, 6, 8, 8), lambda y, n: y.relu()),
    "normalize": (lambda y, n: F.normalize(y, dim=1), lambda y, n: y / y.norm(dim=1, keepdim=True)),
    "layer_norm": (
        lambda y, n: F.layer_norm(y, (8, 8), eps=0.01),
        lambda y, n: (y - y.mean((2, 3), True)) * torch.rsqrt(y.var((2, 3), False, keepdim=True) + 0.01),
    ),
    "var_mean": (
        lambda y, n: (lambda s: (y - s[1]) / torch.sqrt(s[0] + 0.01))(torch.var_mean(y, 1, False, keepdim=True)),
        lambda y, n: F.layer_norm(y.movedim(1, -1), (6,), eps=0.01).movedim(-1, 1),
    ),
    "rms_norm": (
        lambda y, n: F.rms_norm(y, (8,), eps=0.01),
        lambda y, n: y * (y.pow(2).mean(-1, keepdim=True) + 0.01).rsqrt(),
    ),
    "generalised_mean": (
        lambda y, n: y.relu().pow(n.scale + 1).pow(1 / (n.scale + 1)), lambda y, n: y.relu(),
    ),
    "reciprocal": (lambda y, n: y * (1 / (1 + y.abs())), lambda y, n: y / (1 + y.abs()).detach()),
    "linear_of_parameters": (lambda y, n: y + n.other @ n.other, lambda y, n: y + (n.other @ n.other).detach()),
    # z+ treats an input that it takes for nonnegative in one forward: it must not where a negative number came in
    "cat_constant": (
        lambda y, n: torch.cat([y.relu(), n.other], 1), lambda y, n: 1 * torch.cat([y.relu(), n.other], 1),
    ),
    "add_number": (lambda y, n: y.relu() + (-0.3), lambda y, n: y.relu() - 0.3),
    "add_alpha": (lambda y, n: torch.add(y.relu(), y.tanh().relu(), alpha=-1), lambda y, n: y.relu() - y.tanh().relu()),
    "pad": (lambda y, n: F.pad(y.relu(), (1, 1), value=-1.0), lambda y, n: F.pad(y.relu() + 1, (1, 1)) - 1),
    "masked_fill": (lambda y, n: y.relu().masked_fill(y < 0, -1), lambda y, n: torch.where(y < 0, -1, y.relu())),
    "bicubic": (
        lambda y, n: F.interpolate(y.relu(), size=9, mode="bicubic"),
        lambda y, n: F.interpolate(input=y.relu() * 1, size=9, mode="bicubic"),
    ),
    "setitem": (
        in_place(lambda y, n: y.relu_(), lambda y, n: y.__setitem__((slice(None), 0), -1.0)),
        lambda y, n: torch.cat([torch.full_like(y[:, :1], -1), y[:, 1:].relu()], 1),
    ),
}  # fmt: skip


LOOKS = {  # give no activation
    "register_hook": lambda y: y.register_hook(lambda grad: 2 * grad).remove(),
    "register_hook_for_good": lambda y: y.register_hook(lambda grad: 2 * grad),
    "retain_grad": lambda y: y.retain_grad(),
    "is_pinned": lambda y: y.is_pinned(),
    "is_shared": lambda y: y.is_shared(),
    "is_signed": lambda y: y.is_signed(),
    "result_type": lambda y: torch.result_type(y, 1.0),
    "new": lambda y: y.new(3, 4),
    "is_nonzero": lambda y: y[0, 0, 0, 0].is_nonzero(),
    "contains": lambda y: 3.0 in y,
    "nested": lambda y: torch._nested_tensor_from_mask_left_aligned(y[:, 0], torch.ones(2, 8, dtype=torch.bool)),
}


@pytest.mark.parametrize("rule", [EPSILON[0], PLUS_FLAT[0], lrp.GradientTimesInput()])
@pytest.mark.parametrize("name", LOOKS)
def test_functions_that_give_no_activation(name, rule):
    def look(y, net):
        LOOKS[name](y.relu())
        y = y.relu()
        LOOKS[name](y)
        return y

    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    nets = [Body(body).double().eval() for body in (look, lambda y, net: y.relu())]
    for net in nets:
        net(x)
        torch.manual_seed(2)
        prepare(net)
        for values in net.conv2.parameters():
            nn.init.normal_(values, 0, 0.3)
    assert_same(*(lrp.relevance(net, x, target, rule=rule) for net in nets), 1e-12)


def test_padded_sequences_through_an_encoder_of_torch():
    class Encoder(nn.Module):
        def __init__(self, is_nested):
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=is_nested)
            self.head = nn.Linear(8, 3)

        def forward(self, x, padding):
            return self.head(self.layers(x, src_key_padding_mask=padding)[:, 0])

    x, padding = torch.randn(2, 5, 8, dtype=torch.float64), torch.arange(5) >= torch.tensor([[5], [3]])
    found, wanted = (
        lrp.relevance(Encoder(is_nested).double(), x, torch.tensor([0, 2]), arguments={"padding": padding})
        for is_nested in (True, False)
    )
    assert_same(found, wanted)


@pytest.mark.parametrize("rule", [EPSILON[0], PLUS_FLAT[0]], ids=["epsilon", "epsilon_plus_flat"])
@pytest.mark.parametrize("name", SAME)
def test_two_ways_to_write_one_thing(name, rule):
    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    nets = [Body(body).double().eval() for body in SAME[name]]
    for net in nets:
        with torch.no_grad():
            net(x)
        torch.manual_seed(2)
        prepare(net)
        for values in net.conv2.parameters():
            nn.init.normal_(values, 0, 0.3)
    with torch.no_grad():
        assert_same(nets[0](x), nets[1](x), 1e-12)
    assert_same(*(lrp.relevance(net, x, target, rule=rule) for net in nets), 1e-9)


class Scaled(nn.Module):
    def __init__(self, scale, net):
        super().__init__()
        self.scale, self.net = scale, net

    def forward(self, x):
        return self.net(self.scale(x))


@pytest.mark.parametrize(
    ("scale", "undo"),
    [
        (lambda x: (x - 0.4) / 0.2, lambda r: r),
        (lambda x: x.sub_(0.4).mul_(torch.full((4, 1, 1), 3)), lambda r: r),
        (lambda x: x.flip(3).permute(0, 1, 3, 2) - 0.4, lambda r: r.permute(0, 1, 3, 2).flip(3)),
        (lambda x: F.pad(x[:, :2] - 0.4, (0, 0, 0, 0, 0, 2), value=2.0), lambda r: F.pad(r[:, :2], (0, 0, 0, 0, 0, 2))),
    ],
)
def test_flat_sees_through_moved_and_scaled_inputs(scale, undo):
    """Inputs of zero get their share too, wherever the model moves its input and however it normalises it."""
    x, target = torch.rand(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    x[:, :, 2:5] = 0.4
    net = prepare(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)))
    found = lrp.relevance(Scaled(scale, net), x, target, rule=lrp.EpsilonFlat())
    wanted = lrp.relevance(net, scale(x.clone()), target, rule=lrp.EpsilonFlat())
    assert (wanted != 0).all()
    assert_same(found, undo(wanted))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def views_of_one(y, net):
    part = y.relu().unflatten(1, (2, 3))
    whole = part.flatten(1, 2)
    part[:, 0].mul_(2)
    return whole


def view_of_constant(y, net):
    out = torch.zeros_like(y)
    out[:, :3].add_(y[:, :3])
    return out


UNSEEN = "the result of code that attribution cannot see into, such as a custom autograd.Function"
REFUSED = {
    "custom": (lambda y, n: Double.apply(y), f"layer conv2 .*: conv2d works on {UNSEEN}"),
    "custom_norm": (lambda y, n: Double.apply(n.norm(y)), UNSEEN),
    "custom_after_use": (lambda y, n: y.relu() + Double.apply(y), f"the model itself.*: add works on {UNSEEN}"),
    "custom_relu": (lambda y, n: torch.relu(Double.apply(y.relu())), UNSEEN),
    "custom_batch_norm": (lambda y, n: n.norm(Double.apply(y.relu())), f"layer norm .*: batch_norm works on {UNSEEN}"),
    "view": (views_of_one, "uses an activation whose memory the model changed in place through a view"),
    "view_of_constant": (view_of_constant, "an activation whose memory the model changed in place through a view"),
    "unknown": (lambda y, n: torch.fft.fft(y).real, "itself. .Body.: no rule covers the function fft_fft; unk"),
    "power_of_a_number": (lambda y, n: torch.pow(2.0, y), "no rule covers the function pow; unknown='gradient' passes"),
    "power_of_a_constant": (lambda y, n: n.scale**y, "no rule covers the function pow"),
    "unknown_in_place": (lambda y, n: y.cos_(), "no rule covers the function cos; unknown='gradient' passes"),
    "attention": (
        lambda y, n: nn.MultiheadAttention(8, 2, add_bias_kv=True).double()(*[y[:, :, 0]] * 3)[0].unsqueeze(2),
        "no rule covers multi-head attention with bias_k, bias_v",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", [EPSILON[0], PLUS_FLAT[0]], ids=["epsilon", "epsilon_plus_flat"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name, rule):
    body, message = REFUSED[name]
    net = Body(body).double().eval()
    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    net(x)
    with pytest.raises(ValueError, match=message):
        lrp.relevance(net, x, target, rule=rule)


def test_the_logits_must_be_seen():
    class Ends(nn.Linear):
        def forward(self, x):
            return Double.apply(super().forward(x))

    with pytest.raises(ValueError, match=f"the logits are {UNSEEN}"):
        lrp.relevance(Ends(4, 3), torch.randn(2, 4), "pred", rule=lrp.Epsilon())


@pytest.mark.parametrize("body", [lambda y, n: y.cos(), lambda y, n: Double.apply(y), lambda y, n: y.cos_()])
def test_unknown_functions_pass_the_gradient(body):
    net = Body(body).double().eval()
    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    net(x)
    plain = lrp.relevance(net, x, target, rule=lrp.GradientTimesInput())
    assert_same(lrp.relevance(net, x, target, rule=lrp.Epsilon(1e-14), unknown="gradient"), plain)


def test_in_place_that_breaks_the_plain_gradient():
    """The rules see through it; the plain gradient is autograd's, which cannot."""
    net = Body(in_place(lambda y, n: y.exp_().mul_(2))).double().eval()
    broken = Body(lambda y, n: (lambda s: s + s.mul_(2))(torch.sigmoid(y))).double().eval()
    x, target = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    with torch.no_grad():
        net(x), broken(x)
    with pytest.raises(ValueError, match="changes an activation in place that its gradient needs"):
        lrp.relevance(broken, x, target, rule=lrp.GradientTimesInput())
    assert lrp.relevance(broken, x, target).isfinite().all()


def test_unused_branches_and_kept_tensors():
    """What a model computes and drops is no obstacle, nor is a tensor with a gradient that it kept from before."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused, self.gain, self.cache = nn.Linear(4, 3), nn.Linear(4, 7), nn.Linear(1, 1), None

        def forward(self, x):
            if self.cache is None:
                self.cache = self.gain.weight * 2
            self.unused(x)
            return self.layer(x) * self.cache

    net, x = Odd().double(), torch.randn(2, 4, dtype=torch.float64)
    net(x)
    found = lrp.relevance(net, x, torch.tensor([0, 2]), rule=lrp.Epsilon(1e-14))
    assert_same(found, lrp.relevance(net, x, torch.tensor([0, 2]), rule=lrp.GradientTimesInput()))
    assert net.gain.weight.grad is None
