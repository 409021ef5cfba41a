"""The two errors that end an experiment early, each with a message for the user, and helpers for messages."""

from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """The user's input cannot be used; raised before anything is written."""


class RunError(RuntimeError):
    """A training run cannot continue; finished runs are kept."""


def said(error: Exception) -> str:
    """An error's message, worded to fit into a sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return f"no entry {text}" if type(error) is KeyError else text.strip().rstrip(".")


def is_text(text: str) -> bool:
    """Whether a text can be stored: half of a JSON surrogate pair and a file name outside UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(path: Path, option: str) -> None:
    """Refuse a file or folder whose name cannot be written in results and figures."""
    if not is_text(path.name):
        raise InputError(f"{option}: the name {path.name!r} is not in UTF-8; rename it.")


def bad_byte(error: UnicodeDecodeError) -> str:
    """The offending byte and its line, for a decoding error of a whole file."""
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line} holds the byte {error.object[error.start]:#04x}"


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, each in quotes; only the first few if there are many."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
