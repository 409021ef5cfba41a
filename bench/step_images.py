"""Whole RelDrop training steps against the plain step: time and peak memory.

Every arm is one transform of the images, forward, backward and SGD update on the same batch; arms take turns within a
round, and each ratio is the median over rounds of an arm's time to the plain step's in the same round. Two more arms
are the attribution of the whole batch without a training step.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attrdrop import RelDrop, lrp, models
from bench import rows, step_cli, timing, zennit_peer
from bench.run import backend_of, left_out

OP = "step images"
MODELS = {"resnet10": models.resnet10, "resnet18": models.resnet18, "resnet50": models.resnet50}
LARGE = 64  # pixels: larger images get the stem with pooling, and 1000 classes instead of 10


@dataclass(frozen=True)
class Settings:
    """One benchmark of steps on images."""

    model: str = "resnet18"
    batch: int = 128
    size: int = 32
    channels_last: bool = False
    device: str = "cpu"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} {self.size}x{self.size}"

    @property
    def autocast(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def classes(self) -> int:
        return 1000 if self.size > LARGE else 10


def build_model(settings: Settings) -> models.ResNet:
    """A classifier with random weights, in training mode."""
    torch.manual_seed(0)
    model = MODELS[settings.model](settings.classes, small_images=settings.size <= LARGE)
    return model.to(settings.device, memory_format=settings.layout).train()


def build_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Normalised noise, and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(settings.batch, 3, settings.size, settings.size, generator=generator)
    labels = torch.randint(settings.classes, (settings.batch,), generator=generator)
    return images.to(settings.device, memory_format=settings.layout), labels.to(settings.device)


Transform = Callable[[Tensor, Tensor], Tensor]


def plain(model: nn.Module, settings: Settings) -> Transform:
    """Ordinary training."""
    return lambda images, labels: images


def ours(model: nn.Module, settings: Settings, **options: object) -> Transform:
    """attrdrop.RelDrop; guided alone where it is given a rule."""
    return RelDrop(model, **({"alpha": 0.0} if "rule" in options else {}), **options)


def zennit_relevance(model: nn.Module, settings: Settings) -> Transform:
    """RelDrop with relevance from zennit."""
    return RelDrop(model, p=1.0, alpha=0.0, rule=zennit_peer.Relevance(model, settings.autocast))


def zennit_released(model: nn.Module, settings: Settings) -> Transform:
    """zennit_peer.Released."""
    return zennit_peer.Released(model, settings.autocast)


EPSILON, ZPLUS = lrp.Epsilon(), lrp.EpsilonPlusFlat()
RELEASED = "zennit, as released, p=.5"
ARMS: dict[str, Callable[[nn.Module, Settings], Transform]] = {
    "plain": plain,
    "RelDrop": ours,
    "epsilon, whole batch": partial(ours, p=1.0, rule=EPSILON),
    "epsilon, p=.5": partial(ours, p=0.5, rule=EPSILON),
    "epsilon, p=.5, to stage 2": partial(ours, p=0.5, rule=EPSILON, stop_at="stages.1"),
    "z+, whole batch": partial(ours, p=1.0, rule=ZPLUS),
    "z+, p=.5": partial(ours, p=0.5, rule=ZPLUS),
    "z+, p=.5, to stage 2": partial(ours, p=0.5, rule=ZPLUS, stop_at="stages.1"),
    "gradient x input, whole batch": partial(ours, p=1.0, rule=lrp.GradientTimesInput()),
    "random erasing": partial(ours, p=0.5, alpha=1.0),
    "zennit, epsilon-plus-flat, whole batch": zennit_relevance,
    RELEASED: zennit_released,
}
ALONE = {"attribution alone, epsilon": EPSILON, "attribution alone, z+": ZPLUS}
STEPS = {RELEASED: 2}  # in a sample, where not one: every other batch is drawn as a whole
EVERY = (*ARMS, *ALONE)


def training_step(settings: Settings, arm: str) -> Callable[[], Tensor]:
    """A callable that trains on one batch and returns the loss."""
    model = build_model(settings)
    transform = ARMS[arm](model, settings)
    images, labels = build_batch(settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> Tensor:
        with torch.autocast(settings.device, settings.autocast, enabled=settings.autocast != torch.float32):
            loss = cross_entropy(model(transform(images, labels)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def attribution(settings: Settings, arm: str) -> Callable[[], Tensor]:
    """A callable that attributes one batch and returns its relevance."""
    model = build_model(settings)
    images, labels = build_batch(settings)

    def attribute() -> Tensor:
        with torch.autocast(settings.device, settings.autocast, enabled=settings.autocast != torch.float32):
            return lrp.relevance(model, images, labels, rule=ALONE[arm])

    return attribute


def build(settings: Settings, arm: str) -> Callable[[], Tensor]:
    """What a sample of the arm times; it returns a tensor to look at."""
    if arm in ALONE:
        return attribution(settings, arm)
    step, steps = training_step(settings, arm), STEPS.get(arm, 1)
    return lambda: torch.stack([step() for _ in range(steps)])


def peak_memory(settings: Settings, arm: str, calls: int = 3) -> float:
    """MiB above the loaded model at the peak of some calls; of steps, gradients and optimizer state included."""
    device = torch.device(settings.device)
    build(replace(settings, model="resnet10", batch=2), arm)()  # what is loaded at the first call
    gc.collect()
    call = build(settings, arm)

    def run() -> None:
        for _ in range(calls):
            call()

    return timing.cuda_peak(run, device) if device.type == "cuda" else timing.resident_peak(run)


def peaks(settings: Settings, arms: list[str]) -> dict[str, float]:
    """Peak memory by arm: on the CPU in a fresh process each; on CUDA here, where the allocator counts exactly."""
    found = {}
    for arm in arms:
        if settings.device == "cuda":
            found[arm] = peak_memory(settings, arm)
        else:
            arguments = ["--memory-of", arm, "--settings", json.dumps(asdict(settings))]
            found[arm] = timing.in_fresh_process("bench.step_images", arguments)["peak_mb"]
    return found


def ran(arm: str, call: Callable[[], object]) -> str:
    """The backends of the ops in a call of ours, or zennit's version."""
    if arm.startswith("zennit"):
        return f"zennit {version('zennit')}"
    gates: list[str] = []
    blocks = backend_of("occlude_blocks", lambda: gates.append(backend_of("relevance_gate_relu", call)))
    taken = {"gates": gates[0], "blocks": blocks}
    return ", ".join(f"{what} {backend}" for what, backend in taken.items() if backend != "torch") or "torch"


def runnable(arms: list[str]) -> list[str]:
    """The arms that can run here, having said what cannot."""
    error = zennit_peer.missing()
    lost = [arm for arm in arms if error is not None and arm.startswith("zennit")]
    for arm in lost:
        left_out(arm, error)
    return [arm for arm in arms if arm not in lost]


def measure(settings: Settings, arms: list[str], budget: float, memory: bool = True) -> list[rows.Row]:
    """One row per arm that can run."""
    device = torch.device(settings.device)
    arms = runnable(arms)
    peak = peaks(settings, arms) if memory else {}
    calls = {arm: build(settings, arm) for arm in arms}
    backends = {arm: ran(arm, call) for arm, call in calls.items()}
    samples = timing.interleave(calls, device, budget=budget, rounds=(5, 50))
    times = {
        arm: timing.Timing(tuple(ms / STEPS.get(arm, 1) for ms in found.samples)) for arm, found in samples.items()
    }
    return [
        rows.Row(
            **rows.environment(device),
            op=OP,
            mode="channels last" if settings.channels_last else "contiguous",
            variant=arm,
            backend=backends[arm],
            shape=str(settings),
            dtype=settings.dtype,
            median_ms=times[arm].median,
            low_ms=times[arm].low,
            high_ms=times[arm].high,
            ratio=times[arm].ratio(times["plain"]),
            ratio_to="plain",
            peak_mb=peak.get(arm),
        )
        for arm in arms
    ]


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/step_images.py", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--batch", type=_count, default=128)
    parser.add_argument("--size", type=_count, default=32, help="height and width of the images")
    parser.add_argument("--channels-last", action="store_true", help="memory format of model and images")
    step_cli.add_common(parser, EVERY)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and append."""
    return step_cli.run(parse(arguments), Settings, measure, peak_memory)


if __name__ == "__main__":
    raise SystemExit(main())
