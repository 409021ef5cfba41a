"""What the cheaper forms of an AD-DROP step change in its masks, on real sentences, and what they cost.

Every form is compared with the step that it stands for: the bits of its masks, the candidates (Eq. 6), and what it
ranks, as a relative error of the attributions. Only queries that the target depends on are counted. The model is
trained plainly for some steps first, as in a cross-tuned run. Times are processor time of one thread, in plain steps.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import attrdrop
from attrdrop.addrop import passes
from attrdrop.addrop.gradient import GradientPass1
from attrdrop.lab.text.models import load_model
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.tasks import load_task
from attrdrop.lab.text.training import Trainer
from bench.rows import environment

Options = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A cheaper form of a step, and the step it stands for."""

    name: str
    options: Options
    exact: Options


GA, IGA, JOINT = {"attribution": "GA"}, {"attribution": "IGA"}, {"iga_scope": "joint"}
LIMIT = IGA | {"iga_rule": "gauss", "iga_steps": 24}  # closer to the integral than m = 1000, for less
FORMS = [
    Form("keys in bfloat16", GA | {"keys": "bf16"}, GA),
    Form("pass 1 in bfloat16", GA | {"pass1_dtype": "bfloat16"}, GA),
    Form("pass 1 in bfloat16, keys in float32", GA | {"pass1_dtype": "bfloat16", "keys": "fp32"}, GA),
    Form("IGA, Riemann 20", IGA, LIMIT),
    *(Form(f"IGA, Gauss {m}", IGA | {"iga_rule": "gauss", "iga_steps": m}, LIMIT) for m in (4, 5, 6)),
    Form("joint IGA, Riemann 20", IGA | JOINT, LIMIT | JOINT),
    *(
        Form(f"joint IGA, Gauss {m}", IGA | JOINT | {"iga_rule": "gauss", "iga_steps": m}, LIMIT | JOINT)
        for m in (4, 5)
    ),
]


@dataclass(frozen=True)
class Row:
    """One form on one model. bits, candidates: shares of the valid positions that differ. plain_steps: its cost."""

    model: str
    batch: str
    form: str
    exact: str
    bits: float
    candidates: float
    error: float
    plain_steps: float | None = None


@dataclass(frozen=True)
class Ranked:
    """What a step ranked and what it made of it, by layer: attributions in float64, and bits, (B, H, n, n)."""

    scores: list[Tensor]
    bits: list[Tensor]


@contextlib.contextmanager
def noting_keep_mask() -> Iterator[list[tuple]]:
    """The calls of keep_mask in here, which makes all masks: the layer, x, y, weight and the mask."""
    found = []
    real = passes.keep_mask

    def noting(x: Tensor, y: Tensor, **rest: Any) -> attrdrop.KeepMask:
        mask = real(x, y, **rest)
        found.append((rest["layer"], x.double(), y.double(), rest["weight"], mask))
        return mask

    apart = mock.patch.object(GradientPass1, "_ranks_within", return_value=False)
    with apart, mock.patch.object(passes, "keep_mask", noting):
        yield found


def ranked(model: nn.Module, batch: dict[str, Tensor], options: Options) -> Ranked:
    """One pass 1 without dropout, so that forms are compared and not draws of dropout."""
    addrop = attrdrop.ADDrop(model, pass1="eval", cross_tuning=False, **options)
    with noting_keep_mask() as calls:
        addrop.attribute(**batch)
    scores, bits = [], []
    for _, x, y, weight, mask in sorted(calls, key=lambda call: call[0]):
        products = x @ y.transpose(-1, -2)
        if weight is not None:
            q, k = weight.q.double(), weight.k.double()
            products = products * (weight.scale * q @ k.transpose(-1, -2) - weight.lse.double().unsqueeze(-1)).exp()
        scores.append(products)
        bits.append(attrdrop.unpack_mask(mask.rows, mask.shape[3]))
    return Ranked(scores, bits)


class Comparison:
    """One model on one batch, in which every form and every exact step runs once."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]):
        self.model, self.batch = model, batch
        self._known: dict[str, Ranked] = {}
        valid = batch["attention_mask"].bool()[:, None, None, :]
        live = [x.abs().amax(-1, keepdim=True) > 0 for x in self.of(GA).scores]
        self._counted = [valid & rows for rows in live]  # of each layer (B, H, n, n)

    def of(self, options: Options, **more: Any) -> Ranked:
        options = options | more
        if str(options) not in self._known:
            self._known[str(options)] = ranked(self.model, self.batch, options)
        return self._known[str(options)]

    def moved(self, form: Form, **draw: float) -> float:
        """The share of valid positions of live queries whose bit is another one."""
        pairs = zip(self.of(form.options, **draw).bits, self.of(form.exact, **draw).bits, self._counted, strict=True)
        moved = [((a != b) & counted).sum() for a, b, counted in pairs]
        return int(sum(moved)) / int(sum(counted.sum() for counted in self._counted))

    def error(self, form: Form) -> float:
        """The relative error of the attributions, root of the sums of squares, in the layer where it is largest."""
        errors = []
        pairs = zip(self.of(form.options).scores, self.of(form.exact).scores, self._counted, strict=True)
        for found, expected, counted in pairs:
            found, expected = found * counted, expected * counted
            errors.append(float((found - expected).norm() / expected.norm()))
        return max(errors)


def trained(name: str, steps: int, batch: int, length: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A classifier of sentences after some plain steps, and the next batch, of the longest of its texts."""
    settings = Settings(model=name, batch_size=batch, max_length=length, device="cpu")
    trainer = Trainer(settings, load_task("rotten-tomatoes"))
    model, _ = load_model("ad-drop", 0, settings, trainer.kind)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=settings.lr)
    batches = trainer.batches(seed=0)
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, dict(next(batches))


def costs(model: nn.Module, batch: dict[str, Tensor], forms: list[Options], rounds: int) -> list[float]:
    """Median processor time of whole steps under each of the options over that of plain ones, in turn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    steps: list[Any] = [model, *(attrdrop.ADDrop(model, cross_tuning=False, **options) for options in forms)]
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):  # the first, which compiles and fills caches, is left out
        for step, taken in zip(steps, seconds, strict=True):
            start = time.process_time()
            step(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.process_time() - start)
    plain, *others = np.array(seconds)[:, 1:]
    return [float(np.median(taken / plain)) for taken in others]


def measured(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a model."""
    model, batch = trained(name, options.trained, options.batch, options.length)
    compared = Comparison(model, batch)
    shape = "x".join(map(str, batch["input_ids"].shape))
    forms = [form for form in FORMS if options.forms is None or form.name in options.forms]
    times = costs(model, batch, [form.options for form in forms], options.rounds) if options.rounds else None
    return [
        Row(
            name,
            shape,
            form.name,
            str(form.exact),
            compared.moved(form),
            compared.moved(form, q=1.0),
            compared.error(form),
            None if times is None else times[index],
        )
        for index, form in enumerate(forms)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["bert-tiny", "minilm"])
    parser.add_argument("--trained", type=int, default=50, help="plain steps before")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="longer texts are cut to so many tokens")
    parser.add_argument("--rounds", type=int, default=0, help="of timed steps; 0 times nothing")
    parser.add_argument("--forms", nargs="+", choices=sorted({form.name for form in FORMS}), help="default: all")
    parser.add_argument("--output", type=Path, help="a CSV that the rows are added to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.model:
        rows = [asdict(row) | {"plain steps before": options.trained} for row in measured(name, options)]
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2e}".format))
        if options.output is not None:
            known = environment(torch.device("cpu"))
            table = pd.DataFrame([known | row for row in rows])
            table.to_csv(options.output, mode="a", header=not options.output.exists(), index=False)


if __name__ == "__main__":
    main()
