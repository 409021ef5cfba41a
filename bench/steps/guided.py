"""What benchmarks of RelDrop's training steps share: arms are transforms of the batch, trained with SGD.

Further arms are the attribution of the whole batch without a training step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attrdrop import lrp
from bench.run import backend_of
from bench.steps.skeleton import Steps, training_step

Transform = Callable[[Tensor, Tensor], Any]  # inputs and labels to the model's input, or the tuple of its arguments


@dataclass(frozen=True, kw_only=True)
class GuidedSteps(Steps):
    """arms: of a model and settings, transforms. alone: attributions. ops: whose backends are noted, by their use."""

    build_model: Callable[[Any], nn.Module]
    build_batch: Callable[[Any], tuple[Tensor, Tensor]]
    arms: Mapping[str, Callable[[nn.Module, Any], Transform]]
    alone: Mapping[str, lrp.Rule]
    ops: Mapping[str, str]

    @property
    def every(self) -> tuple[str, ...]:
        return (*self.arms, *self.alone)

    def step(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """A callable that trains on one batch and returns the loss."""
        model = self.build_model(settings)
        transform = self.arms[arm](model, settings)
        inputs, labels = self.build_batch(settings)

        def loss() -> Tensor:
            given = transform(inputs, labels)
            return cross_entropy(model(*given) if isinstance(given, tuple) else model(given), labels)

        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        return training_step(loss, optimizer, settings)

    def attribution(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """A callable that attributes one batch and returns its relevance."""
        model = self.build_model(settings)
        inputs, labels = self.build_batch(settings)

        def attribute() -> Tensor:
            with settings.autocast():
                return lrp.relevance(model, inputs, labels, rule=self.alone[arm])

        return attribute

    def build(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        if arm in self.alone:
            return self.attribution(settings, arm)
        step, steps = self.step(settings, arm), self.steps.get(arm, 1)
        return lambda: torch.stack([step() for _ in range(steps)])

    def ran(self, settings: Any, arm: str, call: Callable[[], object]) -> str:
        """The backends of the ops in a call of ours, or zennit's version."""
        if arm.startswith("zennit"):
            return f"zennit {version('zennit')}"
        taken = {what: backend_of(op, call) for what, op in self.ops.items()}
        return ", ".join(f"{what} {backend}" for what, backend in taken.items() if backend != "torch") or "torch"


def plain(model: nn.Module, settings: Any) -> Transform:
    """Ordinary training."""
    return lambda inputs, labels: inputs
