"""Relevance through attention: the slow restatement, every way to write it, transformers."""

import pytest
import torch
from lrp_restatement import divide, stable
from nets import prepare
from torch import nn
from torch.nn import functional as F

from attrdrop import lrp

EPS = 1e-2
X, TARGET = (2, 6, 8), torch.tensor([2, 0])


class Attention(nn.Module):
    """x + proj(attention(x)), mean over positions, head. form: how attention itself is computed."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(3)
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)
        self.form = form

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = self.form(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.proj(y)).mean(1))


def by_matmul(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def by_einsum(q, k, v):
    scores = torch.einsum("bhid,bhjd->bhij", q, k).div_(2)
    return torch.einsum("bhij,bhjd->bhid", F.softmax(scores, dim=-1, dtype=torch.float64), v)


def by_bmm(q, k, v):
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype), q, k.mT, beta=0.0, alpha=0.5)
    return torch.bmm(F.dropout(torch.softmax(input=scores, dim=2), 0.1, False), v).unflatten(0, (2, 2))


def by_sdpa(q, k, v):
    return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=None, scale=0.5)


FORMS = [by_matmul, by_einsum, by_bmm, by_sdpa]


def linear(layer, a, r):
    """Epsilon rule of a linear layer."""
    part = divide(r, stable(a @ layer.weight.T + layer.bias, EPS))
    return a * (part @ layer.weight)


def restated(net, x, target, attention):
    """Relevance of x, step by step: halves at each product, the gradient of the softmax."""
    q, k, v = net.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhid,bhjd->bhijd", q, k).sum(-1) / 2
    p = scores.softmax(-1)
    out = torch.einsum("bhij,bhjd->bhid", p, v)
    y = out.transpose(1, 2).flatten(2)
    z = x + net.proj(y)
    logits = net.head(z.mean(1))

    r = linear(net.head, z.mean(1), logits * F.one_hot(target, 5))
    r_z = z / z.shape[1] * divide(r, z.mean(1))[:, None]
    r_x, r_proj = x * divide(r_z, z), net.proj(y) * divide(r_z, z)
    r_out = linear(net.proj, y, r_proj).unflatten(2, (2, 4)).transpose(1, 2)
    contributions = torch.einsum("bhij,bhjd->bhijd", p, v) * divide(r_out, out)[:, :, :, None]
    if attention == "detach":
        r_q, r_k, r_v = torch.zeros_like(q), torch.zeros_like(k), contributions.sum(2)
    else:
        r_v, r_p = contributions.sum(2) / 2, contributions.sum(4) / 2
        r_scores = scores * (divide(r_p, p) * p - p * r_p.sum(-1, keepdim=True))
        products = torch.einsum("bhid,bhjd->bhijd", q, k) / 2 * divide(r_scores, scores)[..., None]
        r_q, r_k = products.sum(3) / 2, products.sum(2) / 2
    r_qkv = torch.stack([r_q, r_k, r_v]).permute(1, 3, 0, 2, 4).flatten(2)
    return r_x + linear(net.qkv, x, r_qkv), r_out, r_v


def assert_same(found, wanted, tolerance=1e-9):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("attention", ["attnlrp", "detach"])
@pytest.mark.parametrize("form", FORMS)
def test_attention_is_the_restatement(form, attention):
    net, x = Attention(form).double().eval(), torch.randn(X, dtype=torch.float64)
    with torch.no_grad():
        wanted, r_out, r_v = restated(net, x, TARGET, attention)
    assert_same(lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(EPS), attention=attention), wanted)
    # what the rules promise: the values take half of what reaches the attention, or all of it
    assert_same(r_v.sum((2, 3)), r_out.sum((2, 3)) * (0.5 if attention == "attnlrp" else 1.0))


class Values(nn.Module):
    """Queries and keys that do not depend on the input."""

    def __init__(self):
        super().__init__()
        self.qk, self.v, self.head = nn.Parameter(torch.randn(2, 6, 8)), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        out = F.scaled_dot_product_attention(*(p.expand_as(x) for p in self.qk), self.v(x))
        return self.head(out.mean(1))


def test_bounds_of_the_two_ways():
    """detach conserves; attnlrp sends half through the values, whatever queries and keys take."""
    net, x = prepare(Values(), has_shift=False), torch.randn(X, dtype=torch.float64)
    logits = net(x).detach().gather(1, TARGET[:, None])[:, 0]
    for attention, share in (("detach", 1.0), ("attnlrp", 0.5)):
        r = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(1e-14), attention=attention)
        assert_same(r.sum((1, 2)), share * logits, 1e-6)


def masks(n):
    return {
        "none": {},
        "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(n, dtype=torch.float64)},
        "padding": {"key_padding_mask": torch.arange(n)[None] >= torch.tensor([n, n - 2])[:, None]},
    }


@pytest.mark.parametrize("attention", ["attnlrp", "detach"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_multihead_attention(mask, need_weights, batch_first, attention):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.of, self.head = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 5)

        def forward(self, x):
            x = x if batch_first else x.transpose(0, 1)
            y, _ = self.of(x, x, x, need_weights=need_weights, **masks(6)[mask])
            return self.head((x + y).mean(1 if batch_first else 0))

    class Parts(nn.Module):
        def __init__(self, of, head):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            for place, layer in enumerate((self.q, self.k, self.v)):
                layer.weight = nn.Parameter(of.in_proj_weight.detach().chunk(3)[place])
                layer.bias = nn.Parameter(of.in_proj_bias.detach().chunk(3)[place])
            self.proj, self.head = of.out_proj, head

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            hidden = masks(6)[mask]
            scores = q @ k.mT * 0.5 + hidden.get("attn_mask", 0)
            if mask == "padding":
                scores = scores.masked_fill(hidden["key_padding_mask"][:, None, None], -torch.inf)
            y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            return self.head((x + self.proj(y)).mean(1))

    net, x = Module().double().eval(), torch.randn(X, dtype=torch.float64)
    nn.init.normal_(net.of.in_proj_bias)
    parts = Parts(net.of, net.head)
    assert torch.allclose(net(x), parts(x))
    found, wanted = (lrp.relevance(m, x, TARGET, rule=lrp.EpsilonPlus(EPS), attention=attention) for m in (net, parts))
    assert_same(found, wanted)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder_conserves(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=not norm_first)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.encoder(x)[:, 0])

    net, x = prepare(Net(), has_shift=False), torch.randn(X, dtype=torch.float64)
    logits = net(x).detach().gather(1, TARGET[:, None])[:, 0]
    r = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(1e-14), attention="detach")
    assert_same(r.sum((1, 2)), logits, 1e-6)
    found = lrp.layer_relevance(net, x, TARGET, ["encoder.layers.0"], rule=lrp.Epsilon(1e-14), attention="detach")
    assert_same(found["encoder.layers.0"].sum((1, 2)), logits, 1e-6)


def tiny(name, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
    net = getattr(transformers, f"{name}ForImageClassification")._from_config(config)
    for values in net.parameters():
        if values.dim() > 1:
            nn.init.normal_(values, 0, values[0].numel() ** -0.5)
    net = prepare(net, has_shift=False)
    with torch.no_grad():
        for key, values in net.named_parameters():
            if "position" in key or "cls_token" in key or "distillation_token" in key:
                values.zero_()
    return net


PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
MODELS = {
    "ViT": {**PLAIN, "image_size": 32, "patch_size": 8},
    "Swin": {**WINDOWS, "image_size": 32},
    "Swinv2": {**WINDOWS, "image_size": 32},
    "ConvNextV2": STAGES,
    "PoolFormer": STAGES,
    "MobileNetV2": {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_conserve(name):
    net, x = tiny(name, **MODELS[name]), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits = net(x).logits.detach().gather(1, TARGET[:, None])[:, 0]
    r = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(1e-20), attention="detach")
    assert_same(r.sum((1, 2, 3)), logits, 1e-6)
    assert lrp.relevance(net.float(), x.float(), TARGET).isfinite().all()


@pytest.mark.parametrize("attention", ["attnlrp", "detach"])
def test_sdpa_and_eager_agree(attention):
    options = MODELS["ViT"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = [
        lrp.relevance(tiny("ViT", attn_implementation=name, **options), x, TARGET, attention=attention)
        for name in ("sdpa", "eager")
    ]
    assert_same(*found, 1e-6)  # eager takes its softmax in float32
