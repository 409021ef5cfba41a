"""How long each pipe of a multiprocessor is busy with a kernel, counted from its machine code: no GPU is asked.

    python tests/gates/pipe_accounts.py  # the accounts of keep_mask, in microseconds on an H100

The code is compiled with line numbers, so that each instruction knows the chain of source lines that it was inlined
through. An account says how often a warp runs the loops and branches of the source; the sum over the instructions is
an estimate of the least time that a pipe needs, not a measurement: waiting for memory or for each other is not in it.
It is on the high side: where the compiler merges copies of inlined code, the merged one counts for all of them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

CSRC = Path(__file__).parents[2] / "csrc"
MULTIPROCESSORS, SCHEDULERS, CLOCK, CACHE_RATE = 132, 4, 1.755e9, 5.5e12  # of an H100 SXM; the rate in bytes a second

# Cycles for which an instruction of one warp keeps a scheduler's pipe (compute capability 9.0). Half-rate pipes: 2.
HALF_RATE = (
    "LOP3", "LOP", "IADD3", "SHF", "SEL", "FSEL", "ISETP", "FSETP", "FSET", "HSET2", "HSETP2", "PRMT", "VIMNMX",
    "VIADDMNMX", "VHMNMX", "HMNMX2", "FMNMX", "LEA", "PLOP3", "P2R", "R2P", "IABS", "BMSK", "SGXT", "F2FP",
    "CS2R", "VOTE",
)  # fmt: skip
SLOW = ("MUFU", "POPC", "FLO", "BREV", "F2I", "I2F", "I2FP", "F2F")
MEMORY = ("LDS", "STS", "LDSM", "LDG", "STG", "LDGSTS", "SHFL", "ATOMS", "ATOMG", "RED", "REDUX", "LDC")

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*).*?/\* 0x([0-9a-f]{16}) \*/")
SECOND_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')


def pipe_cycles(opcode: str) -> Iterator[tuple[str, int]]:
    name = opcode.split(".")[0]
    if name in HALF_RATE:
        yield "alu", 2
    elif name == "IMAD" and ".MOV" not in opcode:
        yield "fma", 2
    elif name in ("IMAD", "FFMA", "FADD", "FMUL", "HADD2", "HFMA2", "HMUL2", "VIADD"):
        yield "fma", 1
    elif name in SLOW:
        yield "xu", 8
    elif name in MEMORY:
        yield "memory", 2
    elif name == "HMMA":
        yield "tensor", 8
    yield "issue", 1


@dataclass(frozen=True)
class Rule:
    """A warp enters the statement that starts where ``pattern`` matches ``factor`` times as often as what is around it.

    Loops that the compiler unrolls stand there several times: ``once`` is an opcode with how often one trip runs it.
    """

    file: str
    pattern: str
    factor: float
    part: str | None = None  # of the account, for all that is inside
    once: tuple[str, int] | None = None


@dataclass(frozen=True)
class Instruction:
    opcode: str
    predicated: bool
    stall: int  # cycles before the next one of this warp, as ptxas encoded it
    chain: tuple[tuple[str, int], ...]  # (file, line), the innermost first


@cache
def statement(file: str, pattern: str) -> range:
    """The lines of the one statement of csrc/``file`` whose first line matches."""
    lines = (CSRC / file).read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.search(pattern, line)]
    if len(starts) != 1:
        raise ValueError(f"pattern must match one line of {file}, {pattern!r} matches {len(starts)}")
    depth = 0
    for i in range(starts[0], len(lines)):
        text = lines[i].split("//")[0]
        depth += text.count("{") + text.count("(") - text.count("}") - text.count(")")
        if depth <= 0 and text.rstrip().endswith((";", "}")):
            return range(starts[0] + 1, i + 2)
    raise ValueError(f"the statement at {pattern!r} of {file} does not end")


def compile_kernels(source: str, arch: int = 90) -> dict[str, list[Instruction]]:
    """The kernels that ``source`` instantiates, by their mangled names."""
    import triton

    includes = [CSRC, Path(torch.__file__).parent / "include"]
    with tempfile.TemporaryDirectory() as folder:
        code, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        code.write_text(source)
        command = ["nvcc", "-std=c++20", "--expt-relaxed-constexpr", f"-arch=sm_{arch}", "-cubin", "-lineinfo"]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in includes)]
        subprocess.run([*command, str(code), "-o", str(cubin)], check=True, stdout=subprocess.PIPE, text=True)
        command = [triton.knobs.nvidia.nvdisasm.path, "-gi", "-hex", "-c", str(cubin)]
        sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[Instruction]] = {}
    chain: list[tuple[str, int]] = []
    opcode = None
    is_new = True
    for line in sass.splitlines():
        if line.startswith(".text."):
            kernel = kernels[line[len(".text.") : -1]] = []
            chain = []
        elif found := LINE.match(line):
            if is_new:
                chain, is_new = [], False
            path = Path(found[1])
            chain.append((path.relative_to(CSRC).as_posix() if path.is_relative_to(CSRC) else path.name, int(found[2])))
        elif found := INSTRUCTION.match(line):
            opcode, predicated, is_new = found[2], bool(found[1]), True
        elif opcode and (found := SECOND_HALF.match(line)):
            kernel.append(Instruction(opcode, predicated, int(found[1], 16) >> 41 & 0xF, tuple(chain)))
            opcode = None
    return {name: without_cold_code(kernel) for name, kernel in kernels.items()}


def without_cold_code(kernel: list[Instruction]) -> list[Instruction]:
    """Up to the kernel's end: behind it stand the branches that ptxas expects not to be taken."""
    end = max(i for i, instruction in enumerate(kernel) if instruction.opcode == "EXIT" and not instruction.predicated)
    return [i for i in kernel[: end + 1] if i.opcode != "NOP"]


def account(kernel: list[Instruction], rules: list[Rule], warps: float) -> dict[str, Counter[str]]:
    """Microseconds of each pipe, by part, where all multiprocessors are busy; "stall": what a lone warp would wait."""
    scale = warps / (MULTIPROCESSORS * SCHEDULERS) / CLOCK * 1e6
    weights, names = [scale] * len(kernel), ["rest"] * len(kernel)
    for rule in rules:
        lines = statement(rule.file, rule.pattern)
        inside: dict[tuple, list[int]] = defaultdict(list)  # by the chain around the statement
        for i, instruction in enumerate(kernel):
            frames = [at for at, (file, line) in enumerate(instruction.chain) if file == rule.file and line in lines]
            if frames:
                inside[instruction.chain[frames[-1] + 1 :]].append(i)
        for places in inside.values():
            copies = 1.0
            if rule.once:
                opcode, each = rule.once
                copies = max(1.0, sum(kernel[i].opcode.startswith(opcode) for i in places) / each)
            for i in places:
                weights[i] *= rule.factor / copies
                names[i] = rule.part or names[i]
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for instruction, weight, name in zip(kernel, weights, names, strict=True):
        for pipe, cycles in pipe_cycles(instruction.opcode):
            parts[name][pipe] += cycles * weight
        parts[name]["stall"] += max(1, instruction.stall) * weight
    return dict(parts)


def total(parts: dict[str, Counter[str]]) -> Counter[str]:
    return sum(parts.values(), Counter())


KERNEL, SELECT, TILE, KEYS = (
    f"cuda/{name}.cuh" for name in ("keep_mask", "keep_mask_select", "keep_mask_tile", "keys")
)
PARAMETERS = "const KeepMaskArgs, const TilePlan, const BlockGrid"
# Passes of the search over rows of normal keys (search_passes.py): the slowest of a warp's eight rows, or one row.
PASSES = {"S1": 6.3, "S2": 3.4}
PHILOX_CALLS = 0.7  # of four: how many are left after columns are decided, at p q = 0.09


def selection(passes: float) -> list[Rule]:
    """All columns valid, the high region, and nothing at infinity."""
    return [
        Rule(KEYS, r"r\[j\] \|= \(~valid", 0),
        Rule(SELECT, r"Keys::template word<Compare::greater_equal>", 0),
        Rule(SELECT, r"cut = find_cut<", 1, "search"),
        Rule(SELECT, r"for \(int step = 0;;", passes, once=("HSET2", 64)),
        Rule(SELECT, r"if \(team.any\(may_be_nan", 0.3),
        Rule(SELECT, r"dropped\[u\] = bernoulli_subset", PHILOX_CALLS, "draw"),
    ]


def product(tiles: int, words: int, dots: int, copies: int) -> list[Rule]:
    """``words`` of 32 columns for a warp in each tile, ``dots`` instructions a word, ``copies`` of a thread a tile."""
    return [
        Rule(TILE, r"for \(int begin = first, turn", tiles),
        Rule(TILE, r"for \(int column = first_column", words, once=("HMMA", dots)),
        Rule(TILE, r"RowCopy<T>\(x, args.x.row", 1, "copies"),
        Rule(TILE, r"const RowCopy<T> copy_y", 1, "copies"),
        Rule(TILE, r"const auto stage = \[&\]", 1, "copies"),
        Rule(TILE, r"void start_anyhow\(unsigned char", 0),
        Rule(TILE, r"for \(int r = row; r < count", copies, once=("LDGSTS", 1)),
        Rule(TILE, r"if \(plan.stages == 1 && !is_last\)", 0),
    ]


def short_rows() -> dict[str, Counter[str]]:
    """S1: B32 H12 n512 d64 in bfloat16; a block of 8 warps has 64 rows, a warp selects 8 of them."""
    name = f"keep_mask_kernel<Bf16, Bf16Keys, 2, false>({PARAMETERS})"
    other_lengths = (
        r"if \(args.n_k <= 128\)",
        r"<= 256\)",
        r"<= 2 \* FULL\)",
        r"<= 4 \* FULL\)",
        r"else select_rows<Keys, 32",
    )
    rules = [
        *(Rule(KERNEL, line, 0) for line in other_lengths),
        Rule(KERNEL, r"else if \(args.n_k <= FULL\)", 1, "selection"),
        Rule(KERNEL, r"^    multiply_tiles<T, Keys, CHUNKS, WEIGHTED>\(args, plan, place, 0", 1, "product"),
        Rule(KERNEL, r"^  write_columns\(", 1, "columns"),
        Rule(KERNEL, r"for \(int word = warp; word < words", 2, once=("SHFL", 10)),
        Rule(KERNEL, r"if \(threadIdx.x == 0\) \*kept_place", 1 / 8),
        *selection(PASSES["S1"]),
        *product(tiles=4, words=2, dots=16, copies=4),
    ]
    return account(compile_kernel(name), rules, 32 * 12 * 512 / 8)


def long_rows() -> dict[str, Counter[str]]:
    """S2: B4 H32 n4096 d128 in bfloat16; a block fills 512 columns of 128 rows, or selects 8 of them."""
    name = f"keep_mask_ring_kernel<Bf16, Bf16Keys, 4, 4>({PARAMETERS}, const Ring, int, unsigned char*)"
    items, fills, reads = 4 * 32 * 4096 // 128, 8, 16
    share = fills / (fills + reads)
    rules = [
        Rule(KERNEL, r"\*turn = ring.next_turn\(\)", 1 / 8),
        Rule(KERNEL, r"\*kept_place = grid.place\(turn->item", 1 / 8),
        Rule(KERNEL, r"^      multiply_tiles<T, Keys, CHUNKS, false>", share, "product"),
        Rule(KERNEL, r"^    select_row<Keys, WORDS>\(args, team, slot", 1 - share, "selection"),
        *selection(PASSES["S2"]),
        *product(tiles=4, words=4, dots=32, copies=8),
    ]
    parts = account(compile_kernel(name), rules, items * (fills + reads) * 8)
    operands, keys = fills * (128 + 512) * 128 * 2, 128 * 4096 * 2
    parts["second-level cache"] = Counter(bytes=items * (operands + 2 * keys) / CACHE_RATE * 1e6)
    return parts


def compile_kernel(declaration: str) -> list[Instruction]:
    source = f'#include "cuda/keep_mask.cuh"\nnamespace attrdrop {{ template __global__ void {declaration}; }}'
    (kernel,) = compile_kernels(source).values()
    return kernel


def main() -> None:
    for title, parts in (("S1", short_rows()), ("S2", long_rows())):
        parts = {**parts, "sum": total(parts)}
        pipes = sorted({pipe for part in parts.values() for pipe in part})
        print(f"{title:20}" + "".join(f"{pipe:>9}" for pipe in pipes))
        for name, part in parts.items():
            print(f"{name:20}" + "".join(f"{part[pipe]:9.1f}" for pipe in pipes))


if __name__ == "__main__":
    main()
