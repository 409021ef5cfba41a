"""Metrics: each against a slow restatement, known values and scikit-learn."""

import contextlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from attrdrop import metrics

VALUES = st.lists(st.just(0.0) | st.floats(1e-20, 100) | st.floats(-100, -1e-20), min_size=1, max_size=20)


def test_import_needs_torch_and_numpy_alone():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('sklearn', 'scipy', 'pandas', 'matplotlib')))\n"
        "import torch, attrdrop.metrics as metrics\n"
        "try: metrics.auroc(torch.rand(2), torch.rand(2))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "aupr and auroc need scikit-learn: pip install 'attrdrop[lab]'\n"


# Relevance and masks


def test_rank_and_mass_accuracy_by_definition():
    relevance = torch.randn(5, 3, 7, 9).round(decimals=1)
    mask = torch.rand(5, 7, 9) < torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0])[:, None, None]
    rank = metrics.relevance_rank_accuracy(relevance, mask)
    mass = metrics.relevance_mass_accuracy(relevance, mask)
    game = metrics.pointing_game(relevance, mask)
    for i in range(5):
        scores, inside = relevance[i].sum(0).flatten().tolist(), mask[i].flatten().tolist()
        order = sorted(range(63), key=lambda j: (-scores[j], j))
        size = sum(inside)
        assert game[i].item() is inside[order[0]]
        if size == 0:
            assert rank[i].isnan()
            assert mass[i].isnan()
            continue
        assert rank[i].item() == pytest.approx(sum(inside[j] for j in order[:size]) / size)
        positive = [max(s, 0) for s in scores]
        assert mass[i].item() == pytest.approx(
            sum(p for p, m in zip(positive, inside, strict=True) if m) / sum(positive)
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.floats(0.5, 1e30))
def test_the_mask_itself_and_its_opposite(bits, scale):
    mask = torch.tensor(bits).view(1, 3, 4)
    relevance = mask.float() * scale
    if mask.any():
        assert metrics.relevance_rank_accuracy(relevance, mask).item() == 1
        assert metrics.relevance_mass_accuracy(relevance, mask).item() == 1
        assert metrics.pointing_game(relevance, mask).item()
    if 0 < mask.sum() <= 6:
        assert metrics.relevance_rank_accuracy(-relevance, mask).item() == 0


def test_equal_relevance_goes_to_the_lowest_index():
    mask = torch.tensor([[[True, False], [False, True]]])
    assert metrics.relevance_rank_accuracy(torch.zeros(1, 2, 2), mask).item() == 0.5
    assert metrics.pointing_game(torch.zeros(1, 2, 2), mask).item()
    assert metrics.relevance_mass_accuracy(torch.zeros(1, 2, 2), mask).isnan().item()


# Sparsity


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_sparsity_by_definition_and_whatever_the_order(values):
    x = torch.tensor(values, dtype=torch.float64)
    shuffled = x[torch.randperm(len(x))]
    magnitudes, n = sorted(abs(v) for v in values), len(values)
    total = math.fsum(magnitudes)
    expected = (0.0, 0.0, 1.0)
    if total > 0 and n > 1:
        pairs = math.fsum(abs(a - b) for a in magnitudes for b in magnitudes)
        l2 = math.sqrt(math.fsum((m / total) ** 2 for m in magnitudes))
        shares = [m / total for m in magnitudes if m > 0]
        expected = (
            pairs / (2 * n * total),
            (math.sqrt(n) - 1 / l2) / (math.sqrt(n) - 1),
            -math.fsum(s * math.log(s) for s in shares if s > 0) / math.log(n),
        )
    for measure, value in zip((metrics.gini, metrics.hoyer, metrics.entropy), expected, strict=True):
        assert measure(x).item() == pytest.approx(value, abs=1e-9)
        assert measure(shuffled).item() == pytest.approx(value, abs=1e-9)
        assert 0 <= measure(x.float()).item() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 512])
@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e4])
def test_sparsity_of_uniform_and_single_channels(n, dtype, scale):
    uniform, single, zeros = torch.full((n,), -scale, dtype=dtype), torch.zeros(n, dtype=dtype), torch.zeros(n)
    single[n // 2] = scale
    is_one = n == 1
    for x, expected in ((uniform, (0, 0, 1)), (zeros, (0, 0, 1)), (single, (1 - 1 / n, 1 - is_one, float(is_one)))):
        assert metrics.gini(x).item() == pytest.approx(expected[0], abs=1e-5)
        assert metrics.hoyer(x).item() == pytest.approx(expected[1], abs=1e-5)
        assert metrics.entropy(x).item() == pytest.approx(expected[2], abs=1e-5)


def test_sparsity_along_a_dimension():
    x = torch.randn(2, 5, 3)
    for measure in (metrics.gini, metrics.hoyer, metrics.entropy):
        assert measure(x, dim=1).shape == (2, 3)
        assert measure(x, dim=1)[1, 2].item() == pytest.approx(measure(x[1, :, 2]).item())


def test_channel_relevance_sums_over_space():
    x = torch.randn(2, 3, 4, 5)
    assert torch.allclose(metrics.channel_relevance(x), x.sum((2, 3)), atol=1e-5)
    assert torch.equal(metrics.channel_relevance(x[..., 0, 0]), x[..., 0, 0])
    assert metrics.channel_relevance(x[:0]).shape == (0, 3)


# Flipping


class Linear(nn.Module):
    """Flattens and multiplies; dropout and a frozen part give training flags a meaning."""

    def __init__(self, features, classes=4):
        super().__init__()
        self.head = nn.Linear(features, classes, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(classes).double().eval()

    def forward(self, x):
        return self.frozen(self.drop(self.head(x.flatten(1))))


def flipped_naively(model, inputs, target, relevance, steps, order, value, patch, score):
    """One sample, feature and step at a time."""
    is_image = inputs.dim() == 4
    curves = []
    for i, x in enumerate(inputs):
        places = relevance[i].sum(0) if relevance.dim() == 4 else relevance[i]
        totals = {}
        for place in np.ndindex(*places.shape):
            feature = tuple(j // patch for j in place)
            totals[feature] = totals.get(feature, 0) + places[place].item()
        sign = -1 if order == "descending" else 1
        ranked = sorted(sorted(totals), key=lambda feature: sign * totals[feature])
        count = min(steps, len(ranked))
        curve = []
        for step in range(count + 1):
            changed = x.clone()
            for feature in ranked[: step * len(ranked) // count]:
                for place in np.ndindex(*places.shape):
                    if tuple(j // patch for j in place) == feature:
                        index = (slice(None), *place) if is_image else (*place, slice(None))
                        changed[index] = x.mean((1, 2) if is_image else 0) if isinstance(value, str) else value
            logits = model(changed[None])[0]
            wanted = target[i]
            curve.append({
                "logit": logits[wanted], "probability": logits.softmax(0)[wanted],
                "accuracy": (logits.argmax() == wanted).double(),
            }[score])  # fmt: skip
        curves.append(torch.stack(curve))
    return torch.stack(curves)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("shape", "channels", "patch", "steps", "order", "value", "score"),
    [
        ((3, 2, 4, 5), False, 1, 7, "descending", 0.0, "logit"),
        ((3, 2, 4, 5), True, 2, 20, "ascending", torch.tensor([0.5, -1.0]), "probability"),
        ((3, 2, 5, 7), True, 3, 4, "descending", "mean", "accuracy"),
        ((3, 6, 3), False, 1, 4, "descending", 0.0, "logit"),
        ((3, 6, 3), False, 1, 50, "ascending", "mean", "probability"),
        ((3, 6, 3), False, 1, 3, "descending", torch.tensor([1.0, 2.0, 3.0]), "logit"),
    ],
)
def test_flipping_by_definition(shape, channels, patch, steps, order, value, score, batch_size):
    inputs = torch.randn(shape, dtype=torch.float64)
    sizes = shape[2:] if len(shape) == 4 else shape[1:2]
    relevance = torch.randn(3, *((4,) if channels else ()), *sizes, dtype=torch.float64)
    target = torch.tensor([0, 3, 1])
    model = Linear(inputs[0].numel()).eval()
    curve = metrics.flipping_curve(
        model, inputs, target, relevance, steps=steps, order=order, value=value, patch=patch, score=score,
        batch_size=batch_size,
    )  # fmt: skip
    with torch.no_grad():
        expected = flipped_naively(model, inputs, target, relevance, steps, order, value, patch, score)
    torch.testing.assert_close(curve.scores, expected)
    assert curve.fractions[0] == 0
    assert curve.fractions[-1] == 1
    middles = (curve.scores[:, 1:] + curve.scores[:, :-1]) / 2
    torch.testing.assert_close(curve.auc, (middles * curve.fractions.diff()).sum(1))


def test_exact_relevance_of_a_linear_model_flips_best():
    inputs, target = torch.randn(20, 2, 4, 4, dtype=torch.float64), torch.randint(4, (20,))
    model = Linear(32)
    relevance = inputs * model.head.weight[target].view(inputs.shape).detach()
    areas = {
        order: metrics.flipping_curve(model, inputs, target, relevance, steps=16, order=order).auc
        for order in ("descending", "random", "ascending")
    }
    assert (areas["descending"] < areas["random"]).all()
    assert (areas["random"] < areas["ascending"]).all()


def test_random_order_depends_on_the_seed_alone():
    model, inputs, target = Linear(32), torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])

    def scores(seed, relevance):
        return metrics.flipping_curve(model, inputs, target, relevance, order="random", seed=seed).scores

    first = scores(1, torch.randn(3, 4, 4))
    assert torch.equal(first, scores(1, torch.randn(3, 4, 4)))
    assert not torch.equal(first, scores(2, torch.randn(3, 4, 4)))


class Rude(Linear):
    """Draws random numbers in eval mode, returns a tuple, and can fail."""

    fails = False

    def forward(self, x):
        torch.rand(3)
        assert not self.training
        assert not torch.is_grad_enabled()
        if self.fails:
            raise RuntimeError("no")
        return super().forward(x), None


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_random_state_are_restored(fails):
    model = Rude(8).train()
    model.frozen.eval()
    model.fails = fails
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="no") if fails else contextlib.nullcontext():
        metrics.flipping_curve(
            model, inputs, torch.tensor([0, 1]), torch.ones(2, 4), order="random", output=lambda out: out[0]
        )
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


# Out of distribution


def shifted(n=200, classes=6):
    labels = torch.randint(classes, (n,))
    return torch.randn(n, classes) + 2 * nn.functional.one_hot(labels, classes), labels


def test_calibration_and_aurra_by_definition():
    logits, labels = shifted()
    probabilities = logits.double().softmax(1)
    confidence, guess = (part.tolist() for part in probabilities.max(1))
    hits = [float(g == label) for g, label in zip(guess, labels.tolist(), strict=True)]
    assert metrics.top1(logits, labels) == pytest.approx(sum(hits) / 200)
    for bins in (1, 7, 15):
        gaps = []
        for b in range(bins):
            members = [i for i in range(200) if b / bins < confidence[i] <= (b + 1) / bins]
            if members:
                gap = sum(hits[i] - confidence[i] for i in members) / len(members)
                gaps.append((len(members) / 200, abs(gap)))
        l1, l2 = sum(w * gap for w, gap in gaps), math.sqrt(sum(w * gap**2 for w, gap in gaps))
        assert metrics.calibration_error(logits, labels, bins) == pytest.approx(l1)
        assert metrics.calibration_error(logits, labels, bins, norm="l2") == pytest.approx(l2)
        assert metrics.calibration_error(probabilities, labels, bins, probabilities=True) == pytest.approx(l1)
    ranked = [hits[i] for i in sorted(range(200), key=lambda i: -confidence[i])]
    area = sum(sum(ranked[:k]) / k for k in range(1, 201)) / 200
    assert metrics.aurra(logits, labels) == pytest.approx(area)


def test_brier_score_by_definition():
    logits, labels = shifted()
    probabilities = logits.double().softmax(1).tolist()
    distances = [
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(probabilities, labels.tolist(), strict=True)
    ]
    assert metrics.brier_score(logits, labels) == pytest.approx(sum(distances) / 200)
    sure = torch.tensor([[30.0, -30.0], [30.0, -30.0]])
    assert metrics.brier_score(sure, torch.tensor([0, 0])) == pytest.approx(0)
    assert metrics.brier_score(sure, torch.tensor([0, 1])) == pytest.approx(1)  # (0 + 2) / 2
    with pytest.raises(ValueError, match="labels must lie in"):
        metrics.brier_score(sure, torch.tensor([0, 2]))


def test_known_calibration_and_aurra():
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert metrics.calibration_error(logits, labels) == 0  # half right, half sure
    assert metrics.calibration_error(logits, torch.tensor([0, 0])) == 0.5
    assert metrics.aurra(logits, labels) == metrics.aurra(logits, labels.flip(0)) == 0.5
    assert metrics.aurra(torch.tensor([[9.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])) == 0.75


def test_detection_agrees_with_sklearn():
    (inside, _), outside = shifted(), torch.randn(70, 6)
    scores = -torch.cat([inside, outside]).double().softmax(1).amax(1).numpy()
    is_out = [0] * 200 + [1] * 70
    assert metrics.auroc(inside, outside) == pytest.approx(roc_auc_score(is_out, scores))
    assert metrics.aupr(inside, outside) == pytest.approx(average_precision_score(is_out, scores))
    assert metrics.auroc(metrics.anomaly_score(inside), metrics.anomaly_score(outside)) == metrics.auroc(
        inside, outside
    )
    assert metrics.auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0])) == 1


def test_evaluate_slices_to_the_classes():
    logits, labels = torch.randn(50, 10), torch.randint(3, (50,))
    classes = [7, 0, 4]
    subset = metrics.class_subset(logits, torch.tensor(classes))
    assert torch.equal(subset, torch.stack([logits[:, 7], logits[:, 0], logits[:, 4]], 1))
    values = metrics.evaluate(logits, labels, classes, out_logits=logits.flip(0)[:20])
    assert values == {
        "top1": metrics.top1(subset, labels),
        "calibration_error": metrics.calibration_error(subset, labels),
        "rms_calibration_error": metrics.calibration_error(subset, labels, norm="l2"),
        "aurra": metrics.aurra(subset, labels),
        "auroc": metrics.auroc(subset, subset.flip(0)[:20]),
        "aupr": metrics.aupr(subset, subset.flip(0)[:20]),
    }
    assert set(metrics.evaluate(subset, labels)) == {"top1", "calibration_error", "rms_calibration_error", "aurra"}


MAP, MASK, LOGITS, LABELS = torch.zeros(2, 3, 3), torch.ones(2, 3, 3).bool(), torch.zeros(2, 4), torch.tensor([0, 1])


def flip(**changes):
    options = {
        "model": nn.Flatten(), "inputs": torch.zeros(2, 1, 3, 3), "target": LABELS, "relevance": MAP, **changes,
    }  # fmt: skip
    return metrics.flipping_curve(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.relevance_rank_accuracy(MASK, MASK), TypeError, "relevance must be a floating-point tensor"),
        (lambda: metrics.relevance_rank_accuracy(MAP[0], MASK), ValueError, r"relevance must have shape \(N, H, W\)"),
        (lambda: metrics.pointing_game(MAP / 0, MASK), ValueError, "relevance must be finite, got NaN"),
        (lambda: metrics.relevance_mass_accuracy(MAP, MASK.float()), TypeError, "mask must be bool, got torch.float32"),
        (lambda: metrics.pointing_game(MAP, MASK[:, :2]), ValueError, r"mask must have .* \(2, 3, 3\), got \(2, 2"),
        (lambda: metrics.gini([1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda: metrics.gini(MAP, dim=3), ValueError, "dim must be a dimension of x, which has 3, got 3"),
        (lambda: metrics.entropy(MAP[:, :0], dim=1), ValueError, "x must have at least one element in dimension 1"),
        (lambda: metrics.channel_relevance(torch.zeros(3)), ValueError, r"relevance must have shape \(N, C, ...\)"),
        (lambda: flip(model=lambda x: x), TypeError, "model must be a torch.nn.Module, got function"),
        (lambda: flip(inputs=torch.zeros(2, 9)), ValueError, "inputs must be images"),
        (lambda: flip(inputs=torch.zeros(2, 1, 3, 3).int()), TypeError, "inputs must be a floating-point tensor"),
        (lambda: flip(relevance=MAP * torch.nan), ValueError, "relevance must be finite, got NaN"),
        (lambda: flip(relevance=MAP[:, :2]), ValueError, r"relevance must have shape .* \(2, 3, 3\), got \(2, 2, 3\)"),
        (lambda: flip(target=LABELS.int()), ValueError, r"target must be int64 of shape \(2,\), got torch.int32"),
        (lambda: flip(target=LABELS + 8), ValueError, r"target must lie in \[0, 9\), the classes of the model, got 9"),
        (lambda: flip(target=LABELS - 1), ValueError, "target must lie in .*, got -1"),
        (lambda: flip(order="up"), ValueError, "order must be one of descending, ascending, random, got 'up'"),
        (lambda: flip(score="loss"), ValueError, "score must be one of logit, probability, accuracy, got 'loss'"),
        (lambda: flip(steps=0), ValueError, "steps must be a positive int, got 0"),
        (lambda: flip(patch=1.5), ValueError, "patch must be a positive int, got 1.5"),
        (lambda: flip(batch_size=0), ValueError, "batch_size must be a positive int, got 0"),
        (lambda: flip(value="zero"), ValueError, 'value must be a number, a tensor or "mean", got \'zero\''),
        (lambda: flip(value=[0]), TypeError, "value must be a number, a tensor or \"mean\", got list"),
        (lambda: flip(value=torch.zeros(3)), ValueError, r"value must have shape \(C,\) = \(1,\), got \(3,\)"),
        (lambda: flip(inputs=MAP, relevance=MAP[0, :2], patch=2), ValueError, "patch must be 1 for point clouds"),
        (lambda: flip(model=nn.Identity()), ValueError, r"output must give logits \(2, classes\), got shape"),
        (lambda: flip(output=lambda out: (out,)), TypeError, "output must turn .* logits, got tuple"),
        (lambda: metrics.class_subset(LOGITS, []), ValueError, "classes must be a non-empty list"),
        (lambda: metrics.class_subset(LOGITS, [0.5]), TypeError, "classes must hold integers, got float64"),
        (lambda: metrics.class_subset(LOGITS, [0, 4]), ValueError, r"classes must lie in \[0, 4\), got 0 to 4"),
        (lambda: metrics.class_subset(LOGITS, [1, 1]), ValueError, "classes must be distinct, got 2 with 1"),
        (lambda: metrics.top1(LOGITS[0], LABELS), ValueError, r"logits must have shape \(N, K\), not empty, got"),
        (lambda: metrics.top1(LOGITS * torch.nan, LABELS), ValueError, "logits must have a finite largest value"),
        (lambda: metrics.top1(LOGITS.int(), LABELS), TypeError, "logits must be a floating-point tensor"),
        (lambda: metrics.aurra(LOGITS, LABELS[:1]), ValueError, r"labels must be int64 of shape \(2,\)"),
        (lambda: metrics.aurra(LOGITS, LABELS + 3), ValueError, r"labels must lie in \[0, 4\), .* got 3 to 4"),
        (lambda: metrics.calibration_error(LOGITS, LABELS, 0), ValueError, "bins must be a positive int, got 0"),
        (lambda: metrics.calibration_error(LOGITS, LABELS, norm="l3"), ValueError, "norm must be one of l1, l2, got"),
        (lambda: metrics.calibration_error(LOGITS, LABELS, probabilities=True), ValueError, "logits must hold.* to 0"),
        (lambda: metrics.aupr(MAP, LOGITS), ValueError, r"in_scores must be scores \(N,\) or logits \(N, K\)"),
        (lambda: metrics.auroc(LOGITS, LABELS), TypeError, "out_scores must be a floating-point tensor"),
        (lambda: metrics.auroc(LOGITS, LABELS / 0), ValueError, "out_scores must be finite, got NaN"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
