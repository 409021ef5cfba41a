"""Compiles every Triton kernel in every shipped tile, ahead of time, and prints one JSON line for each.

``python tests/gates/shipped_kernels.py [--write] [--table] [pattern]``: --write stores the instruction counts that the
test compares with, --table prints by which instructions the kernels multiply; pattern picks the cases in whose name it
is found.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ahead import Report, compile_ahead

from attrdrop.triton_kernels import (
    attention_attribution,
    dropout_words,
    keep_mask,
    keep_mask_scratch,
    keep_mask_select,
    launch,
    masked_attention,
    masked_attention_backward,
    masked_attention_grad_bias,
    pack_mask,
    relevance_gate,
)

COUNTS = Path(__file__).with_name("instruction_counts.json")
TILED = {
    "forward": masked_attention.masked_attention_forward_kernel,
    "grad_query": masked_attention_backward.masked_attention_backward_query_kernel,
    "grad_key_value": masked_attention_backward.masked_attention_backward_key_value_kernel,
    "grad_bias": masked_attention_grad_bias.masked_attention_backward_bias_kernel,
}
FLAGS = {
    "plain": (True, False, False),
    "dropout": (True, False, True),
    "bias": (True, True, True),
    "unmasked": (False, False, False),
}
"""HAS_KEEP, HAS_BIAS, HAS_DROPOUT"""

TYPES = {
    **dict.fromkeys(("p_lse", "p_shift", "p_scale", "p_delta", "p_sums"), "*fp32"),
    **dict.fromkeys(("p_rows", "p_cols", "words", "survivors", "p_words", "p_keep", "p_bits", "p_valid"), "*i32"),
    **dict.fromkeys(("p_ids", "p_keys", "p_index", "p_counts"), "*i64"),
    **dict.fromkeys(("scale", "kept_share", "share", "quantile", "spacing", "eps"), "fp32"),
    "p_mask": "*i8", "seed": "i64",
}  # fmt: skip
ALIGNED = {f"stride_{x}{y}" for x in "qkvoxy" for y in "bhn"} | {"padded_q", "size", "channels"}
BLACKWELL = 100, 120
MATRICES = {
    **dict.fromkeys(("q", "k", "v", "grad_out", "weight_q", "weight_k"), ("stride_b", "stride_h", "stride_n")),
    **dict.fromkeys(("words", "survivors"), ()), "bias": ("stride_n", "stride_m"),
}  # fmt: skip
"""Arguments that are launch.Matrices, and which of their strides are multiples of 16 where they are not 1."""


@dataclass(frozen=True)
class Case:
    """A kernel with its constants; ``positions`` are done in one turn of its inner loop, or in all without one."""

    name: str
    kernel: Any
    arch: int
    constants: Mapping[str, Any]
    float_type: str = "*bf16"
    types: Mapping[str, str] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    positions: int = 0
    unit: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(MATRICES, "stride_m"))  # the stride that is 1


def tiled_case(kernel: str, kind: str, width: int, arch: int, flags: str, tile: launch.Tile | None = None) -> Case:
    has_keep, has_bias, has_dropout = FLAGS[flags]
    tile = tile or launch.choose(kernel, kind, width, launch.tiles_of(arch), has_bias, has_dropout)
    absent = [] if has_keep else ["words"]
    absent += [] if has_dropout else ["survivors"]
    absent += [] if has_bias or kernel == "grad_bias" else ["bias"]
    unit = dict.fromkeys(MATRICES, "stride_m")
    if kernel == "grad_key_value":
        unit["bias"] = "stride_n"
    constants = dict(
        D=width, BLOCK_D=width, D_V=width, BLOCK_V=width, BLOCK_Q=tile.queries, BLOCK_K=tile.keys, SIGN=1,
        PRECISION="tf32" if kind == "tf32" else "ieee", IS_EVEN=True, **dict.fromkeys(absent),
    )  # fmt: skip
    return Case(
        f"{kernel}-{kind}-d{width}-sm{arch}-{flags}", TILED[kernel], arch, constants,
        "*bf16" if kind == "half" else "*fp32", warps=tile.warps, stages=tile.stages,
        positions=tile.queries * tile.keys, unit=unit,
    )  # fmt: skip


def keep_mask_cases(arch: int) -> Iterator[Case]:
    isa = launch.tiles_of(arch)
    common = dict(
        LOW=False, HAS_VALID=True, IS_CAUSAL=False, ISA=isa, **dict.fromkeys(("p_q", "p_k", "p_lse")), WEIGHTED=False,
        E=16, BLOCK_E=16,
    )  # fmt: skip
    biases = {"": dict(HAS_BIAS=False, p_bias=None), "-bias": dict(HAS_BIAS=True, stride_bk=1)}
    shapes = (64, 128), (64, 512), (64, 1024), (128, 256), (128, 1024), (256, 1024)
    for (d, n), (suffix, bias) in itertools.product(shapes, biases.items()):
        if tile := keep_mask.register_tile(isa, d, n):
            constants = dict(
                **common, **bias, D=d, BLOCK_D=d, PACKED=True, BLOCK_Q=tile.queries, BLOCK_K=tile.keys,
                CHUNKS=-(-n // tile.keys),
            )  # fmt: skip
            yield Case(
                f"keep_mask_registers-d{d}-n{n}-sm{arch}{suffix}", keep_mask_select.select_in_registers_kernel, arch,
                constants, warps=tile.warps, stages=tile.stages,
            )  # fmt: skip
    longer = (torch.bfloat16, 64, 2048), (torch.bfloat16, 128, 4096), (torch.float32, 64, 512)
    for (dtype, d, n), (suffix, bias) in itertools.product(longer, biases.items()):
        is_half = dtype != torch.float32
        tile, width = keep_mask.scratch_tile(isa, dtype, d, False), d if is_half else 16
        rows, columns, chunks = keep_mask.scratch_layout(isa, n, 2 if is_half else 1)
        constants = dict(
            **common, **bias, D=d, BLOCK_D=width, PACKED=is_half, BLOCK_Q=tile.queries, BLOCK_K=tile.keys, ROWS=rows,
            COLUMNS=columns, CHUNKS=chunks, GUESSED=keep_mask.is_guessed(chunks, False),
        )  # fmt: skip
        types = ("*bf16", {"p_scratch": "*i32"}) if is_half else ("*fp32", {"p_scratch": "*fp32"})
        yield Case(
            f"keep_mask_scratch-d{d}-n{n}-sm{arch}{suffix}", keep_mask_scratch.select_through_scratch_kernel, arch,
            constants, *types, tile.warps, tile.stages,
        )  # fmt: skip
    for dtype, m in itertools.product((torch.bfloat16, torch.float32), (128, 1536, 3072, 14336)):
        is_bf16 = dtype == torch.bfloat16
        tile = keep_mask.scratch_tile(arch, dtype, 16, False)
        rows, columns, chunks = keep_mask.scratch_layout(arch, m, 2 if is_bf16 else 1)
        constants = dict(
            **common, **biases["-bias"], p_x=None, p_y=None, D=0, BLOCK_D=16, PACKED=is_bf16, BLOCK_Q=tile.queries,
            BLOCK_K=tile.keys, ROWS=rows, COLUMNS=columns, CHUNKS=chunks,
            GUESSED=keep_mask.is_guessed(chunks, False),
        )  # fmt: skip
        types = ("*bf16", {"p_scratch": "*i32"}) if is_bf16 else ("*fp32", {"p_scratch": "*fp32"})
        yield Case(
            f"keep_scores-{'bf16' if is_bf16 else 'fp32'}-m{m}-sm{arch}",
            keep_mask_scratch.select_through_scratch_kernel, arch, constants, *types, tile.warps, tile.stages,
        )  # fmt: skip
    blocks = dict(ROWS=keep_mask.DRAW_ROWS, WORDS=keep_mask.DRAW_WORDS)
    drawn = dict(CANDIDATES="rows", HAS_VALID=True, IS_CAUSAL=True, HAS_IDS=True, ISA=isa, **blocks)
    yield Case(f"keep_mask_draw-sm{arch}", keep_mask.draw_kernel, arch, drawn)
    yield Case(f"keep_scores_draw-sm{arch}", keep_mask.draw_kernel, arch, drawn | dict(p_cols=None, IS_CAUSAL=False))
    yield Case(f"transpose_mask-sm{arch}", keep_mask.transpose_kernel, arch, blocks)


def gate_cases(arch: int) -> Iterator[Case]:
    shapes = {"flat": (1, 1), "last": (64, 1), "short": (64, 49), "long": (64, 3136), "huge": (64, 2**20)}
    for layout, (channels, inner) in shapes.items():  # inner: elements of a channel that lie together
        known = relevance_gate.layout(64 * channels * inner, channels, inner)
        has_channels = channels > 1
        absent = ["p_surrogate"] if has_channels else ["p_surrogate", "p_scale", "p_shift"]
        constants = known | dict.fromkeys(absent)
        constants |= dict(HAS_SCALE=has_channels, HAS_SHIFT=has_channels, RELU=True, HAS_SURROGATE=False)
        for name in ("size", "channels", "inner", "inverse"):
            del constants[name]
        for name in ("forward", "backward"):
            kernel = getattr(relevance_gate, f"relevance_gate_{name}_kernel")
            for kind in ("bf16", "fp32"):
                yield Case(
                    f"gate_{name}-{kind}-{layout}-sm{arch}", kernel, arch, constants,
                    f"*{kind}", {"size": "i64" if known["IS_HUGE"] else "i32"}, relevance_gate.WARPS,
                    positions=relevance_gate.BLOCK,
                )  # fmt: skip


def cases() -> Iterator[Case]:
    for kind, kernel in launch.TILES:
        for width, tiles in launch.TILES[kind, kernel][80].items():
            for arch in (80, 90):
                for flags in ("plain", "dropout", "bias"):
                    if len(tiles) == 3 or flags == "bias":
                        yield tiled_case(kernel, kind, width, arch, flags)
    for kernel, width in itertools.product(("forward", "grad_query", "grad_key_value"), (64, 128)):
        yield tiled_case(kernel, "half", width, 90, "unmasked")
        for arch, flags in itertools.product(BLACKWELL, ("plain", "dropout", "bias")):
            yield tiled_case(kernel, "half", width, arch, flags)
    attribution = dict(
        D=64, BLOCK_D=64, E=64, BLOCK_E=64, BLOCK_Q=32, BLOCK_K=32, PRECISION="ieee", IS_CAUSAL=True, TOP=16,
    )  # fmt: skip
    unweighted = dict.fromkeys(("weight_q", "weight_k", "p_lse", "bias"))
    for arch in (80, 90, *BLACKWELL):
        for name in ("sums", "rows", "top"):
            kernel = getattr(attention_attribution, f"attention_attribution_{name}_kernel")
            types = {"p_rows": "*fp32"} if name == "rows" else {}
            yield Case(f"attribution_{name}-sm{arch}", kernel, arch, attribution | unweighted, types=types)
            yield Case(f"attribution_{name}-sm{arch}-relevance", kernel, arch, attribution, types=types)
            alone = attribution | dict(D=0, BLOCK_D=16, grad_out=None, v=None, bias=None)
            yield Case(f"attribution_{name}-sm{arch}-probability", kernel, arch, alone, types=types)
        words = dict(ROWS=dropout_words.ROWS, WORDS=dropout_words.WORDS, HAS_COLS=True)
        yield Case(f"dropout_words-sm{arch}", dropout_words.masked_attention_dropout_kernel, arch, words)
        block = dict(BLOCK=pack_mask.BLOCK_WORDS, stride_column=1)
        yield Case(f"pack_mask-sm{arch}", pack_mask.pack_mask_kernel, arch, block)
        yield Case(f"unpack_mask-sm{arch}", pack_mask.unpack_mask_kernel, arch, block)
        yield from keep_mask_cases(arch)
        if arch not in BLACKWELL:  # the gates have no tiles, and nothing of a chip's own
            yield from gate_cases(arch)


def compile_case(case: Case) -> Report:
    names = case.kernel.arg_names
    constants = {name: value for name, value in case.constants.items() if name in names}
    free = [name for name in names if name not in constants]
    types = {**TYPES, **case.types}
    is_float = {n for n in free if n.startswith("p_") or n in MATRICES}
    signature = {n: types.get(n, case.float_type if n in is_float else "i32") for n in free}
    aligned = [n for n in free if n.startswith("p_") or n in ALIGNED]
    for n in MATRICES.keys() & set(free):
        fields = {
            "pointer": signature[n],
            **dict.fromkeys(launch.Matrices._fields[1:], "i32"),
            case.unit[n]: "constexpr",
        }
        signature[n] = launch.Matrices(**fields)
        places = {field: (n, launch.Matrices._fields.index(field)) for field in fields}
        constants[places[case.unit[n]]] = 1
        aligned += [places[field] for field in ("pointer", *MATRICES[n]) if field != case.unit[n]]
    return compile_ahead(
        case.kernel, signature, constants, case.arch, warps=case.warps, stages=case.stages, aligned=aligned
    )


def describe(case: Case) -> dict[str, Any]:
    report = compile_case(case)
    row = {"case": case.name, "warps": case.warps, **asdict(report)}
    loop = row.pop("loop_counts")
    row["loop_spills"] = loop.get("LDL", 0) + loop.get("STL", 0)
    if case.positions:
        instructions = report.loop_instructions or report.instructions
        row["per_position"] = round(instructions * case.warps * 32 / case.positions, 2)
    return row


def describe_named(name: str) -> dict[str, Any]:
    return describe(next(case for case in cases() if case.name == name))


def dots_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: HGMMA, UTCHMMA or HMMA where a kernel with bfloat16 operands multiplies so, by chip and variant."""
    chips = (90, 100, 120)
    found: dict[str, dict[int, dict[str, str]]] = {}
    for row in rows:
        kernel, chip, variant = re.fullmatch(r"(.*)-sm(\d+)-?(.*)", row["case"]).groups()
        group = {90: "HGMMA", 100: "UTCHMMA"}.get(row["arch"], "")
        name = group if row["hgmma"] else "HMMA" if row["hmma"] else ""
        if name and row["arch"] in chips:
            found.setdefault(kernel.replace("-half", ""), {}).setdefault(int(chip), {})[variant or "plain"] = name

    def cell(variants: dict[str, str]) -> str:
        names = dict.fromkeys(variants.values())
        return "; ".join(
            n if len(names) == 1 else f"{n} ({', '.join(v for v in variants if variants[v] == n)})" for n in names
        )

    lines = [f"| kernel, head | {' | '.join(f'sm_{chip}' for chip in chips)} |", "| --- " * (len(chips) + 1) + "|"]
    for kernel, cells in sorted(found.items()):
        lines.append(f"| {kernel.replace('-', ', ')} | {' | '.join(cell(cells.get(chip, {})) for chip in chips)} |")
    return "\n".join(lines)


def main() -> None:
    pattern = next((a for a in sys.argv[1:] if not a.startswith("--")), "")
    rows = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(describe_named, [case.name for case in cases() if re.search(pattern, case.name)]):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if "--table" in sys.argv:
        print(dots_table(rows))
    if "--write" in sys.argv:
        counts = {row["case"]: row["per_position"] for row in rows if "per_position" in row}
        COUNTS.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
