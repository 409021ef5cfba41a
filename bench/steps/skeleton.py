"""What benchmarks of training steps share: arms in turns, ratios to the plain step, peak memory, rows.

Every arm is one forward, backward and update on the same batch; arms take turns within a round, and each ratio is the
median over rounds of an arm's time to the plain step's in the same round.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from bench import flops, rows, timing
from bench.run import left_out
from bench.steps import cli, host


@dataclass(frozen=True)
class StepSettings:
    """One benchmark of steps; as text it is the shape of its rows."""

    device: str = cli.option("cpu", choices=("cpu", "cuda"))
    dtype: str = cli.option("float32", choices=("float32", "bfloat16"), help="autocast to this type")
    threads: int | None = cli.option(
        None, type=cli.count, help="of a CPU; one is timed in processor time (default: all)"
    )

    @property
    def mode(self) -> str:
        """The mode of its rows."""
        return "train"

    @property
    def clock(self) -> str:
        """That of its rows: see :func:`bench.timing.clock`."""
        return timing.clock(self.device, self.threads)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.torch_dtype, enabled=self.torch_dtype != torch.float32)


def training_step(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, settings: StepSettings
) -> Callable[[], Tensor]:
    """A callable that trains on the loss of one batch and returns it."""

    def step() -> Tensor:
        with settings.autocast():
            found = loss()
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        return found.detach()

    return step


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same steps from a CUDA graph, which no host holds up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A benchmark of steps; what the kinds differ in is how an arm is built, and which backends it took.

    op: of its rows. module: of its script, with the script's description. arms: by name; the plain step is among them.
    slow: arms measured only where they are named. steps: in a sample of an arm, where not one. smallest: of given
    settings, those of a small case, which loads at its first call what others need not count; without it every peak
    is taken in a process of its own. missing: why an arm cannot run here. has_gflop: whether arithmetic is counted,
    which torch cannot where a gradient ends at a model's input.
    """

    op: str
    module: str
    description: str
    settings: type[StepSettings]
    arms: Mapping[str, Any]
    slow: Sequence[str] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    smallest: Callable[[Any], Any] | None = None
    missing: Callable[[str], Exception | None] = lambda arm: None
    has_gflop: bool = True

    @property
    def every(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(self.arms)

    def build(self, settings: Any, arm: str) -> Callable[[], Tensor]:
        """What a sample of the arm times; it returns a tensor to look at."""
        raise NotImplementedError

    def ran(self, settings: Any, arm: str, call: Callable[[], object]) -> str:
        """The backends of an arm."""
        raise NotImplementedError

    def peak_memory(self, settings: Any, arm: str, calls: int = 3) -> float:
        """MiB above the loaded model at the peak of some calls; of steps, gradients and optimizer state included."""
        device = torch.device(settings.device)
        if self.smallest is not None:
            self.build(self.smallest(settings), arm)()
            gc.collect()
        call = self.build(settings, arm)

        def run() -> None:
            for _ in range(calls):
                call()

        return timing.cuda_peak(run, device) if device.type == "cuda" else timing.resident_peak(run)

    def peaks(self, settings: Any, arms: list[str]) -> dict[str, float]:
        """Peak memory by arm: in a fresh process each; on CUDA here, where the allocator counts exactly."""
        if settings.device == "cuda" and self.smallest is not None:
            return {arm: self.peak_memory(settings, arm) for arm in arms}
        given = json.dumps(asdict(settings))
        return {
            arm: timing.in_fresh_process(self.module, ["--memory-of", arm, "--settings", given])["peak_mb"]
            for arm in arms
        }

    def runnable(self, arms: list[str]) -> list[str]:
        """The arms that can run here, having said what cannot."""
        reasons = {arm: self.missing(arm) for arm in arms}
        for arm, reason in reasons.items():
            if reason is not None:
                left_out(arm, reason)
        return [arm for arm, reason in reasons.items() if reason is None]

    def bound(self, settings: Any, arm: str) -> float | None:
        """The least number of plain steps that the arithmetic of an arm allows, where it is known."""
        return None

    def measure(self, settings: Any, arms: list[str], budget: float, memory: bool = True) -> Iterator[rows.Row]:
        """One row per arm that can run, each as it is done: a run cut short keeps those before.

        An arm and the plain step take turns, so that a ratio is of rounds of its own and two models are in memory.
        """
        device = torch.device(settings.device)
        arms = self.runnable(arms)
        plain = self.build(settings, "plain")
        for arm in arms:
            peaks = self.peaks(settings, [arm]) if memory else {}
            call = plain if arm == "plain" else self.build(settings, arm)
            backend = self.ran(settings, arm, call)
            steps = self.steps.get(arm, 1)
            is_counted = self.has_gflop and not arm.endswith("CUDA graph")
            gflop = flops.counted(call) / steps if is_counted else None
            calls = {"plain": plain, arm: call}
            samples = timing.interleave(calls, device, budget=budget / len(arms), rounds=(5, 50), clock=settings.clock)
            times = {name: timing.Timing(tuple(ms / self.steps.get(name, 1) for ms in found.samples))
                     for name, found in samples.items()}  # fmt: skip
            time = times[arm]
            yield rows.Row(
                **rows.environment(device),
                op=self.op,
                mode=settings.mode,
                variant=arm,
                backend=backend,
                shape=str(settings),
                dtype=settings.dtype,
                median_ms=time.median,
                low_ms=time.low,
                high_ms=time.high,
                ratio=time.ratio(times["plain"]),
                ratio_to="plain",
                gflop=gflop,
                peak_mb=peaks.get(arm),
                bound=self.bound(settings, arm),
                clock=settings.clock,
            )
            del call, calls
            gc.collect()

    def count(self, settings: Any, arms: list[str]) -> None:
        """Prints what the arms that can run ask of the host."""
        calls = {arm: self.build(settings, arm) for arm in self.runnable(arms)}
        counts = {arm: host.counted(call) for arm, call in calls.items()}
        host.show(counts, {arm: host.outside_operators(call) for arm, call in calls.items()})

    def parse(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """The command line."""
        usual = [arm for arm in self.every if arm not in self.slow]
        parser = cli.parser_of(self.module, self.description, self.settings, self.every, usual)
        options = parser.parse_args(arguments)
        try:
            options.chosen = self.settings(
                **{entry.name: getattr(options, entry.name) for entry in fields(self.settings)}
            )
        except ValueError as error:
            parser.error(str(error))
        return options

    def main(self, arguments: list[str] | None = None) -> int:
        """Measure, print, and append where it is asked for."""
        options = self.parse(arguments)
        if options.memory_of:
            found = self.peak_memory(self.settings(**options.settings), options.memory_of)
            print(json.dumps({"peak_mb": found}))
            return 0
        settings = options.chosen
        arms = ["plain", *(arm for arm in options.arms if arm != "plain")]
        if options.host:
            self.count(settings, arms)
            return 0
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        output, found = rows.chosen(options.output, torch.device(settings.device)), []
        for row in self.measure(settings, arms, options.seconds, memory=not options.no_memory):
            found.append(row)
            if output:
                rows.append([row], output)
        rows.show(found)
        return 0
