"""The command line that benchmarks of training steps share."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench import rows, timing


def add_common(parser: argparse.ArgumentParser, arms: Iterable[str], unless_named: Iterable[str] = ()) -> None:
    """Options of every such benchmark; --memory-of is how a fresh process is asked for the peak of one arm."""
    arms = list(arms)
    usual = [arm for arm in arms if arm not in set(unless_named)]
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="autocast to this type")
    parser.add_argument("--arms", nargs="+", choices=arms, default=usual, metavar="ARM", help="; ".join(arms))
    parser.add_argument("--seconds", type=float, default=60, help="budget of the timing")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks")
    parser.add_argument("--output", type=Path, help="CSV to append to (default: bench/results/<device>.csv)")
    parser.add_argument("--memory-of", choices=arms, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def rows_of(
    settings: Any,
    op: str,
    mode: str,
    times: Mapping[str, timing.Timing],
    backends: Mapping[str, str],
    peaks: Mapping[str, float],
) -> list[rows.Row]:
    """One row per arm that was timed."""
    return [
        rows.Row(
            **rows.environment(torch.device(settings.device)),
            op=op,
            mode=mode,
            variant=arm,
            backend=backends[arm],
            shape=str(settings),
            dtype=settings.dtype,
            median_ms=time.median,
            low_ms=time.low,
            high_ms=time.high,
            ratio=time.ratio(times["plain"]),
            ratio_to="plain",
            peak_mb=peaks.get(arm),
        )
        for arm, time in times.items()
    ]


def run(
    options: argparse.Namespace,
    settings_type: type,
    measure: Callable[..., list[rows.Row]],
    peak_memory: Callable[[Any, str], float],
) -> int:
    """Measure, print and append."""
    if options.memory_of:
        print(json.dumps({"peak_mb": peak_memory(settings_type(**options.settings), options.memory_of)}))
        return 0
    settings = settings_type(**{name: getattr(options, name) for name in settings_type.__dataclass_fields__})
    arms = ["plain", *(arm for arm in options.arms if arm != "plain")]
    found = measure(settings, arms, options.seconds, memory=not options.no_memory)
    rows.show(found)
    rows.append(found, options.output or rows.default_output(torch.device(settings.device)))
    return 0
