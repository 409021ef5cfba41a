"""Compiles Triton kernels for GPUs that are not there, and reads from the machine code what they need and do."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
WARP_GROUP_DOTS = ("HGMMA", "UTCHMMA")  # Hopper, Blackwell
DOTS = ("HMMA", *WARP_GROUP_DOTS)

Place = str | tuple[str, int]

LABEL = re.compile(r"(\.L\w+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*)(.*)")
TARGET = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True)
class Report:
    """Sizes in bytes. ``loop_*`` describe the innermost loop with most dots, or without dots the largest."""

    arch: int
    registers: int
    stack: int
    local_loads: int
    local_stores: int
    shared: int
    shared_limit: int
    hgmma: int
    hmma: int
    instructions: int
    loop_instructions: int
    loop_counts: dict[str, int]


class Instruction(NamedTuple):
    opcode: str
    predicated: bool
    target: str | None


def compile_ahead(
    kernel: JITFunction,
    signature: dict[str, Any],
    constants: dict[Place, Any],
    arch: int,
    *,
    warps: int,
    stages: int,
    aligned: Iterable[Place] = (),
) -> Report:
    """``aligned`` names the arguments that are multiples of 16; an absent pointer is the constant None.

    A tuple has a tuple of types, "constexpr" for its constants; (name, index) is one of its members.
    """
    if not (isinstance(kernel, JITFunction) and isinstance(tl.sum, JITFunction)):
        raise RuntimeError("kernels compile only where triton was imported without TRITON_INTERPRET=1")
    if arch not in SHARED_LIMIT:
        raise ValueError(f"arch must be one of {sorted(SHARED_LIMIT)}, got {arch}")
    types = {**signature, **dict.fromkeys((name for name in constants if isinstance(name, str)), "constexpr")}
    if wrong := set(types) ^ set(kernel.arg_names):
        raise ValueError(f"{kernel.__name__}: {sorted(wrong)} are not its arguments, or have no type and no value")

    def path(place: Place) -> tuple[int, ...]:
        name, *inside = (place,) if isinstance(place, str) else place
        return kernel.arg_names.index(name), *inside

    source = ASTSource(
        kernel,
        {name: types[name] for name in kernel.arg_names},  # triton wants the kernel's order
        {path(place): value for place, value in constants.items()},
        {path(place): [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = run_tool("cuobjdump", "-res-usage", cubin)
        instructions, labels = parse(run_tool("nvdisasm", "-c", cubin))
    registers, stack = re.search(rf"Function {compiled.metadata.name}:\s+REG:(\d+) STACK:(\d+)", usage).groups()
    counts = Counter(i.opcode for i in instructions)
    loop = Counter(i.opcode for i in hottest_loop(instructions, labels))
    return Report(
        arch=arch,
        registers=int(registers),
        stack=int(stack),
        local_loads=counts["LDL"],
        local_stores=counts["STL"],
        shared=compiled.metadata.shared,
        shared_limit=SHARED_LIMIT[arch],
        hgmma=sum(counts[name] for name in WARP_GROUP_DOTS),
        hmma=counts["HMMA"],
        instructions=counts.total(),
        loop_instructions=loop.total(),
        loop_counts=dict(loop),
    )


def run_tool(name: str, option: str, cubin: Path) -> str:
    command = [getattr(triton.knobs.nvidia, name).path, option, str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions without NOP, and for each label the position of the instruction after it."""
    instructions: list[Instruction] = []
    labels = {}
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif (found := INSTRUCTION.match(line)) and found[2] != "NOP":
            target = TARGET.search(found[3])
            instructions.append(Instruction(found[2], found[1] is not None, target and target[1]))
    return instructions, labels


def hottest_loop(instructions: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    last = {}  # start of a loop -> its last branch back; the endless branch to itself after a kernel is none
    for i, instruction in enumerate(instructions):
        start = labels.get(instruction.target, i)
        if instruction.opcode == "BRA" and start < i:
            last[start] = i

    def body(start: int) -> list[Instruction]:
        return instructions[start : last[start] + 1]

    def dots(start: int) -> int:
        return sum(i.opcode in DOTS for i in body(start))

    # code out of line stands after the kernel's end, and its branch back closes no loop
    loops = [start for start in last if not any(i.opcode == "EXIT" and not i.predicated for i in body(start))]
    loops = [start for start in loops if dots(start)] or loops
    innermost = [a for a in loops if not any(a <= last[b] < last[a] for b in loops)]
    return body(max(innermost, key=lambda start: (dots(start), last[start] - start))) if innermost else []
