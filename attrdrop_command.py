"""The command `attrdrop` from its first moment: Ctrl-C is no error while PyTorch is imported, which takes seconds."""

import os
import signal
import sys
from typing import Any


def main() -> int:
    """Entry point of the script; gives its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else who started it has interrupts ignored
        signal.signal(signal.SIGINT, _leave)
    from attrdrop.lab.cli.main import main as command

    signal.signal(signal.SIGINT, before)
    try:
        command()
    except KeyboardInterrupt:
        return _interrupted()
    return 0


def _leave(*_signal: Any) -> None:
    """At once: an exception might end in modules that catch it, or make another one of it."""
    os._exit(_interrupted())


def _interrupted() -> int:
    print("Interrupted.", file=sys.stderr, flush=True)
    return 130
