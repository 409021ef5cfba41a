"""Which rule each layer gets, while the model runs, told by the innermost module whose code runs it."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from attrdrop.lrp.rules import Choice, Epsilon, Layer, LayerRule, Rule, Zero


class Told(NamedTuple):
    """What a layer got: the innermost module whose code ran it, its function; no choice: part of the layer before."""

    name: str
    module: nn.Module
    function: str
    choice: Choice | None


class Choices:
    """The rules of a composite for the layers of a model.

    is_twice: whether their relevance must have a gradient. told: where it is a list, it gets what each layer gets.
    """

    def __init__(self, composite: Rule | None, model: nn.Module, is_twice: bool = False) -> None:
        self.composite, self.model, self.is_twice = composite, model, is_twice
        self.told: list[Told] | None = None

    def rule(self, kind: str, is_first: bool, function: str) -> LayerRule:
        """Of the layer that runs."""
        choice = self.composite.choose(Layer(kind, is_first, self.running))  # type: ignore[union-attr]
        self.tell(function, choice)
        if self.is_twice and not choice.rule.has_gradient:
            raise ValueError(
                f"{self.running_words()}create_graph supports Epsilon, Zero, ZPlus and Gamma, got {choice.rule!r}"
            )
        return choice.rule

    def norm_rule(self, function: str) -> LayerRule:
        """Of a norm, or of a product with a constant: each output has its own input."""
        choice = self.composite.choose(Layer("linear", False, self.running))  # type: ignore[union-attr]
        if not isinstance(choice.rule, (Epsilon, Zero)):
            choice = Choice(Epsilon(1e-6), f"a {function} has no {type(choice.rule).__name__}")
        self.tell(function, choice)
        return choice.rule

    def tell(self, function: str, choice: Choice | None) -> None:
        if self.told is not None:
            self.told.append(Told(*self.running(), function, choice))

    def running_words(self) -> str:
        """The innermost module whose code runs, as messages begin."""
        if torch.compiler.is_compiling():
            return ""
        name, module = self.running()
        return f"layer {name or '(the model itself)'} ({type(module).__name__}): "

    def running(self) -> tuple[str, nn.Module]:
        """The innermost module whose code runs, from the call stack."""
        if torch.compiler.is_compiling():
            raise ValueError("inside torch.compile a composite cannot tell layers by name, type or predicate")
        frame = sys._getframe()
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self._names:
                return self._names[id(module)], module
            frame = frame.f_back  # type: ignore[assignment]
        return "", self.model

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.model.named_modules()}
