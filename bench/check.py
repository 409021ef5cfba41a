"""Whether something got slower: ratios of small cases, in processor time of one thread, against stored ones.

`python -m bench.check` compares and ends with status 1 where a ratio grew by more than its spread. `--store` writes
what it finds to bench/check.csv, a row per case and instruction set. Ratios are to torch's own work in the
same round, so that machines of one instruction set can be compared.
"""

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from attrdrop import keep_mask, masked_attention
from bench import rows, timing
from bench.steps import images, text

STORED = timing.ROOT / "bench" / "check.csv"
CPU = torch.device("cpu")
LEAST = 0.03  # a smaller difference is never told of
Pair = tuple[Callable[[], object], Callable[[], object]]


@dataclass(frozen=True)
class Ratio:
    """Of a case's rounds: the median and the quartiles."""

    case: str
    isa: str
    ratio: float
    low: float
    high: float
    torch: str
    commit: str

    @property
    def spread(self) -> float:
        """Half of the distance of the quartiles, to the median."""
        return (self.high - self.low) / 2 / self.ratio

    def is_slower_than(self, before: "Ratio") -> bool:
        """By more than both spreads together."""
        return self.ratio / before.ratio - 1 > max(LEAST, self.spread + before.spread)


def attention(train: bool) -> Pair:
    """masked_attention under AD-DROP's mask, to torch's attention without a mask."""
    q, k, v = (torch.randn(2, 12, 512, 32, requires_grad=train) for _ in range(3))
    keep = keep_mask(torch.randn_like(q), v, p=0.3, q=0.3, seed=1)

    def run(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return (lambda: call().sum().backward()) if train else call

    return (
        run(lambda: masked_attention(q, k, v, keep)),
        run(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)),
    )


def selection() -> Pair:
    """keep_mask, to the product that it ranks."""
    x, y = torch.randn(2, 12, 512, 64), torch.randn(2, 12, 512, 64)
    return lambda: keep_mask(x, y, p=0.3, q=0.3, seed=1), lambda: x @ y.mT


def text_step(n: int, arm: str = "ADDrop") -> Pair:
    """A step of AD-DROP, to a plain one."""
    settings = text.Settings(model="bert-4x384", batch=512 // n, n=n, attention_dropout=0, threads=1)
    return text.BENCH.build(settings, arm), text.BENCH.build(settings, "plain")


def image_step(arm: str) -> Pair:
    """A step of RelDrop, to a plain one."""
    settings = images.Settings(model="resnet10", batch=16, threads=1)
    return images.BENCH.build(settings, arm), images.BENCH.build(settings, "plain")


CASES: Mapping[str, Callable[[], Pair]] = {
    "masked_attention, forward": lambda: attention(False),
    "masked_attention, train": lambda: attention(True),
    "keep_mask": selection,
    "AD-DROP step, n 128": lambda: text_step(128),
    "AD-DROP step, n 512": lambda: text_step(512),
    "AD-DROP step, n 512, AA": lambda: text_step(512, "ADDrop, AA"),
    "RelDrop step, z+": lambda: image_step("z+, whole batch"),
    "RelDrop step, epsilon": lambda: image_step("epsilon, whole batch"),
}


def measure(case: str, seconds: float) -> Ratio:
    """One case, its two calls in turns."""
    torch.manual_seed(0)
    call, base = CASES[case]()
    times = timing.interleave({"ours": call, "base": base}, CPU, budget=seconds, rounds=(7, 60), clock="processor")
    low, ratio, high = np.quantile(np.divide(times["ours"].samples, times["base"].samples), (0.25, 0.5, 0.75))
    isa = json.loads(torch.ops.attrdrop.build_info())["isa"]
    return Ratio(case, isa, float(ratio), float(low), float(high), torch.__version__, rows.commit())


def load(path: Path) -> dict[tuple[str, str], Ratio]:
    """What is stored, by case and instruction set."""
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        found = [Ratio(**{**row, **{name: float(row[name]) for name in ("ratio", "low", "high")}})
                 for row in csv.DictReader(stream)]  # fmt: skip
    return {(row.case, row.isa): row for row in found}


def store(found: list[Ratio], path: Path) -> None:
    """In place of the same cases of the same instruction set."""
    kept = load(path) | {(row.case, row.isa): row for row in found}
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Ratio)], lineterminator="\n")
        writer.writeheader()
        for row in kept.values():
            numbers = {name: f"{getattr(row, name):.4g}" for name in ("ratio", "low", "high")}
            writer.writerow(asdict(row) | numbers)


def compare(found: list[Ratio], stored: Mapping[tuple[str, str], Ratio], console: Console) -> list[str]:
    """Prints a table; the cases that got slower."""
    table = Table(title="processor time to torch's own work, one thread", title_justify="left")
    for column in ("case", "stored", "now", "quartiles", ""):
        table.add_column(column, justify="left" if column in ("case", "") else "right")
    slower = []
    for row in found:
        before = stored.get((row.case, row.isa))
        verdict = "not stored" if before is None else "slower" if row.is_slower_than(before) else "as before"
        if before is not None and before.is_slower_than(row):
            verdict = "faster"
        if verdict == "slower":
            slower.append(row.case)
        known = "" if before is None else f"{before.ratio:.2f}"
        table.add_row(row.case, known, f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}", verdict)
    console.print(table)
    return slower


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="; ".join(CASES))
    parser.add_argument("--seconds", type=float, default=10, help="budget of a case")
    parser.add_argument("--stored", type=Path, default=STORED, help="file of the stored ratios")
    parser.add_argument("--store", action="store_true", help="write what is found there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = [measure(case, options.seconds) for case in options.cases]
    slower = compare(found, load(options.stored), Console())
    if options.store:
        store(found, options.stored)
        return 0
    if slower:
        Console().print(f"Slower by more than the spread: {'; '.join(slower)}. Measure again on a quiet machine first.")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
