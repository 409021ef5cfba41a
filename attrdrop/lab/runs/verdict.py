"""What paired differences from plain show, in words."""

from collections.abc import Callable
from typing import Any

from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs.results import FEWEST


def loss_verdict(differences: dict[str, dict[str, Any]], metric: str, examples: str) -> str:
    """The same for a loss, to follow the verdict on the score; empty if there is nothing to compare."""
    if not any(measure["interval_95"] for measure in differences.values()):
        return ""
    return f"\n{verdict(differences, '{:+.3f}'.format, metric, examples, -1)}"


def verdict(
    differences: dict[str, dict[str, Any]],
    show: Callable[[float], str],
    metric: str,
    examples: str,
    better: int = 1,
    unit: str = "",
) -> str:
    """Which arms are better or worse than plain by their 95 % intervals, and what these seeds are too few to show.

    Args:
        differences: what `results.paired` says of each arm.
        show: formats a difference.
        metric: is compared.
        examples: that were scored, such as "300 test examples".
        better: the sign of a difference for the better. unit: of what `show` gives, "points" for instance.
    """
    if not differences:
        return f"Nothing is compared: that needs the arm {PLAIN} and another one."
    found = {arm: measure["interval_95"] for arm, measure in differences.items() if measure["interval_95"] is not None}
    seeds = max(measure["n"] for measure in differences.values())
    if not found:
        return f"Too few seeds to compare the arms: {seeds}; use {FEWEST} or more."
    good = [arm for arm, (low, high) in found.items() if (low if better > 0 else -high) > 0]
    bad = [arm for arm, (low, high) in found.items() if (high if better > 0 else -low) < 0]
    unclear = [arm for arm in found if arm not in good + bad]
    parts = [f"{word} than plain: {', '.join(arms)}." for word, arms in (("Better", good), ("Worse", bad)) if arms]
    if unclear:
        of = f" of {', '.join(unclear)}" if parts else ""
        half = max((found[arm][1] - found[arm][0]) / 2 for arm in unclear)
        below = f" below {show(half).lstrip('+')} {unit}".rstrip() if half > 0 else ""
        parts.append(f"No difference{of} shown; {seeds} seeds of {examples} cannot show one{below}.")
    if few := [arm for arm in differences if arm not in found]:
        parts.append(f"Too few seeds: {', '.join(few)}.")
    intervals = ", ".join(f"{arm} {show(low)} to {show(high)}" for arm, (low, high) in found.items())
    what = f"{metric}, in {unit}" if unit else metric
    return f"{' '.join(parts)} 95 % intervals of the difference from plain ({what}): {intervals}."
