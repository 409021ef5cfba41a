"""Steps of AD-DROP in a CUDA graph: each replay draws anew, as uncaptured steps do."""

import pytest
import torch
from backends import GPU
from captured import beside, capturing, run_and_capture
from eager import bits_of
from models import batch, build
from torch import nn

from attrdrop import ADDrop, RelDrop, RelDropPoints, unpack_mask, use_backend
from attrdrop._core.seeds import derive_seed

WARM_UP, REPLAYS = 1, 3


class Training:
    """Steps on batches that are copied into one and the same memory, as a CUDA graph wants it."""

    def __init__(self, device, dropout=0.0, name="bert", **options):
        self.model = build(name).to(device)
        if dropout:
            for layer in self.model.bert.encoder.layer:
                layer.attention.self.dropout.p = dropout
        self.addrop = ADDrop(self.model, **{"p": 0.4, "q": 0.4, "cross_tuning": False, "capturable": True, **options})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.inputs = {key: value.to(device) for key, value in batch(name).items()}

    def step(self):
        """The loss, and the bits of the masked layers."""
        self.optimizer.zero_grad()
        masks = self.addrop.attribute(**self.inputs)
        loss = self.model(**self.inputs, attrdrop=masks).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach(), [site.keep.rows for site in masks.sites if site.keep is not None]

    def found(self, result):
        """A copy of a step's loss, and the boolean masks of its layers."""
        loss, rows = result
        return loss.clone().cpu(), unpack_mask(torch.stack(rows), 20).cpu()

    def load(self, index):
        for key, value in batch("bert", seed=index).items():
            self.inputs[key].copy_(value)

    def uncaptured(self, steps):
        found = []
        for index in range(steps):
            self.load(index)
            found.append(self.found(self.step()))
        return found

    def captured(self, steps):
        """The same, of which all but the first run in a graph."""
        device = next(self.model.parameters()).device
        with beside(device):
            found = self.uncaptured(WARM_UP)
        self.load(WARM_UP)
        result, replay = run_and_capture(self.step, device)
        found.append(self.found(result))
        for index in range(WARM_UP + 1, steps):
            self.load(index)
            replay()
            found.append(self.found(result))
        return found


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("attribution", ["GA", "AA", "RD"])
def test_replays_are_uncaptured_steps(attribution, backend, device):
    steps = WARM_UP + 1 + REPLAYS
    with use_backend(backend):
        eager = Training(device, attribution=attribution)
        expected = eager.uncaptured(steps)
        training = Training(device, attribution=attribution)
        found = training.captured(steps)
    is_exact = device == "cpu" or attribution == "RD"  # on a GPU a gradient's last place may differ
    for index, ((loss, keep), (expected_loss, expected_keep)) in enumerate(zip(found, expected, strict=True)):
        assert (keep == expected_keep).float().mean() >= (1 if is_exact else 0.99), index
        torch.testing.assert_close(loss, expected_loss, rtol=0 if device == "cpu" else 1e-3, atol=0)
        assert not any(torch.equal(keep, other) for _, other in found[:index])
    assert not is_exact or training.addrop.statistics() == eager.addrop.statistics()
    assert training.addrop.statistics().steps == steps
    assert training.addrop.state_dict()["samples"] == 3 * steps


@pytest.mark.parametrize("attribution", ["GA", "RD"])
def test_other_units_are_dropped_anew(attribution):
    options = dict(attribution=attribution, units=("attention", "feed-forward", "heads"))
    expected, training = Training("cpu", **options), Training("cpu", **options)
    steps = WARM_UP + 1 + REPLAYS
    losses = [loss for loss, _ in expected.uncaptured(steps)]
    assert [loss for loss, _ in training.captured(steps)] == losses
    assert training.addrop.statistics() == expected.addrop.statistics()
    assert training.addrop.statistics().heads.dropped > 0


def test_the_same_batch_is_masked_anew_in_each_replay():
    training = Training("cpu", attribution="RD")
    training.step()
    result, replay = run_and_capture(training.step, "cpu")
    seen = [training.found(result)[1]]
    for _ in range(REPLAYS):
        replay()
        seen.append(training.found(result)[1])
    valid = 3 * 4 * 20 * (20 + 12 + 20)
    for keep in seen:
        assert keep.sum() == pytest.approx(valid * (1 - 0.4 * 0.4), rel=0.02)
        for other in seen[: len(seen) // 2]:
            if other is not keep:  # dropped in both: as often as two that know nothing of one another
                assert valid - int((keep | other).sum()) == pytest.approx(valid * 0.16 * 0.16, rel=0.25)


def test_the_stand_in_repeats_what_the_host_decided():
    """The draws of a step whose seed is a number of the host: what capturable is for."""
    training = Training("cpu", attribution="RD", capturable=False)
    training.step()
    with pytest.raises(ValueError, match="create this ADDrop with capturable=True"):
        run_and_capture(training.step, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attrdrop.addrop.step.is_capturing", lambda: False)
        result, replay = run_and_capture(training.step, "cpu")
    first = training.found(result)[1]
    replay()
    assert torch.equal(training.found(result)[1], first)


def test_dropout_of_attention_is_drawn_anew():
    """Without AD-DROP's own draws, and without learning."""
    training = Training("cpu", dropout=0.4, attribution="RD", q=1e-9)
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.step()
    result, replay = run_and_capture(training.step, "cpu")
    losses = {float(result[0])}
    for _ in range(REPLAYS):
        replay()
        losses.add(float(result[0]))
    assert len(losses) == 1 + REPLAYS


def test_a_step_is_that_of_later_samples():
    """Step s of b samples: the seed of step 0, and ids from s b on."""
    training, other = Training("cpu"), Training("cpu", capturable=False)
    training.addrop.load_state_dict({"epoch": 1, "step": 7, "calls": 0, "samples": 3 * 7})
    masks = training.addrop.attribute(**training.inputs)
    assert torch.equal(masks.draws.sample_ids, torch.arange(21, 24))
    assert masks.draws.seed == derive_seed(0, 0)
    first = Training("cpu").addrop.attribute(**training.inputs)
    expected = other.addrop.attribute(**training.inputs)
    assert all(torch.equal(a, b) for a, b in zip(bits_of(first), bits_of(expected), strict=True))


def test_the_place_in_training_is_kept():
    training = Training("cpu")
    training.uncaptured(2)
    state = training.addrop.state_dict()
    assert state == {"epoch": 1, "step": 0, "calls": 0, "samples": 6}  # attribute counts no calls
    resumed = Training("cpu")
    resumed.addrop.load_state_dict(state)
    ids = [t.addrop.attribute(**t.inputs).draws.sample_ids for t in (training, resumed)]
    assert torch.equal(*ids)
    training.addrop.load_state_dict({**state, "samples": 0})
    assert training.addrop.attribute(**training.inputs).draws.sample_ids.tolist() == [0, 1, 2]


def test_plain_steps_count_samples_too():
    training = Training("cpu", cross_tuning=True)
    training.addrop.start_epoch(1)
    assert training.addrop.attribute(**training.inputs) is None
    training.addrop.start_epoch(2)
    assert training.addrop.attribute(**training.inputs).draws.sample_ids.tolist() == [3, 4, 5]


def test_statistics_start_anew_where_a_graph_knows_them():
    training = Training("cpu")
    training.step()
    _, replay = run_and_capture(training.step, "cpu")
    training.addrop.reset_statistics()
    assert training.addrop.statistics().steps == training.addrop.statistics().valid == 0
    replay()
    assert training.addrop.statistics().steps == 1
    assert training.addrop.statistics().valid == 3 * 4 * 20 * (20 + 12 + 20)


def test_a_step_comes_before_the_capture():
    training = Training("cpu", attribution="RD")
    with pytest.raises(RuntimeError, match="run one such step before capturing it in a CUDA graph"):
        run_and_capture(training.step, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attribution="IGA"), "capturable must be False if attribution is 'IGA'"),
        (dict(p=lambda step: 0.3), "capturable must be False if p changes with the step"),
        (dict(p=lambda step: 0.3, q=lambda step: 0.3), "capturable must be False if p and q change with the step"),
    ],
)
def test_what_a_graph_would_freeze_is_refused(options, message):
    model = build("bert")
    ADDrop(model, **options)
    with pytest.raises(ValueError, match=message):
        ADDrop(model, capturable=True, **options)


def test_a_target_that_waits_for_the_device_is_refused():
    training = Training("cpu", name="bert-tokens")
    training.step()
    with pytest.raises(ValueError, match="target must be a callable where a CUDA graph"):
        run_and_capture(training.step, "cpu")


@pytest.mark.parametrize(
    ("kind", "inputs"), [(RelDrop, torch.zeros(2, 3, 8, 8)), (RelDropPoints, torch.zeros(2, 8, 3))]
)
def test_reldrop_is_called_before_a_graph(kind, inputs):
    reldrop = kind(nn.Identity(), rule="random")
    with capturing(), pytest.raises(RuntimeError, match=f"{kind.__name__} draws on the host"):
        reldrop(inputs, torch.zeros(2, dtype=torch.int64))
