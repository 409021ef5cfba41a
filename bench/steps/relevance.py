"""Relevance of a batch against the plain gradient, beside zennit, captum and LXT: time and peak memory.

ResNet-18: epsilon and epsilon-plus-flat. A Llama of four layers: AttnLRP of the embeddings for the next token. Captured
arms run what lrp.capture has recorded. The plain arm is the gradient of the same outputs; no arm takes gradients of
weights.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from attrdrop import lrp, models
from bench import rows
from bench.run import backend_of
from bench.steps import relevance_peers
from bench.steps.cli import count, option
from bench.steps.skeleton import Steps, StepSettings

EPSILON, PLUS_FLAT = lrp.Epsilon(relevance_peers.EPS), lrp.EpsilonPlusFlat()
OURS: dict[str, lrp.Rule] = {"epsilon": EPSILON, "epsilon-plus-flat": PLUS_FLAT, "AttnLRP": lrp.Zero()}
"""Ours, named as the captured ones and the rivals are after their comma."""
CAPTURED = {f"captured, {name}": rule for name, rule in OURS.items()}
OF = {"resnet18": ("epsilon", "epsilon-plus-flat"), "llama": ("AttnLRP",)}


@dataclass(frozen=True)
class Settings(StepSettings):
    """One benchmark of relevance."""

    model: str = option("resnet18", choices=OF)
    batch: int = option(8, type=count)
    size: int = option(32, type=count, help="height and width of images, or tokens of a text")

    def __str__(self) -> str:
        what = f"{self.size}x{self.size}" if self.model == "resnet18" else f"n{self.size}"
        return f"{self.model} B{self.batch} {what}"

    @property
    def mode(self) -> str:
        return "relevance"


def build_model(settings: Settings) -> nn.Module:
    torch.manual_seed(0)
    if settings.model == "resnet18":
        return models.resnet18(10, small_images=True).to(settings.device).eval()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, intermediate_size=688,
        vocab_size=1000,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(settings.device).eval()


def build_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Noise as images or embeddings, and classes."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, settings.size, settings.size) if settings.model == "resnet18" else (settings.size, 256)
    x = torch.randn(settings.batch, *shape, generator=generator)
    return x.to(settings.device), torch.randint(10, (settings.batch,), generator=generator).to(settings.device)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) if isinstance(model, models.ResNet) else model(inputs_embeds=x).logits[:, -1]


def plain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    model = model.requires_grad_(False)

    def call(x: Tensor, target: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(logits_of(model, x).gather(1, target[:, None]).sum(), x)[0]

    return call


def asked(model: nn.Module, x: Tensor) -> tuple[Any, dict[str, Any]]:
    """The inputs of our functions, and their further arguments."""
    return (x, {}) if isinstance(model, models.ResNet) else ({"inputs_embeds": x}, {"position": -1})


def ours(model: nn.Module, rule: lrp.Rule) -> Callable[[Tensor, Tensor], Tensor]:
    def call(x: Tensor, target: Tensor) -> Tensor:
        inputs, options = asked(model, x)
        return lrp.relevance(model, inputs, target, rule=rule, **options)

    return call


def captured(model: nn.Module, rule: lrp.Rule) -> Callable[[Tensor, Tensor], Tensor]:
    """The first call captures, which counts for the peak."""
    made: list[Callable[[Any, Tensor], Tensor]] = []

    def call(x: Tensor, target: Tensor) -> Tensor:
        inputs, options = asked(model, x)
        if not made:
            made.append(lrp.capture(model, inputs, target, rule=rule, **options))
        return made[0](inputs, target)

    return call


class RelevanceSteps(Steps):
    """Arms are ways to take relevance."""

    def build(self, settings: Settings, arm: str) -> Callable[[], Tensor]:
        model, batch = build_model(settings), build_batch(settings)
        if arm == "plain":
            attribute = plain(model)
        elif arm in OURS:
            attribute = ours(model, OURS[arm])
        elif arm in CAPTURED:
            attribute = captured(model, CAPTURED[arm])
        else:
            attribute = relevance_peers.PEERS[arm](model)
        return lambda: attribute(*batch)

    def ran(self, settings: Settings, arm: str, call: Callable[[], object]) -> str:
        """The backend of our gates, or the version of the rival."""
        if arm in relevance_peers.PEERS:
            package = arm.partition(",")[0].lower()
            return f"{package} {version(package)}"
        return backend_of("relevance_gate", call)

    def measure(self, settings: Settings, arms: list[str], budget: float, memory: bool = True) -> Iterator[rows.Row]:
        fitting = [arm for arm in arms if arm == "plain" or arm.partition(", ")[2] in OF[settings.model]]
        fitting += [arm for arm in arms if arm in OF[settings.model]]
        return super().measure(settings, sorted(fitting, key=arms.index), budget, memory)


ARMS: dict[str, Any] = {"plain": plain, **OURS, **CAPTURED, **relevance_peers.PEERS}
BENCH = RelevanceSteps(
    op="relevance",
    module="bench.steps.relevance",
    description=__doc__,
    settings=Settings,
    arms=ARMS,
    smallest=lambda settings: replace(settings, batch=1, size=8),
    missing=relevance_peers.missing,
    has_gflop=False,
)

parse, main = BENCH.parse, BENCH.main

if __name__ == "__main__":
    raise SystemExit(main())
