"""How kernels are launched: tile sizes per chip, type and head width, and an optional search for better ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
AUTOTUNE = os.environ.get("ATTRDROP_AUTOTUNE") == "1"

NOT_SPECIALIZED = ("heads", "groups", "n_q", "n_k", "seed", "threshold", "minus_inf")
"""Arguments whose value must not lead to another compilation: lengths change from batch to batch."""


LARGEST_BLOCK = 128
"""No tile has more queries or keys; every tile's are a power of two."""


class Tile(NamedTuple):
    """A block of queries by keys, and the warps and pipeline stages that work on it."""

    queries: int
    keys: int
    warps: int
    stages: int


class Matrices(NamedTuple):
    """A tensor (B, H, n, m) as kernels take it: a stride of 0 where it broadcasts over samples, heads or rows."""

    pointer: Tensor
    stride_b: int
    stride_h: int
    stride_n: int
    stride_m: int


INTERPRETER_TILE = Tile(64, 64, 1, 1)

# Chosen ahead of time from machine code: the tile with the fewest instructions per position whose loops spill nothing.
# One tile, or three: plain, with dropout, with a bias (and perhaps dropout).
TILES: dict[tuple[str, str], dict[int, dict[int, tuple[Tile, ...]]]] = {
    ("half", "forward"): {
        80: {
            32: (Tile(128, 64, 4, 3), Tile(128, 64, 4, 2), Tile(64, 32, 4, 2)),
            64: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
            128: (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
            256: (Tile(32, 32, 4, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
        },
        90: {
            32: (Tile(128, 64, 4, 3), Tile(128, 64, 4, 2), Tile(64, 32, 4, 2)),
            64: (Tile(128, 64, 4, 3), Tile(128, 64, 4, 2), Tile(128, 64, 8, 2)),
            128: (Tile(128, 128, 8, 2), Tile(128, 128, 8, 2), Tile(128, 32, 8, 2)),
            256: (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(32, 32, 8, 2)),
        },
    },
    ("half", "grad_query"): {
        80: {
            32: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
            64: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
            128: (Tile(64, 64, 8, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            256: (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 8, 2)),
        },
        90: {
            32: (Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3)),
            64: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3)),
            128: (Tile(128, 64, 8, 2), Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
            256: (Tile(128, 32, 8, 2), Tile(128, 32, 8, 2), Tile(32, 32, 8, 2)),
        },
    },
    ("half", "grad_key_value"): {
        80: {
            32: (Tile(64, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 64, 4, 2)),
            64: (Tile(32, 128, 8, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            128: (Tile(64, 64, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            256: (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        },
        90: {
            32: (Tile(64, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 128, 8, 2)),
            64: (Tile(64, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 128, 8, 2)),
            128: (Tile(64, 128, 8, 2), Tile(32, 128, 8, 2), Tile(32, 128, 8, 2)),
            256: (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        },
    },
    ("half", "grad_bias"): {
        80: {
            32: (Tile(32, 32, 4, 2),),
            64: (Tile(64, 32, 8, 1),),
            128: (Tile(64, 32, 8, 1),),
            256: (Tile(64, 32, 8, 1),),
        },
        90: {
            32: (Tile(64, 64, 8, 2),),
            64: (Tile(64, 64, 4, 2),),
            128: (Tile(64, 64, 8, 2),),
            256: (Tile(64, 32, 8, 1),),
        },
    },
    ("tf32", "forward"): {80: {32: (Tile(64, 32, 4, 2),), 64: (Tile(64, 32, 4, 2),), 128: (Tile(32, 32, 4, 2),)}},
    ("tf32", "grad_query"): {80: {32: (Tile(64, 32, 4, 2),), 64: (Tile(32, 32, 4, 2),), 128: (Tile(16, 32, 4, 2),)}},
    ("tf32", "grad_key_value"): {
        80: {32: (Tile(32, 32, 4, 1),), 64: (Tile(32, 32, 8, 2),), 128: (Tile(32, 32, 8, 1),)}
    },
    ("tf32", "grad_bias"): {80: {32: (Tile(32, 32, 4, 2),), 64: (Tile(32, 32, 8, 1),), 128: (Tile(32, 32, 8, 1),)}},
    ("ieee", "forward"): {80: {32: (Tile(64, 32, 8, 2),), 64: (Tile(64, 32, 8, 2),), 128: (Tile(32, 32, 4, 2),)}},
    ("ieee", "grad_query"): {80: {32: (Tile(64, 32, 4, 2),), 64: (Tile(32, 32, 4, 2),), 128: (Tile(32, 32, 8, 2),)}},
    ("ieee", "grad_key_value"): {
        80: {32: (Tile(32, 64, 8, 2),), 64: (Tile(32, 64, 8, 2),), 128: (Tile(32, 32, 8, 2),)}
    },
    ("ieee", "grad_bias"): {80: {32: (Tile(32, 32, 4, 2),), 64: (Tile(32, 32, 4, 2),), 128: (Tile(32, 32, 8, 1),)}},
}
"""(type, kernel) -> oldest chip -> widest head -> tiles. "tf32" and "ieee" are the two ways to multiply float32."""


@cache
def chip(device: torch.device) -> int:
    """Compute capability, as ``tiles_of`` sees it."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(f"Triton kernels need compute capability 8.0 or later, {device} has {major}.{minor}")
    return tiles_of(10 * major + minor)


def tiles_of(capability: int) -> int:
    """90 for 9.0. All of 8.x and 12.x count as 80: some have 99 KiB of shared memory only."""
    return 80 if capability // 10 in (8, 12) else capability


def choose(name: str, kind: str, width: int, capability: int, has_bias: bool, has_dropout: bool) -> Tile:
    """The tile of a kernel for heads up to ``width`` wide."""
    chips = TILES[kind, name]
    tiles = chips[max(oldest for oldest in chips if oldest <= capability)]
    choices = tiles[min(widest for widest in tiles if widest >= width)]
    return choices[-1 if has_bias else has_dropout and len(choices) > 1]


def strides(letter: str, tensor: Tensor | None, names: str) -> dict[str, int]:
    """stride_<letter><name> for each leading dimension; 0 where it broadcasts or there is no tensor."""
    if tensor is None:
        return {f"stride_{letter}{name}": 0 for name in names}
    sizes = zip(names, tensor.shape, tensor.stride(), strict=False)
    return {f"stride_{letter}{name}": 0 if size == 1 else stride for name, size, stride in sizes}


def matrices(tensor: Tensor | None) -> Matrices | None:
    if tensor is None:
        return None
    leading = zip(tensor.shape[:3], tensor.stride(), strict=False)
    return Matrices(tensor, *(0 if size == 1 else stride for size, stride in leading), tensor.stride(3))


def unit_stride(x: Tensor) -> Tensor:
    """x with a unit last stride, and rows near enough for 32-bit offsets inside a tile."""
    fits = x.stride(-1) == 1 or x.shape[-1] == 1
    return x if fits and x.stride(-2) < 2**22 else x.contiguous()


def float32_precision() -> str:
    """How float32 is multiplied: as torch's own setting says."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(
    name: str,
    kernel: Any,
    arguments: Mapping[str, Any],
    programs: Callable[[Tile], int],
    *,
    kind: str,
    width: int,
    device: torch.device,
) -> None:
    """Runs a kernel on the tile of the table; ``programs`` gives their number for a tile.

    ``arguments`` may hold more than the kernel takes. ATTRDROP_AUTOTUNE=1 times all tiles once instead.
    """
    given = {key: value for key, value in arguments.items() if key in kernel.arg_names}

    def run(tile: Tile) -> None:
        blocks = dict(BLOCK_Q=tile.queries, BLOCK_K=tile.keys)
        kernel[(programs(tile),)](**given, **blocks, num_warps=tile.warps, num_stages=tile.stages)

    with on_device(device):
        flags = arguments["bias"] is not None, arguments["survivors"] is not None
        tile = INTERPRETER_TILE if INTERPRETED else choose(name, kind, width, chip(device), *flags)
        if AUTOTUNE and not INTERPRETED:
            given_masks = tuple(arguments[key] is not None for key in ("words", "bias", "survivors"))
            key = name, kind, width, given_masks, arguments["n_q"], arguments["n_k"], device
            if key not in _tuned:
                _tuned[key] = _fastest(run, tile, _variants(kind, name))
            tile = _tuned[key]
        run(tile)


_tuned: dict[tuple, Tile] = {}


def _variants(kind: str, name: str) -> set[Tile]:
    """Every tile that some chip or width has for this kernel, at each depth of the pipeline."""
    known = {tile for tiles in TILES[kind, name].values() for choices in tiles.values() for tile in choices}
    return {tile._replace(stages=stages) for tile in known for stages in (1, 2, 3, 4)}


def _fastest(run: Callable[[Tile], None], default: Tile, variants: set[Tile]) -> Tile:
    times = {}
    for tile in {default, *variants}:
        with contextlib.suppress(triton.runtime.errors.OutOfResources):  # too much shared memory for this chip
            times[tile] = triton.testing.do_bench(lambda tile=tile: run(tile), warmup=5, rep=30, return_mode="median")
    return min(times, key=lambda tile: times[tile])
