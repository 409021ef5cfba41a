"""What benchmarks of RelDrop's training steps share: arms in turns, ratios to the plain step, peak memory.

Every arm is one transform of the batch, forward, backward and SGD update on the same batch; arms take turns within a
round, and each ratio is the median over rounds of an arm's time to the plain step's in the same round. Further arms are
the attribution of the whole batch without a training step.
"""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attrdrop import lrp
from bench import rows, timing
from bench.run import backend_of, left_out
from bench.steps import cli as step_cli

Transform = Callable[[Tensor, Tensor], Any]  # inputs and labels to the model's input, or the tuple of its arguments


@dataclass(frozen=True)
class GuidedSteps:
    """One benchmark; settings have `device`, `dtype` and `mode`, and are written as the shape of the rows.

    smallest: of given settings, those of a small case, which loads at its first call what others need not count.
    ops: of which the backends are noted, by what they are for. steps: in a sample of an arm, where not one.
    missing: why an arm cannot run here.
    """

    op: str
    module: str
    build_model: Callable[[Any], nn.Module]
    build_batch: Callable[[Any], tuple[Tensor, Tensor]]
    arms: Mapping[str, Callable[[nn.Module, Any], Transform]]
    alone: Mapping[str, lrp.Rule]
    smallest: Callable[[Any], Any]
    ops: Mapping[str, str]
    steps: Mapping[str, int] = field(default_factory=dict)
    missing: Callable[[str], Exception | None] = lambda arm: None

    def training_step(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """A callable that trains on one batch and returns the loss."""
        model = self.build_model(settings)
        transform = self.arms[arm](model, settings)
        inputs, labels = self.build_batch(settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

        def step() -> Tensor:
            with autocast(settings):
                given = transform(inputs, labels)
                loss = cross_entropy(model(*given) if isinstance(given, tuple) else model(given), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    def attribution(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """A callable that attributes one batch and returns its relevance."""
        model = self.build_model(settings)
        inputs, labels = self.build_batch(settings)

        def attribute() -> Tensor:
            with autocast(settings):
                return lrp.relevance(model, inputs, labels, rule=self.alone[arm])

        return attribute

    def build(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """What a sample of the arm times; it returns a tensor to look at."""
        if arm in self.alone:
            return self.attribution(settings, arm)
        step, steps = self.training_step(settings, arm), self.steps.get(arm, 1)
        return lambda: torch.stack([step() for _ in range(steps)])

    def peak_memory(self, settings: Any, arm: str, calls: int = 3) -> float:
        """MiB above the loaded model at the peak of some calls; of steps, gradients and optimizer state included."""
        device = torch.device(settings.device)
        self.build(self.smallest(settings), arm)()
        gc.collect()
        call = self.build(settings, arm)

        def run() -> None:
            for _ in range(calls):
                call()

        return timing.cuda_peak(run, device) if device.type == "cuda" else timing.resident_peak(run)

    def peaks(self, settings: Any, arms: list[str]) -> dict[str, float]:
        """Peak memory by arm: on the CPU in a fresh process each; on CUDA here, where the allocator counts exactly."""
        found = {}
        for arm in arms:
            if settings.device == "cuda":
                found[arm] = self.peak_memory(settings, arm)
            else:
                arguments = ["--memory-of", arm, "--settings", json.dumps(asdict(settings))]
                found[arm] = timing.in_fresh_process(self.module, arguments)["peak_mb"]
        return found

    def ran(self, arm: str, call: Callable[[], object]) -> str:
        """The backends of the ops in a call of ours, or zennit's version."""
        if arm.startswith("zennit"):
            return f"zennit {version('zennit')}"
        taken = {what: backend_of(op, call) for what, op in self.ops.items()}
        return ", ".join(f"{what} {backend}" for what, backend in taken.items() if backend != "torch") or "torch"

    def runnable(self, arms: list[str]) -> list[str]:
        """The arms that can run here, having said what cannot."""
        reasons = {arm: self.missing(arm) for arm in arms}
        for arm, reason in reasons.items():
            if reason is not None:
                left_out(arm, reason)
        return [arm for arm, reason in reasons.items() if reason is None]

    def measure(self, settings: Any, arms: list[str], budget: float, memory: bool = True) -> list[rows.Row]:
        """One row per arm that can run."""
        device = torch.device(settings.device)
        arms = self.runnable(arms)
        peak = self.peaks(settings, arms) if memory else {}
        calls = {arm: self.build(settings, arm) for arm in arms}
        backends = {arm: self.ran(arm, call) for arm, call in calls.items()}
        samples = timing.interleave(calls, device, budget=budget, rounds=(5, 50))
        times = {
            arm: timing.Timing(tuple(ms / self.steps.get(arm, 1) for ms in found.samples))
            for arm, found in samples.items()
        }
        return step_cli.rows_of(settings, self.op, settings.mode, times, backends, peak)


def autocast(settings: Any) -> torch.autocast:
    """To the type of the settings."""
    dtype = getattr(torch, settings.dtype)
    return torch.autocast(settings.device, dtype, enabled=dtype != torch.float32)


def plain(model: nn.Module, settings: Any) -> Transform:
    """Ordinary training."""
    return lambda inputs, labels: inputs
