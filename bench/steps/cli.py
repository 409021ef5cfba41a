"""The command line of a benchmark of training steps: its settings are options, and so are its arms and its budget."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any

import torch


def option(default: Any, **options: Any) -> Any:
    """A field of settings that is an option; options: as argparse takes them, flag where it is not the field's name."""
    return field(default=default, metadata=options)


def count(text: str, least: int = 1, most: float = math.inf) -> int:
    """A whole number within limits."""
    if not text.isdecimal() or not least <= int(text) <= most:
        limit = "on" if most == math.inf else f"to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} {limit}")
    return int(text)


def parser_of(
    module: str, description: str, settings: type, arms: Sequence[str], usual: Sequence[str]
) -> argparse.ArgumentParser:
    """Its options: the fields of the settings, then what is measured and where the rows go.

    --memory-of is how a fresh process is asked for the peak of one arm. usual: the arms measured where none is named.
    """
    parser = argparse.ArgumentParser(prog=f"{module.replace('.', '/')}.py", description=description)
    for entry in fields(settings):
        options = dict(entry.metadata)
        flag = options.pop("flag", f"--{entry.name.replace('_', '-')}")
        parser.add_argument(flag, dest=entry.name, default=entry.default, **options)
    parser.add_argument("--arms", nargs="+", choices=arms, default=usual, metavar="ARM", help="; ".join(arms))
    parser.add_argument("--seconds", type=float, default=60, help="budget of the timing")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks")
    parser.add_argument("--host", action="store_true", help="count operator calls and allocations instead of timing")
    parser.add_argument("--output", type=Path, help="CSV to append to, or a folder of them, such as bench/results")
    parser.add_argument("--memory-of", choices=arms, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    return parser
