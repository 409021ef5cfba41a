"""Which layer gets which rule, and why, told before relevance is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attrdrop._core.modules import unwrap
from attrdrop._core.warning import warn
from attrdrop.lrp.choices import Told
from attrdrop.lrp.composites import Composite, EpsilonPlusFlat, condition_holds, described, warn_of_unmatched
from attrdrop.lrp.request import Request, unpacked
from attrdrop.lrp.rules import LayerRule, Rule
from attrdrop.lrp.walk import told


class LayerRow(NamedTuple):
    """A layer that runs: module name and type, function, rule (None: part of the previous layer), and why."""

    name: str
    type: str
    function: str
    rule: LayerRule | None
    why: str


class LayerTable(Sequence[LayerRow]):
    """Layers in the order in which they run; as text, a table with one row per layer."""

    def __init__(self, rows: Sequence[LayerRow]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def __repr__(self) -> str:
        cells = [("layer", "module", "function", "rule", "why")]
        cells += [
            (row.name, row.type, row.function, "" if row.rule is None else repr(row.rule), row.why) for row in self
        ]
        widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
        return "\n".join(line.rstrip() for line in lines)


def explain(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    *,
    rule: Rule | None = None,
    attention: str = "attnlrp",
    unknown: str = "error",
    arguments: Mapping[str, Any] | None = None,
    of: str | None = None,
    embedding: str | nn.Module | None = None,
) -> LayerTable:
    """Shows which layer gets which rule and why; arguments and errors as :func:`attrdrop.lrp.relevance`.

    Costs one forward; one sample is enough. Warns about patterns, types and predicates that match no module, and about
    those that assign their rule to no layer. Functions without parameters, such as activations, norms over features and
    attention, follow the rules in docs/mathematics.md and are not listed.

    Returns:
        Rows in the order in which layers run; ``print`` shows them as a table. A layer that runs twice has two rows.
    """
    rule = EpsilonPlusFlat() if rule is None else rule
    inner = unwrap(model)
    x, others, keyword = unpacked(inputs, arguments, of)
    means = {"attention": attention, "unknown": unknown, "embedding": embedding}
    request = Request(inner, x, "pred", rule, arguments=others, keyword=keyword, **means)  # type: ignore[arg-type]
    if request.is_plain:
        raise ValueError(f"rule must apply to layers, got {rule!r}, which is the plain gradient")
    found = told(request)
    warn_of_unmatched(rule, inner)
    _warn_of_idle(rule, inner, found)
    return LayerTable([_row(*entry) for entry in found])


def _row(name: str, module: nn.Module, function: str, choice: Any) -> LayerRow:
    of = (name or "(the model itself)", type(module).__name__, function)
    return LayerRow(*of, None, "part of the layer before") if choice is None else LayerRow(*of, choice.rule, choice.why)


def _warn_of_idle(rule: Rule, model: nn.Module, found: Sequence[Told]) -> None:
    """Of conditions that hold for modules, and yet give no layer its rule."""
    if not isinstance(rule, Composite):
        return
    decisive = {entry.choice.entry for entry in found if entry.choice is not None}
    for place, (condition, _) in enumerate(rule.layers):
        if place not in decisive and any(condition_holds(condition, *module) for module in model.named_modules()):
            warn(
                f"the {described(condition)} of the composite assigns its rule to no layer: an earlier condition comes "
                "first, or its modules run no linear layer"
            )
