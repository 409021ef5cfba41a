"""What a step asks of the host: operator calls, allocations, waits, and the time Python takes between them.

At the sizes of GLUE a GPU waits for the host, so a step costs what its launches do. They are counted on the CPU, where
the calls are the same; an operator of ours is one call, whatever it launches. The optimizer's part is left out: it is
the same in every arm, and its form on the CPU is another.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.profiler import profile
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # of the profiler, which tells of each start and stop

COPIES = ("copy_", "_to_copy", "clone")
WAITS = ("_local_scalar_dense", "nonzero", "equal")
UNLAUNCHED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh")
REPEATS = 5
Step = Callable[[], object]


@dataclass(frozen=True)
class HostCost:
    """Of one step. calls: of operators that launch something, by name; views and empty memory are none.

    allocations: results in memory of their own.
    """

    calls: Counter[str]
    allocations: int

    def of(self, *names: str) -> int:
        """Calls of these operators."""
        return sum(self.calls[name] for name in names)

    @property
    def ours(self) -> int:
        """Calls of our operators."""
        return sum(count for name, count in self.calls.items() if name.startswith("attrdrop"))


class Census(TorchDispatchMode):
    """Counts what runs inside it but for optimizers; what an operator does inside itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.allocations = 0
        self._is_counting = True

    def __enter__(self) -> "Census":
        self._hooks = [
            register_optimizer_step_pre_hook(lambda *_: self._count(False)),
            register_optimizer_step_post_hook(lambda *_: self._count(True)),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _count(self, is_counting: bool) -> None:
        self._is_counting = is_counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._is_counting:
            given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            fresh = sum(x.untyped_storage()._cdata not in given for x in made)
            namespace, name = func.namespace, func.overloadpacket.__name__
            is_view = bool(made) and not fresh and not func._schema.is_mutable
            self.allocations += fresh
            if (given or made) and not is_view and name not in UNLAUNCHED:
                self.calls[name if namespace == "aten" else f"{namespace}::{name}"] += 1
        return out


def counted(step: Step) -> HostCost:
    """The counts of one step, after one that makes what is made but once."""
    step()
    with Census() as census:
        step()
    return HostCost(census.calls, census.allocations)


def outside_operators(step: Step) -> float:
    """The share of a step that torch's profiler sees in no operator, so mostly Python's: the median of some steps."""
    shares = []
    for _ in range(REPEATS):
        with profile() as profiler:
            begin = time.perf_counter()
            step()
            total = (time.perf_counter() - begin) * 1e6
        outermost = [event for event in profiler.function_events if event.cpu_parent is None]
        optimizer = sum(event.cpu_time_total for event in outermost if event.name.startswith("Optimizer."))
        inside = sum(event.cpu_time_total for event in outermost) - optimizer
        shares.append(max(0.0, 1 - inside / (total - optimizer)))
    return median(shares)


def show(costs: Mapping[str, HostCost], outside: Mapping[str, float]) -> None:
    """A table of arms, and what each calls beyond the plain step."""
    table = Table(title="host cost of a step, without the optimizer's calls")
    for column in ("arm", "calls", "ours", "copies", "waits", "allocations", "outside operators"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, cost in costs.items():
        counts = (cost.calls.total(), cost.ours, cost.of(*COPIES), cost.of(*WAITS), cost.allocations)
        table.add_row(arm, *map(str, counts), f"{outside[arm]:.0%}")
    console = Console()
    console.print(table)
    for arm, cost in costs.items():
        more = cost.calls - costs["plain"].calls
        if more:
            listed = ", ".join(f"{count} {name}" for name, count in more.most_common())
            console.print(f"[bold]{arm}[/bold], beyond the plain step: {listed}", highlight=False)
