"""The benchmark of RelDrop's training steps: what each arm does to images, its rows, its rival and its arguments."""

import json
import math
from dataclasses import replace

import pytest
import torch
from bench_setup import CPU, compiled_kernels, one_thread  # noqa: F401

from attrdrop import lrp
from bench import plot, rows, timing
from bench.steps import images as step_images
from bench.steps import zennit_peer

ZENNIT = [arm for arm in step_images.ARMS if arm.startswith("zennit")]
OURS = [arm for arm in step_images.BENCH.every if arm not in ZENNIT]
TINY = step_images.Settings(model="resnet10", batch=6, size=16)

needs_zennit = pytest.mark.skipif(zennit_peer.missing() is not None, reason="needs zennit 0.5.1")


def measured(*arms, settings=TINY):
    """The rows of some arms, hastily timed."""
    return step_images.BENCH.measure(settings, list(arms), 0, memory=False)


def transformed(arm, settings=TINY):
    """The model, the batch, and the images as the arm gives them to the model."""
    model = step_images.build_model(settings)
    images, labels = step_images.build_batch(settings)
    return model, images, step_images.ARMS[arm](model, settings)(images, labels)


def occluded(images, found):
    """By image, whether its changed pixels are 0 and fill a rectangle; None where it is as it was."""
    results = []
    for before, after in zip(images, found, strict=True):
        changed = (before != after).any(0)
        if not changed.any():
            results.append(None)
            continue
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        block = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        results.append(bool(changed[block].all()) and bool((after[:, changed] == 0).all()))
    return results


@pytest.mark.slow
def test_every_arm_fills_its_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(zennit_peer, "missing", lambda: ImportError("No module named 'zennit'"))
    output = tmp_path / "rows.csv"
    arguments = ["--model", "resnet10", "--batch", "6", "--size", "16", "--device", "cpu", "--seconds", "0"]
    assert step_images.main([*arguments, "--no-memory", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{arm}: left out" in printed for arm in ZENNIT)
    found = plot.load([output])
    assert list(found.variant) == OURS
    assert set(found.op) == {"step images"}
    assert set(found["mode"]) == {"contiguous"}
    assert set(found["shape"]) == {"resnet10 B6 16x16"}
    assert (found[["median_ms", "low_ms", "high_ms", "ratio"]] > 0).all(axis=None)
    by_arm = found.set_index("variant")
    assert by_arm.ratio["plain"] == 1
    assert by_arm.backend["plain"] == "torch"
    assert by_arm.backend["random erasing"].startswith("blocks ")
    assert by_arm.backend["z+, whole batch"].startswith("gates ")


def test_tables_and_figures_of_both_steps(tmp_path):
    steps = [replace(row, peak_mb=peak) for row, peak in zip(measured("plain", "z+, p=.5"), (10, 15), strict=True)]
    steps += [replace(row, op="step", mode="attention dropout 0") for row in steps]
    rows.append(steps, tmp_path / "rows.csv")
    found = plot.load([tmp_path / "rows.csv"])
    table = plot.markdown(found)
    first, second = table.split("\n\n")[1:]
    assert first.startswith("| step | arm |")
    assert second.startswith("| step images | arm |")
    assert "| resnet10 B6 16x16, float32, contiguous | z+, p=.5 |" in second
    assert second.endswith("| 15 | 1.50x |")
    drawn = {path.name.rsplit("-step", 1)[1] for path in plot.draw(found, tmp_path)}
    assert drawn == {".png", "-images.png"}


@pytest.mark.parametrize("arm", OURS)
def test_an_arm_trains_in_bfloat16_and_channels_last(arm):
    settings = replace(TINY, batch=4, dtype="bfloat16", channels_last=True)
    found = step_images.BENCH.build(settings, arm)()
    assert found.isfinite().all()
    assert found.shape == ((4, 3, 16, 16) if arm in step_images.ALONE else (1,))


def test_a_step_trains():
    step = step_images.BENCH.build(TINY, "z+, whole batch")
    losses = torch.cat([step() for _ in range(3)])
    assert losses.isfinite().all()
    assert len(set(losses.tolist())) == 3


@pytest.mark.parametrize("arm", [arm for arm in OURS if arm in step_images.ARMS])
def test_images_change_in_blocks_alone(arm):
    settings = replace(TINY, batch=40 if "p=.5" in arm or arm in ("RelDrop", "random erasing") else 6)
    _, images, found = transformed(arm, settings)
    results = occluded(images, found)
    assert False not in results
    share = sum(result is not None for result in results) / len(results)
    if arm == "plain":
        assert share == 0
    elif "whole batch" in arm:
        assert share == 1
    else:
        assert 0.25 < share < 0.75


def test_arms_attribute_what_they_say():
    settings = replace(TINY, batch=200, size=8)

    def attributed(arm):
        transform = step_images.ARMS[arm](step_images.build_model(settings), settings)
        transform(*step_images.build_batch(settings))
        return transform.statistics().attributed / settings.batch

    assert attributed("random erasing") == 0
    assert attributed("z+, whole batch") == 1
    assert 0.35 < attributed("epsilon, p=.5") < 0.65
    assert 0.15 < attributed("RelDrop") < 0.35


def test_a_sample_of_two_steps_counts_half(monkeypatch):
    monkeypatch.setitem(step_images.BENCH.steps, "random erasing", 4)
    monkeypatch.setattr(
        timing, "interleave", lambda calls, device, **_: {arm: timing.Timing((8.0, 8.0)) for arm in calls}
    )
    assert step_images.BENCH.build(TINY, "random erasing")().shape == (4,)
    assert [(row.median_ms, row.ratio) for row in measured("plain", "random erasing")] == [(8.0, 1.0), (2.0, 0.25)]


def test_peaks_are_taken_in_fresh_processes(monkeypatch):
    asked = []

    def answer(module, arguments):
        asked.append((module, arguments[1], json.loads(arguments[3])["batch"]))
        return {"peak_mb": 3.0}

    monkeypatch.setattr(timing, "in_fresh_process", answer)
    assert step_images.BENCH.peaks(TINY, ["plain", "RelDrop"]) == {"plain": 3.0, "RelDrop": 3.0}
    assert asked == [("bench.steps.images", "plain", 6), ("bench.steps.images", "RelDrop", 6)]


def test_large_images_get_the_stem_with_pooling():
    large = replace(TINY, size=72)
    assert (large.classes, TINY.classes) == (1000, 10)
    assert len(step_images.build_model(large).stem) == len(step_images.build_model(TINY).stem) + 1


def test_block_sizes_of_the_rival_lie_within_the_image():
    for height, width in [zennit_peer._size(9, 16) for _ in range(200)]:
        assert 0 < height < 9
        assert 0 < width < 16
    areas = [math.prod(zennit_peer._size(64, 64)) / 64**2 for _ in range(200)]
    assert 0.015 < min(areas) < 0.05 < 0.35 < max(areas) < 0.42


@needs_zennit
@pytest.mark.parametrize(("model", "size"), [("resnet10", 16), ("resnet50", 72)])
def test_zennit_agrees_with_ours_and_leaves_the_model_alone(model, size):
    settings = replace(TINY, model=model, size=size, batch=2)
    trained = step_images.build_model(settings)
    images, labels = step_images.build_batch(settings)
    rival = zennit_peer.Relevance(trained, torch.float32)
    trained(images)  # the running statistics move: the copy must follow
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    expected = lrp.relevance(trained, images, labels)
    for _ in range(2):
        found = rival(trained, images, labels)
        assert (found - expected).norm() < 0.01 * expected.norm()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(weight.grad is None for weight in trained.parameters())
    assert trained.training


@needs_zennit
@pytest.mark.parametrize("arm", ZENNIT)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arms_of_zennit_train(arm, dtype):
    settings = replace(TINY, dtype=dtype)
    rows = measured("plain", arm, settings=settings)
    assert [row.variant for row in rows] == ["plain", arm]
    assert rows[1].backend.startswith("zennit 0.")
    assert math.isfinite(rows[1].ratio)
    _, images, found = transformed(arm, settings)
    assert occluded(images, found) == [True] * settings.batch


@needs_zennit
def test_the_released_form_draws_every_other_batch():
    model, (images, labels) = step_images.build_model(TINY), step_images.build_batch(TINY)
    transform = step_images.ARMS[step_images.RELEASED](model, TINY)
    changed = [not torch.equal(transform(images, labels), images) for _ in range(4)]
    assert changed == [True, False, True, False]
    assert step_images.BENCH.build(TINY, step_images.RELEASED)().shape == (2,)
