"""The two ways an experiment ends early, each with a message meant for the user, and what messages are made of."""

from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used; raised before anything is written."""


class RunError(RuntimeError):
    """A training run that cannot go on; finished runs are kept."""


def said(error: Exception) -> str:
    """The message of an error, as part of a sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return f"no entry {text}" if type(error) is KeyError else text.strip().rstrip(".")


def is_text(text: str) -> bool:
    """Whether it can be stored: half of a surrogate pair of JSON cannot, nor a file's name that is not in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(path: Path, option: str) -> None:
    """Refuse a file or folder whose name is to stand in results and figures and cannot."""
    if not is_text(path.name):
        raise InputError(f"{option}: the name {path.name!r} is not in UTF-8; rename it.")


def bad_byte(error: UnicodeDecodeError) -> str:
    """The byte at fault and its line, of an error in all bytes of a file."""
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line} holds the byte {error.object[error.start]:#04x}"


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, each in quotes, the first few of many."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
