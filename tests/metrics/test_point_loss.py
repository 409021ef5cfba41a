"""Curves of random point loss: against a slow restatement, known values, and what becomes of bad arguments."""

import pytest
import torch
from torch import nn

from attrdrop import metrics

TARGET = torch.tensor([0, 2, 1])


class Mean(nn.Module):
    """Mean of all points times a matrix, so that the number of points and their order do not matter."""

    def __init__(self, channels=3):
        super().__init__()
        self.head = nn.Linear(channels, 4, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def forward(self, points):
        self.seen.append(points)
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.head(self.drop(points.mean(1)))


def clouds(points=10):
    return torch.randn(3, points, 3, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("score", ["logit", "probability", "accuracy"])
@pytest.mark.parametrize("mode", ["remove", "origin"])
def test_by_definition(mode, score, batch_size):
    model, points = Mean(), clouds(10)
    curve = metrics.point_loss_curve(
        model, points, TARGET, fractions=[0.0, 0.25, 0.7], repeats=2, mode=mode, score=score, batch_size=batch_size,
        seed=3,
    )  # fmt: skip
    assert curve.fractions.tolist() == [0, 0.2, 0.7]
    generator = torch.Generator().manual_seed(3)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(2):
        ranks = torch.rand(3, 10, generator=generator).argsort(1).argsort(1)
        for i, lost in enumerate((0, 2, 7)):
            for n in range(3):
                kept = [p if r >= lost else 0 * p for p, r in zip(points[n], ranks[n], strict=True)]
                kept = kept if mode == "origin" else [p for p, r in zip(points[n], ranks[n], strict=True) if r >= lost]
                logits = model.eval().head(torch.stack(kept).mean(0)).detach()
                value = {
                    "logit": logits[TARGET[n]], "probability": logits.softmax(0)[TARGET[n]],
                    "accuracy": (logits.argmax() == TARGET[n]).double(),
                }[score]  # fmt: skip
                expected[n, i] += value / 2
    torch.testing.assert_close(curve.scores, expected)
    area = sum((expected[:, i] + expected[:, i + 1]) / 2 * step for i, step in enumerate((0.2, 0.5)))
    torch.testing.assert_close(curve.auc, area / 0.7)


@pytest.mark.parametrize("size", [1, 7, 63, 111, 1000])
def test_removed_points_are_gone_and_the_others_keep_their_order(size):
    model, points = Mean(), torch.arange(3 * size).view(3, size, 1).expand(-1, -1, 3).double()
    curve = metrics.point_loss_curve(model, points, TARGET, repeats=1)
    assert curve.scores.shape == (3, 10)
    for fraction, seen in zip(range(10), model.seen, strict=True):
        kept = size - fraction * size // 10
        assert seen.shape == (3, kept, 3)
        assert (seen[:, 1:] > seen[:, :-1]).all()
        assert all(torch.isin(seen[n], points[n]).all() for n in range(3))
    assert all(torch.isin(b, a).all() for a, b in zip(model.seen[:-1], model.seen[1:], strict=True))  # lost for good


def test_a_score_that_never_changes_has_its_own_value_as_area():
    points = torch.ones(3, 8, 3, dtype=torch.float64)
    curve = metrics.point_loss_curve(Mean().eval(), points, TARGET, score="probability")
    torch.testing.assert_close(curve.auc, curve.scores[:, 0])
    single = metrics.point_loss_curve(Mean(), points, TARGET, fractions=[0.5], score="logit")
    assert torch.equal(single.auc, single.scores[:, 0])


def test_draws_depend_on_the_seed_and_state_comes_back():
    model, points, state = Mean().train(), clouds(), torch.get_rng_state()

    def scores(seed):
        return metrics.point_loss_curve(model, points, TARGET, seed=seed, score="logit").scores

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))
    assert model.training
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), state)


def test_relevance_per_channel_flips_like_its_sum():
    model, points, relevance = Mean(), clouds(), torch.randn(3, 10, 3, dtype=torch.float64)
    by_channel = metrics.flipping_curve(model, points, TARGET, relevance)
    assert torch.equal(by_channel.scores, metrics.flipping_curve(model, points, TARGET, relevance.sum(2)).scores)
    with pytest.raises(ValueError, match=r"relevance must have shape \(N, P\) or \(N, P, C\) .*, got \(3, 9, 3\)"):
        metrics.flipping_curve(model, points, TARGET, relevance[:, :9])


def lose(**changes):
    return metrics.point_loss_curve(**{"model": Mean(), "points": clouds(), "target": TARGET, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": len}, TypeError, "model must be a torch.nn.Module, got builtin"),
        ({"points": [1]}, TypeError, "points must be a torch.Tensor, got list"),
        ({"points": clouds().int()}, TypeError, "points must be a floating-point tensor, got torch.int32"),
        ({"points": clouds()[0]}, ValueError, r"points must have shape \(N, P, C\), not empty, got \(10, 3\)"),
        ({"points": clouds(0)}, ValueError, r"points must have shape \(N, P, C\), not empty, got \(3, 0, 3\)"),
        ({"points": clouds() / 0}, ValueError, "points must be finite, got NaN or infinite"),
        ({"target": TARGET[:2]}, ValueError, r"target must be int64 of shape \(3,\), got"),
        ({"target": TARGET + 2}, ValueError, r"target must lie in \[0, 4\), the classes of the model, got 4"),
        ({"fractions": []}, ValueError, r"fractions must rise within \[0, 1\), at least one, got \[\]"),
        ({"fractions": [0.0, 1.0]}, ValueError, "fractions must rise within"),
        ({"fractions": [0.5, 0.5]}, ValueError, "fractions must rise within"),
        ({"fractions": [float("nan")]}, ValueError, "fractions must rise within"),
        ({"fractions": ["half"]}, TypeError, "fractions must be numbers, got"),
        ({"repeats": 0}, ValueError, "repeats must be a positive int, got 0"),
        ({"batch_size": 1.0}, ValueError, "batch_size must be a positive int, got 1.0"),
        ({"mode": "zero"}, ValueError, "mode must be one of remove, origin, got 'zero'"),
        ({"score": "loss"}, ValueError, "score must be one of logit, probability, accuracy, got 'loss'"),
        ({"output": lambda out: out[0]}, ValueError, r"output must give logits \(3, classes\), got shape \(4,\)"),
        ({"seed": 0.5}, TypeError, "seed must be"),
    ],
)
def test_errors_name_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        lose(**changes)
