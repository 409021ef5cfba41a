"""Rivals of AD-DROP: each equals its definition, restated slowly, and runs on every family of models."""

import math

import pytest
import torch
from double_steps import assert_equal_steps, step, task
from eager import EagerPass, check_a_step, gradients_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ALL, UNREACHABLE, batch, build
from own_attention import EagerAttention, InDouble
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from attrdrop.lab.text.methods.attention_dropout import AttentionDropout, attention_dropout_options
from attrdrop.lab.text.methods.base import Method
from attrdrop.lab.text.methods.drop_head import DropHead
from attrdrop.lab.text.methods.drop_key import DropKey
from attrdrop.lab.text.methods.hidden_cut import SALIENT, HiddenCut, encoder_blocks
from attrdrop.lab.text.methods.r_drop import RDrop
from attrdrop.lab.text.settings import SPANS

METHODS = {
    "attention-dropout": lambda model, rate, seed: AttentionDropout(model, rate=0.0),
    "r-drop": lambda model, rate, seed: RDrop(model, consistency=2.0),
    "drop-head": lambda model, rate, seed: DropHead(model, rate=rate, seed=seed),
    "hidden-cut": lambda model, rate, seed: HiddenCut(model, rate=rate, consistency=0.7, spans="random", seed=seed),
    "drop-key": lambda model, rate, seed: DropKey(model, rate=rate, seed=seed),
}
RANDOM = ("drop-head", "hidden-cut", "drop-key")
WINDOWED = "swin"  # whose attention is in windows, and whose blocks are stages, of fewer and fewer tokens
TASKS = ("bert", "bert-regression", "bert-tokens", "llama-lm", "t5")


def encoder_of(model):
    return model.get_encoder() if model.config.is_encoder_decoder else model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_to_drop_nothing_is_plain_training(name, method):
    model, inputs = task(name)
    plain = step(model, lambda: Method(model)(**inputs))
    method = METHODS[method](model, 0.0, 0)
    assert_equal_steps(step(model, lambda: method(**inputs)), plain)
    assert method.statistics() is None


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("name", ALL)
def test_every_family_trains(name, method):
    model, inputs = task(name, torch.float32)
    plain = Method(model)(**inputs)
    state = torch.get_rng_state()
    first, again, other = (METHODS[method](model, 0.4, seed) for seed in (5, 5, 6))
    loss = first(**inputs)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())
    assert torch.equal(loss, again(**inputs))
    assert loss != other(**inputs)
    assert loss != plain
    assert 0 < first.statistics()["fraction_dropped"] < 1
    assert first.statistics() == again.statistics()
    second = first(**inputs)
    assert second != loss
    assert torch.equal(second, again(**inputs))
    assert torch.equal(state, torch.get_rng_state())
    first.start_epoch(2)
    assert first.statistics() is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TASKS)
def test_evaluation_mode_drops_nothing(name, method):
    model, inputs = task(name)
    method = METHODS[method](model.eval(), 0.9, 0)
    assert torch.equal(method(**inputs), model(**inputs).loss)
    assert method.statistics() is None


class Dropouts:
    """Plain attention; notes the dropout of each call."""

    def __init__(self):
        self.found = []

    def attend(self, call, plain):
        self.found.append(call.dropout_p)
        return plain()


@pytest.mark.parametrize("name", ALL)
def test_attention_uses_the_rate_of_its_family(name):
    options = attention_dropout_options(build(name).config, 0.35)
    model, inputs = task(name, torch.float32, **options)
    DropHead(model, rate=0.0)  # adapts what calls no attention interface
    calls = Dropouts()
    model(**inputs, attrdrop=calls)
    assert len(calls.found) >= 3
    assert set(calls.found) == {0.35}
    assert AttentionDropout(model, rate=0.35)(**inputs).isfinite()
    with pytest.raises(
        ValueError, match=r"rate must be the \w+ that the model was loaded with, which is 0.35; got 0.2"
    ):
        AttentionDropout(model, rate=0.2)


def in_halves(model, inputs, seed):
    """Logits of the two halves under the masks of a seed."""
    torch.manual_seed(seed)
    return model(**{name: torch.cat([value, value]) for name, value in inputs.items()}).logits.chunk(2)


def rows(name, logits, labels):
    """The predictions that count and their labels, one by one."""
    if logits.dim() == 2:
        return list(zip(logits, labels, strict=True))
    shift = int(name == "llama-lm")
    return [
        (logits[sample, place - shift], labels[sample, place])
        for sample in range(len(labels))
        for place in range(shift, labels.shape[1])
        if labels[sample, place] != -100
    ]


def kl(a, b):
    return (a.exp() * (a - b)).sum()


DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.2},
    "bert-regression": {"hidden_dropout_prob": 0.2},
    "bert-tokens": {"hidden_dropout_prob": 0.2},
    "llama-lm": {"attention_dropout": 0.2},
    "t5": {"dropout_rate": 0.2},
}


@pytest.mark.parametrize(("scale", "weight"), [("mean", 0.5), ("sum", 1.0)])
@pytest.mark.parametrize("name", TASKS)
def test_r_drop_is_its_formula_on_two_predictions(name, scale, weight):
    model, inputs = task(name, **DROPOUT[name])
    torch.manual_seed(7)
    ours = step(model, lambda: RDrop(model, consistency=1.5, scale=scale)(**inputs))
    expected = step(model, lambda: r_drop(name, in_halves(model, inputs, 7), inputs["labels"], weight, 1.5))
    assert_equal_steps(ours, expected)


def r_drop(name, logits, labels, weight, consistency):
    """The loss of R-Drop, row by row; weight: of each cross-entropy."""
    total = differences = 0.0
    halves = [rows(name, half, labels) for half in logits]
    for (first, label), (second, _) in zip(*halves, strict=True):
        if name == "bert-regression":
            total = total + weight * ((first - label) ** 2 + (second - label) ** 2).sum()
            difference = ((first - second) ** 2).sum()
        else:
            a, b = first.log_softmax(-1), second.log_softmax(-1)
            total = total - weight * (a[label] + b[label])
            difference = (kl(a, b) + kl(b, a)) / 2
        differences = differences + difference
    assert differences > 0.001
    return (total + consistency * differences) / len(halves[0])


class HeadMasks(EagerPass):
    """Materialised attention whose heads are dropped one by one."""

    def __init__(self, eligible, rate, seed):
        super().__init__(eligible)
        self.rate, self.generator = rate, torch.Generator().manual_seed(seed)
        self.valid_heads = self.dropped = 0

    def attend(self, call, plain):
        out = super().attend(call, plain).clone()
        if call.module not in self.eligible:
            return out
        samples, _, heads, _ = out.shape
        drawn = torch.rand(samples, heads, generator=self.generator, dtype=torch.float64)
        self.valid_heads += samples * heads
        for sample in range(samples):
            lost = [head for head in range(heads) if drawn[sample, head] < self.rate]
            lost = [] if len(lost) == heads else lost
            self.dropped += len(lost)
            for head in range(heads):
                out[sample, :, head] *= 0.0 if head in lost else heads / (heads - len(lost))
        return out


@pytest.mark.parametrize("name", ALL)
def test_drop_head_equals_the_eager_one(name):
    model, inputs = task(name)
    method = DropHead(model, rate=0.6, seed=3)
    ours = step(model, lambda: method(**inputs))
    masks = HeadMasks(set(encoder_of(model).modules()), 0.6, 3)
    assert_equal_steps(ours, step(model, lambda: model(**inputs, attrdrop=masks).loss))
    assert masks.dropped > 0
    fraction = masks.dropped / masks.valid_heads
    assert method.statistics() == {
        "valid": masks.valid_heads, "dropped": masks.dropped, "fraction_dropped": fraction
    }  # fmt: skip


def test_drop_head_keeps_the_heads_of_a_sample_that_would_lose_all():
    model, inputs = task("bert")
    plain = step(model, lambda: Method(model)(**inputs))
    method = DropHead(model, rate=1.0)
    assert_equal_steps(step(model, lambda: method(**inputs)), plain)
    assert method.statistics() == {"valid": 3 * 3 * 4, "dropped": 0, "fraction_dropped": 0.0}


def test_drop_head_refuses_attention_that_it_cannot_reach():
    with pytest.raises(ValueError, match="computes attention in its own code"):
        DropHead(UNREACHABLE["convbert"](), rate=0.1)
    model, inputs = task("bert")
    method = DropHead(model, rate=0.1)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="never calls transformers' attention interface"):
        method(**inputs)


def spans(generator, lengths, rate):
    """(first, last + 1) among the valid tokens of each sample, by the definition."""
    places = torch.rand(len(lengths), generator=generator, dtype=torch.float64).tolist()
    sizes = [max(1, round(rate * length)) for length in lengths]
    starts = [math.floor(u * (length - size + 1)) for u, length, size in zip(places, lengths, sizes, strict=True)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def spans_by_attention(generator, lengths, rate, weights):
    """The same where a span begins at a token that is paid much attention, weights (B, H, n, n)."""
    places, found = torch.rand(len(lengths), generator=generator, dtype=torch.float64).tolist(), []
    for u, length, heads in zip(places, lengths, weights, strict=True):
        paid = [sum(head[i, j].item() for head in heads for i in range(length)) for j in range(length)]
        best = sorted(range(length), key=lambda j: -paid[j])[: max(1, round(SALIENT * length))]
        start = best[math.floor(u * len(best))]
        found.append((start, min(start + max(1, round(rate * length)), length)))
    return found


@pytest.mark.parametrize("placed", SPANS)
def test_hidden_cut_equals_a_walk_through_the_layers(placed):
    model, inputs = task("bert")
    with torch.no_grad():  # attention that is not alike everywhere
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight *= 4
        model.classifier.weight *= 20
    method = HiddenCut(model, rate=0.3, consistency=1.5, spans=placed, seed=3)
    ours = step(model, lambda: method(**inputs))
    model.set_attn_implementation("eager")
    generator, mask, dropped = torch.Generator().manual_seed(3), inputs["attention_mask"], 0

    def walk():
        nonlocal dropped
        lowered = (1.0 - mask[:, None, None].double()) * torch.finfo(torch.float64).min
        hidden = model.bert.embeddings(input_ids=inputs["input_ids"])
        for layer in model.bert.encoder.layer:
            with EagerAttention() as noted:
                hidden = layer(hidden, lowered)
            keep, lengths = torch.ones(hidden.shape[:2]), mask.sum(-1).tolist()
            if placed == "attention":
                cuts = spans_by_attention(generator, lengths, 0.3, noted.probabilities[0])
            else:
                cuts = spans(generator, lengths, 0.3)
            for sample, (start, end) in enumerate(cuts):
                keep[sample, start:end] = 0  # padding is on the right
                dropped += end - start
            hidden = hidden * keep[..., None]
        cut = model.classifier(model.bert.pooler(hidden))
        whole = model(**inputs).logits
        p, q = whole.softmax(-1), cut.softmax(-1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2 / len(p)
        labels = inputs["labels"]
        assert js > 0.001
        return functional.cross_entropy(whole, labels) + functional.cross_entropy(cut, labels) + 1.5 * js

    assert_equal_steps(ours, step(model, walk))
    valid = 3 * (20 + 12 + 20)
    assert method.statistics() == {"valid": valid, "dropped": dropped, "fraction_dropped": dropped / valid}


@pytest.mark.parametrize("placed", SPANS)
@pytest.mark.parametrize("name", sorted({*ALL} - {WINDOWED}))
def test_hidden_cut_zeroes_a_span_of_each_block(name, placed):
    model, inputs = task(name)
    method = HiddenCut(model, rate=0.4, consistency=1.0, spans=placed)
    seen, eager = [], EagerPass({*encoder_of(model).modules()})
    cut, span, attend = method._cut, method._span, method.attend

    def watch_attend(call, plain):
        eager.attend(call, plain)
        return attend(call, plain)

    def watch_span(valid, paid):
        if placed == "attention":
            shares = valid / valid.sum(-1, keepdim=True)
            expected = (eager.probabilities[-1].mean(1) * shares[..., None]).sum(1)
            torch.testing.assert_close(paid.double(), expected, atol=1e-6, rtol=1e-5)
        seen.append(span(valid, paid))
        return seen[-1]

    def watch_cut(mask, block, arguments, output):
        result = cut(mask, block, arguments, output)
        before, after = (x[0] if isinstance(x, tuple) else x for x in (output, result))
        assert torch.equal(after, before * ~seen[-1][..., None])
        return result

    method._cut, method._span, method.attend = watch_cut, watch_span, watch_attend
    with InDouble():
        method(**inputs)
    layers = 2 if model.config.is_encoder_decoder else 3
    assert len(seen) == layers
    lengths = [17, 17, 17] if name == "vit" else [20, 12, 20]
    for found in seen:
        sizes = [round(0.4 * length) for length in lengths]
        if placed == "random":
            assert found.sum(-1).tolist() == sizes
        else:  # the end of the text may cut it short
            assert all(0 < count <= size for count, size in zip(found.sum(-1).tolist(), sizes, strict=True))
        assert all(found[sample, length:].logical_not().all() for sample, length in enumerate(lengths))
    assert len(encoder_blocks(model)) == (1 if name == "albert" else layers)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0.001, 1.0),
    masks=st.lists(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), min_size=1, max_size=5),
    seed=st.integers(0, 2**63),
)
def test_spans_are_successive_valid_tokens(bert, rate, masks, seed):
    valid = torch.tensor(masks)
    found = HiddenCut(bert, rate=rate, consistency=1.0, seed=seed)._span(valid)
    expected = torch.zeros_like(valid)
    for sample, (start, end) in enumerate(spans(torch.Generator().manual_seed(seed), valid.sum(-1).tolist(), rate)):
        assert 0 <= start < end <= valid[sample].sum()
        expected[sample, valid[sample].nonzero().flatten()[start:end]] = True
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def bert():
    return build("bert")


def test_spans_begin_anywhere_alike(bert):
    found = HiddenCut(bert, rate=0.4, consistency=1.0)._span(torch.ones(4000, 5, dtype=torch.bool))
    starts = found.long().argmax(-1).bincount(minlength=5)
    assert starts[4] == 0
    assert (starts[:4] - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_spans_begin_alike_at_tokens_that_are_paid_most_attention(bert):
    valid = torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool().expand(4000, 7)
    paid = torch.tensor([9.0, 0.1, 0.3, 0.2, 0.1, 0.4, 9.0]).expand(4000, 7)
    found = HiddenCut(bert, rate=0.4, consistency=1.0)._span(valid, paid)
    starts = found.long().argmax(-1).bincount(minlength=7)
    assert starts[[2, 5]].sum() == 4000
    assert abs(starts[2] - 2000) < 5 * math.sqrt(4000 * 0.5 * 0.5)
    assert {tuple(span.nonzero().flatten().tolist()) for span in found} == {(2, 3), (5,)}


def test_hidden_cut_by_attention_refuses_windows():
    model, inputs = task(WINDOWED, torch.float32)
    with pytest.raises(ValueError, match="spans must be 'random' for SwinForImageClassification"):
        HiddenCut(model, rate=0.3, consistency=1.0)(**inputs)


def test_hidden_cut_leaves_no_hook_behind(monkeypatch):
    model, inputs = task("bert")

    def hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    before = hooks()
    method = HiddenCut(model, rate=0.3, consistency=1.0)
    method(**inputs)
    assert hooks() == before

    def fail(valid, paid):
        assert hooks() == before + 3
        raise RuntimeError("in the middle")

    monkeypatch.setattr(method, "_span", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        method(**inputs)
    assert hooks() == before


def test_hidden_cut_needs_blocks_with_attention():
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="list of transformer blocks with attention, ResNetForImageClassification has"):
        HiddenCut(model, rate=0.1, consistency=1.0, spans="random")


def test_drop_key_drops_each_position_with_its_rate():
    model, inputs = build("bert"), batch("bert", size=16)
    method = DropKey(model, rate=0.3, seed=4)
    for epoch in (1, 2):
        method.start_epoch(epoch)
        for _ in range(4):
            method(**inputs)
        found = method.statistics()
        assert found["steps"] == 4
        assert found["valid"] == found["candidates"] == 4 * 3 * 4 * 20 * (15 * 20 + 12)
        assert abs(found["fraction_dropped"] - 0.3) < 5 * math.sqrt(0.3 * 0.7 / found["valid"])


@pytest.mark.parametrize("name", ALL)
def test_drop_key_equals_the_eager_one(name):
    model, inputs = task(name)
    check_a_step(model, inputs, DropKey(model, rate=0.3).addrop)


@pytest.mark.parametrize("method", ["drop-head", "hidden-cut"])
def test_gradient_checkpointing_is_refused(method):
    model, inputs = task("bert")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"^(DropHead|HiddenCut) would draw anew .* turn gradient checkpointing off"):
        METHODS[method](model, 0.3, 0)(**inputs)


@pytest.mark.parametrize("method", ["r-drop", "hidden-cut"])
def test_multi_label_models_are_refused(method):
    model, inputs = task("bert", num_labels=3)
    inputs["labels"] = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="multi-label models have no single distribution over classes"):
        METHODS[method](model, 0.3, 0)(**inputs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model: DropHead(model, rate=1.5), ValueError, r"rate must lie in \[0, 1\], got 1.5"),
        (lambda model: DropKey(model, rate=-0.1), ValueError, r"rate must lie in \[0, 1\], got -0.1"),
        (lambda model: AttentionDropout(model, rate="a"), TypeError, r"rate must be a number in \[0, 1\], got str"),
        (lambda model: DropHead(model, rate=0.1, seed=0.5), TypeError, "seed must be an int, got float"),
        (
            lambda model: HiddenCut(model, rate=2, consistency=1.0), ValueError, r"rate must lie in \[0, 1\], got 2"
        ),
        (
            lambda model: HiddenCut(model, rate=0.1, consistency=1.0, spans="start"), ValueError,
            "spans must be one of attention, random, got 'start'",
        ),
        (
            lambda model: RDrop(model, consistency=1.0, scale="half"), ValueError,
            "scale must be one of mean, sum, got 'half'",
        ),
        (lambda model: RDrop(model, consistency=-1), ValueError, "consistency must be a finite number of at least 0"),
        (lambda model: RDrop(model, consistency="1"), TypeError, "consistency must be a number from 0 on, got str"),
        (
            lambda model: HiddenCut(model, rate=0.1, consistency=math.nan), ValueError,
            "consistency must be a finite number of at least 0, got nan",
        ),
        (
            lambda model: attention_dropout_options(ResNetConfig(), 0.1), ValueError,
            "rate cannot be set: ResNetConfig has no dropout of attention",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(bert, make, error, message):
    with pytest.raises(error, match=message):
        make(bert)
