"""What transforms guided by relevance share: the model and its rule, the step, relevance of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop._core.capture import is_capturing
from attrdrop._core.checks import check_choice, check_seed, check_size, check_tensor, is_int
from attrdrop._core.distributed import held_by_all, process_rank, told_by_all
from attrdrop._core.seeds import derive_seed
from attrdrop._core.sharded import is_sharded
from attrdrop.reldrop.cache import CacheStatistics, RelevanceCache
from attrdrop.schedules import Balance, Schedule, check_schedule, scheduled

Attribution = lrp.Rule | str | Callable[[nn.Module, Tensor, Tensor | None], Tensor]
TARGETS = ("label", "pred")


class Guided:
    """A transform of a batch in front of a model in training, for which a rule finds out what the model relies on.

    Args:
        schedules: by name, numbers in [0, 1] that change with the step.
        name: of the batch in messages.

    Attributes:
        occluded: bool (N,), which samples of the last batch lost something; None before the first. For
            :class:`attrdrop.schedules.Balance`.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        schedules: Mapping[str, Schedule],
        *,
        rule: Attribution,
        target: str = "label",
        start: str = "logit",
        stop_at: str | nn.Module | None = None,
        every: int = 1,
        cache_epochs: int = 1,
        warmup: int = 0,
        unknown: str = "error",
        output: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for schedule, value in schedules.items():
            check_schedule(schedule, value)
            setattr(self, schedule, value)
        check_choice("target", target, TARGETS)
        for what, number, least in (("every", every, 1), ("cache_epochs", cache_epochs, 1), ("warmup", warmup, 0)):
            if not is_int(number) or number < least:
                raise ValueError(f"{what} must be an int of at least {least}, got {number!r}")
        if not (isinstance(rule, lrp.Rule) or callable(rule) or rule == "random"):
            raise TypeError(f"rule must be a rule of attrdrop.lrp, 'random' or a callable, got {rule!r}")
        self.model, self.rule, self.every, self.warmup = model, rule, int(every), int(warmup)
        self.seed = check_seed(seed)
        self._name, self._target = name, target
        self._lrp: dict[str, Any] = {"start": start, "stop_at": stop_at, "unknown": unknown, "output": output}
        self.occluded: Tensor | None = None
        self._step = 0
        self._held = [0]  # samples of the batch, by process
        self._takes_part = True  # in what all processes do at once
        self._cache = RelevanceCache(int(cache_epochs)) if cache_epochs > 1 else None
        self.reset_statistics()

    def start_step(self, step: int) -> None:
        """Sets the current step, on which draws depend; without it, every call in training mode is one step."""
        check_size("step", step)
        self._step = int(step)

    def reset_statistics(self) -> None:
        self._sums: Tensor | None = None  # on the device: reading them waits for it
        self._seen = self._attributed = self._steps = 0
        if self._cache is not None:
            self._cache.reset_statistics()

    def cache_statistics(self) -> CacheStatistics:
        """What keeping relevance saved and cost on this process since the last reset. Synchronises with the device."""
        return CacheStatistics() if self._cache is None else self._cache.statistics()

    def state_dict(self) -> dict[str, Any]:
        """The position in training for resuming with the same draws, stored relevance, and the states of schedules."""
        found: dict[str, Any] = {"step": self._step}
        if self._cache is not None:
            found["cache"] = self._cache.state_dict()
        balances = {name: balance.state_dict() for name, balance in self._balances().items()}
        return found | ({"schedules": balances} if balances else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        if self._cache is not None and "cache" in state:
            self._cache.load_state_dict(state["cache"])
        for name, balance in self._balances().items():
            if name in state.get("schedules", {}):
                balance.load_state_dict(state["schedules"][name])

    def _balances(self) -> dict[str, Balance]:
        """Those of the schedules that learn from training."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Balance)}

    def _scheduled(self, name: str) -> float:
        """The value of a schedule at this step."""
        return scheduled(name, getattr(self, name), self._step)

    def _is_guided(self, relevance: Tensor | None) -> bool:
        """Whether relevance has a say in this step."""
        return self._step % self.every == 0 and (self.rule != "random" or relevance is not None)

    def _step_seed(self) -> int:
        """The seed of the step."""
        return derive_seed(self.seed, self._step)

    @contextlib.contextmanager
    def _among_all(
        self, inputs: Tensor, labels: Tensor | None, arguments: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """A step on this process, in which it knows how many samples the others have.

        Where parameters lie in pieces on all processes, these attribute at once or not at all: one that needs no
        relevance takes a sample to help the others.
        """
        self._held = held_by_all(len(inputs), self.model)
        self._takes_part = not is_sharded(self.model)
        yield
        if not self._takes_part and any(told_by_all(0)):
            self._takes_part = True
            one = inputs[:1] if len(inputs) else inputs.new_zeros((1, *inputs.shape[1:]))
            given = {name: x[:1] if isinstance(x, Tensor) else x for name, x in (arguments or {}).items()}
            self._found(one, None if labels is None else labels.new_zeros(1), given)

    def _ids(self, count: int, device: torch.device | str) -> Tensor:
        """The samples' places in the global batch, int64 (count,), made there: a copy would wait for the device."""
        first = sum(self._held[: process_rank()])
        return torch.arange(first, first + count, device=device)

    def _count(self, sums: list[Tensor], seen: int, attributed: int) -> None:
        """Ends a step, of which these are the sums of what was done."""
        stacked = torch.stack(sums)
        self._sums = stacked.double() if self._sums is None else self._sums + stacked
        self._seen += seen
        self._attributed += attributed
        self._steps += 1
        self._step += 1

    def _visited(self, samples: Tensor | None, count: int) -> list[int] | None:
        """Which samples a batch holds, where their relevance is kept."""
        if self._cache is None:
            return None
        if not isinstance(samples, Tensor) or samples.dtype != torch.int64 or tuple(samples.shape) != (count,):
            got = f"{samples.dtype} of shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else repr(samples)
            raise ValueError(
                f"samples must be int64 of shape ({count},), the indices of the samples in the data set, if "
                f"cache_epochs is above 1, got {got}"
            )
        visited = samples.tolist()
        self._cache.visit(visited)
        return visited

    def _relevance(
        self,
        inputs: Tensor,
        labels: Tensor | None,
        samples: list[int] | None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, int]:
        """As the rule finds it, or found it for these samples in an earlier epoch, and how many were attributed."""
        given = arguments or {}
        if self._cache is None or samples is None:
            return self._found(inputs, labels, given), len(inputs)

        def compute(places: Tensor) -> Tensor:
            chosen = places.to(inputs.device, non_blocking=True)
            part = {name: value[chosen] if isinstance(value, Tensor) else value for name, value in given.items()}
            return self._summed(self._found(inputs[chosen], None if labels is None else labels[chosen], part))

        return self._cache.of(samples, compute)

    def _summed(self, relevance: Tensor) -> Tensor:
        """Over its channels, where it has any."""
        raise NotImplementedError

    def _found(self, inputs: Tensor, labels: Tensor | None, arguments: Mapping[str, Any]) -> Tensor:
        if not self._takes_part:
            self._takes_part = True
            told_by_all(1)
        if not isinstance(self.rule, lrp.Rule):
            assert callable(self.rule)
            return self.rule(self.model, inputs, labels)
        if self._target == "label" and labels is None:
            raise ValueError("labels are needed for target='label'; pass them, or use target='pred'")
        target: Tensor | str = "pred" if self._target == "pred" or labels is None else labels
        return lrp.relevance(self.model, inputs, target, rule=self.rule, arguments=arguments, **self._lrp)

    def _check_batch(self, inputs: Tensor, labels: Tensor | None, shape: str, of_floats: bool = True) -> None:
        """shape: what inputs must have, such as "(N, C, H, W)"."""
        if is_capturing():
            raise RuntimeError(
                f"{type(self).__name__} draws on the host, and every replay of a CUDA graph would repeat its draws; "
                "call it before the graph, and copy its output into the graph's input"
            )
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                f"{type(self).__name__} runs in a worker of a DataLoader, where the model is a copy that does not "
                "train; call it on batches in the training loop, after the loader"
            )
        if isinstance(inputs, Tensor):
            check_tensor(self._name, inputs)
        if not isinstance(inputs, Tensor) or inputs.dim() != shape.count(",") + 1:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"{self._name} must be a tensor of shape {shape}, got {got}")
        if of_floats and isinstance(self.rule, lrp.Rule) and not inputs.is_floating_point():
            raise TypeError(f"{self._name} must be floating point, as the model takes them, got {inputs.dtype}")
        if labels is not None and not isinstance(labels, Tensor):
            raise TypeError(
                f"labels must be an int64 tensor of shape ({inputs.shape[0]},), such as torch.as_tensor makes, "
                f"got {type(labels).__name__}"
            )
        if labels is not None and (labels.dtype != torch.int64 or tuple(labels.shape) != inputs.shape[:1]):
            raise ValueError(
                f"labels must be int64 of shape ({inputs.shape[0]},), got {labels.dtype} of shape {tuple(labels.shape)}"
            )
