"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

_OURS = (__name__.partition(".")[0], "torch", "transformers", "contextlib", "functools")
"""Packages between the user's line and a warning of ours."""


def warn(message: str) -> None:
    """At the line that led here, however many of our own and of other libraries' calls lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
