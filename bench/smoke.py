"""Every op on every type and backend against the reference, in one process and without pytest: one line a failure.

python bench/smoke.py            the compiled backends of this machine, on its GPU where there is one
python bench/smoke.py cuda       one of them, for instance under compute-sanitizer
python bench/smoke.py triton     without a GPU in Triton's interpreter

Exit code 1 where something failed. Each case is a line of JSON in --output.
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait in a loop take the cores of a busy machine
if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

if "triton" in sys.argv and not torch.cuda.is_available():  # read when the kernels are imported
    os.environ["TRITON_INTERPRET"] = "1"

import attrdrop
from attrdrop import KeepMask

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
BITS = ("pack_mask", "keep_mask", "random_keep_mask", "keep_scores")
SERVED = {
    "cpp": {*BITS, "masked_attention", "attention_attribution", "relevance_gate", "blocks", "points"},
    "cuda": {*BITS, "blocks", "points"},
    "triton": {*BITS, "masked_attention", "attention_attribution", "relevance_gate"},
}
LOST = ("CUDA error", "illegal memory", "misaligned address")  # after these the device computes nothing any more


class Case(NamedTuple):
    """call(backend, *inputs()) against itself on the reference: the same bits, or an error below ``tolerance``.

    Errors are relative in norm, against the reference in float64.
    """

    op: str
    name: str
    call: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor | None, ...]]
    tolerance: float = 0.0


def tolerance(dtype: torch.dtype) -> float:
    """Some roundings of a result."""
    return 2e-5 if dtype == torch.float32 else 2e-2


def small(*shape: int, dtype: torch.dtype) -> Tensor:
    """Small integers: products are exact, so bits agree whatever the order of the sums."""
    return torch.randint(-3, 4, shape).to(dtype)


def bits(*shape: int, share: float = 0.8) -> Tensor:
    """A random mask, packed."""
    return attrdrop.pack_mask(torch.rand(shape) < share, backend="reference")


def parts(keep: KeepMask) -> tuple[Tensor, Tensor, Tensor]:
    return keep.rows, keep.cols, keep.counts


def pack(backend: str, mask: Tensor) -> tuple[Tensor, ...]:
    n = mask.shape[-1]
    packed = attrdrop.pack_mask(mask, backend=backend)
    return (
        packed,
        attrdrop.unpack_mask(packed, n, backend=backend),
        attrdrop.transpose_mask(packed, n, backend=backend),
    )


def rank(backend: str, x: Tensor, y: Tensor, valid: Tensor | None, bias: Tensor | None, **rule: Any) -> tuple:
    options = dict(p=0.3, q=0.4, seed=2**63 + 5, layer=3) | rule
    return parts(attrdrop.keep_mask(x, y, valid=valid, bias=bias, backend=backend, **options))


def weigh(backend: str, x: Tensor, y: Tensor, lse: Tensor) -> tuple:
    return parts(attrdrop.keep_mask(x, y, p=0.3, q=0.4, seed=1, weight=(x, y, lse, 0.0), backend=backend))


def draw(backend: str, valid: Tensor) -> tuple:
    options = dict(p=0.6, q=0.7, seed=11, valid=valid, device=valid.device)
    return parts(attrdrop.random_keep_mask(2, 2, 40, 70, backend=backend, **options))


def score(backend: str, scores: Tensor, valid: Tensor | None, **rule: Any) -> tuple:
    options = dict(p=0.3, q=0.4, seed=2**63 + 5, layer=3) | rule
    return tuple(attrdrop.keep_scores(scores, valid=valid, backend=backend, **options))


def attend(
    backend: str, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
) -> list[Tensor]:
    n_k = k.shape[2]
    leaves = [x.requires_grad_() for x in (q, k, v, bias) if x is not None]
    keep = KeepMask(rows, attrdrop.transpose_mask(rows, n_k, backend="reference"), rows.new_zeros(4))
    out = attrdrop.masked_attention(q, k, v, keep, bias=bias, seed=3, backend=backend, **options)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


def attribute(backend: str, grad: Tensor, v: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    explain = partial(attrdrop.attention_attribution, grad, v, backend=backend)
    return explain(), explain(topk=9).values, explain(rows=rows)


def gate(backend: str, z: Tensor, surrogate: Tensor, grad: Tensor, scale: Tensor, shift: Tensor) -> list[Tensor]:
    z.requires_grad_(), surrogate.requires_grad_()
    y = attrdrop.relevance_gate_relu(z, 1e-2, scale=scale, shift=shift, backend=backend)
    through = attrdrop.relevance_gate(z, 1e-2, surrogate=surrogate, backend=backend)
    return [y, *torch.autograd.grad(y, z, grad), *torch.autograd.grad(through, surrogate, grad)]


def occlude(backend: str, images: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
    out, boxes = attrdrop.occlude_blocks(images, relevance, p=0.8, k_centers=4, alpha=0.3, seed=5, backend=backend)
    filled = attrdrop.fill_blocks(images, boxes, value=(1.0, 2.0, 3.0), policy="keep", backend=backend)
    return out, boxes, filled


def clouds(backend: str, points: Tensor, relevance: Tensor) -> list[Tensor]:
    dropped = [
        x
        for mode in ("threshold", "calibrated")
        for x in attrdrop.occlude_points(points, relevance, mode=mode, value="resample", seed=1, backend=backend)
    ]
    chosen = attrdrop.farthest_point_sample(points, 20, backend=backend)
    centres = points.take_along_dim(chosen[..., None], 1)[..., :3].contiguous()
    index = attrdrop.ball_query(points, centres, radius=0.5, k=8, backend=backend)
    leaf = points.detach().clone().requires_grad_()
    groups = attrdrop.group_points(leaf, index, centres, backend=backend)
    return [*dropped, chosen, index, groups, *torch.autograd.grad(groups, leaf, torch.ones_like(groups))]


def mask_cases(longest: int = 4096) -> Iterator[Case]:
    for n in (1, 7, 33, 63, 111, 1000):
        yield Case("pack_mask", f"n={n}", pack, lambda n=n: (torch.rand(3, 40, n) < 0.5,))
    for dtype, (n, d) in itertools.product(FLOATS, ((1, 1), (63, 17), (512, 64), (1000, 72), (2048, 130), (4096, 24))):
        if n > longest:
            continue
        x = lambda n=n, d=d, dtype=dtype: small(1, 2, min(n, 37), d, dtype=dtype)  # noqa: E731
        y = lambda n=n, d=d, dtype=dtype: small(1, 1, n, d, dtype=dtype)  # noqa: E731
        add = lambda n=n, dtype=dtype: small(1, 2, 1, n, dtype=dtype)  # noqa: E731
        name = f"{dtype} n={n} d={d}"
        for rule in ({}, {"is_causal": True}, {"region": "low"}, {"keys": "bf16"}):
            yield Case("keep_mask", f"{name} {rule}", partial(rank, **rule), lambda x=x, y=y: (x(), y(), None, None))
        yield Case("keep_mask", f"{name} valid", rank, lambda x=x, y=y, n=n: (x(), y(), bits(1, 1, 1, n), None))
        yield Case("keep_mask", f"{name} bias", rank, lambda x=x, y=y, add=add: (x(), y(), None, add()))
        yield Case(
            "keep_mask", f"{name} weight", weigh, lambda x=x, y=y, n=n: (x(), y(), torch.zeros(1, 2, min(n, 37)))
        )
    for dtype, m in itertools.product(FLOATS, (1, 33, 63, 1000, 2048, 3072, 4096)):
        if m > longest:
            continue
        scores = lambda m=m, dtype=dtype: torch.randn(2, 37, m).to(dtype)  # noqa: E731
        for rule in ({}, {"region": "low"}, {"p": 1.0}):
            name = f"{dtype} m={m} {rule}"
            yield Case("keep_scores", name, partial(score, **rule), lambda scores=scores: (scores(), None))
        yield Case("keep_scores", f"{dtype} m={m} valid", score, lambda scores=scores, m=m: (scores(), bits(2, 1, m)))
    yield Case("random_keep_mask", "valid", draw, lambda: (bits(2, 1, 1, 70),))


def attention_cases() -> Iterator[Case]:
    kinds: list[tuple[int, dict[str, Any], bool]] = [
        (64, {}, False), (64, {"dropout_p": 0.1}, False), (24, {}, True), (128, {}, False), (256, {}, False),
    ]  # fmt: skip
    for dtype, (d, options, biased) in itertools.product(FLOATS, kinds):
        if d > 128 and dtype == torch.float32:
            continue

        def inputs(d=d, dtype=dtype, biased=biased):
            q, k, v = (torch.randn(2, h, n, d).to(dtype) for h, n in ((4, 70), (2, 130), (2, 130)))
            bias = torch.randn(1, 4, 70, 130).to(dtype) if biased else None
            return q, k, v, bits(2, 4, 70, 130, share=0.7), torch.randn(2, 70, 4, d).to(dtype), bias

        name = f"{dtype} d={d} {options}{' bias' if biased else ''}"
        yield Case("masked_attention", name, partial(attend, **options), inputs, tolerance(dtype))
    for dtype in FLOATS:
        inputs = lambda dtype=dtype: (  # noqa: E731
            small(2, 4, 40, 5, dtype=dtype), small(2, 2, 63, 5, dtype=dtype), torch.tensor([1, 39]),
        )  # fmt: skip
        yield Case("attention_attribution", str(dtype), attribute, inputs)


def reldrop_cases() -> Iterator[Case]:
    for dtype, layout in itertools.product(FLOATS, (torch.contiguous_format, torch.channels_last)):

        def inputs(dtype=dtype, layout=layout):
            z, grad = (torch.randn(3, 24, 14, 14).to(dtype).contiguous(memory_format=layout) for _ in range(2))
            return z, 3 + z / 2, grad, torch.rand(24) + 0.5, torch.randn(24)

        yield Case("relevance_gate", f"{dtype} {layout}", gate, inputs, tolerance(dtype))
    for dtype in (torch.uint8, *FLOATS):
        inputs = lambda dtype=dtype: (  # noqa: E731
            torch.randint(0, 200, (5, 3, 40, 36)).to(dtype), torch.randint(0, 9, (5, 10, 9)).float(),
        )  # fmt: skip
        yield Case("blocks", str(dtype), occlude, inputs)
    for dtype, size in itertools.product(FLOATS, (100, 9000)):
        inputs = lambda dtype=dtype, size=size: (torch.randn(2, size, 6).to(dtype), torch.randn(2, size))  # noqa: E731
        yield Case("points", f"{dtype} P={size}", clouds, inputs)


def move(x: Tensor | None, device: torch.device, exact: bool) -> Tensor | None:
    if x is None:
        return None
    return x.to(device, torch.float64 if exact and x.is_floating_point() else x.dtype)


def outcome(case: Case, backend: str, device: torch.device) -> str:
    """Empty where the backend is right, else what is wrong."""
    torch.manual_seed(0)
    inputs = case.inputs()
    expected = case.call("reference", *(move(x, torch.device("cpu"), case.tolerance > 0) for x in inputs))
    found = case.call(backend, *(move(x, device, False) for x in inputs))
    for place, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        ours, exact = ours.detach().cpu(), exact.detach()
        if case.tolerance:
            error = float((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30))
            if not error <= case.tolerance:
                return f"result {place}: error {error:.2e}, allowed {case.tolerance:.0e}"
        elif not torch.equal(ours, exact):
            return f"result {place}: {int((ours != exact).sum())} of {exact.numel()} differ"
    return ""


def run(backend: str, device: torch.device, log: Any) -> int:
    """How many cases failed; each is a line in the log. Triton's interpreter is too slow for long rows."""
    begin, done, failed = time.monotonic(), 0, 0
    longest = 63 if (backend, device.type) == ("triton", "cpu") else 4096
    for case in itertools.chain(mask_cases(longest), attention_cases(), reldrop_cases()):
        if case.op not in SERVED[backend]:
            continue
        start = time.monotonic()
        try:
            said = outcome(case, backend, device)
        except Exception as error:  # whatever it is, the other cases still tell something
            said = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300]
        done, failed = done + 1, failed + bool(said)
        seconds = round(time.monotonic() - start, 3)
        log.write(json.dumps(dict(backend=backend, op=case.op, case=case.name, seconds=seconds, error=said)) + "\n")
        log.flush()
        if said:
            print(f"FAILED {backend} {case.op} {case.name}: {said}", flush=True)
        if any(sign in said for sign in LOST):
            print(f"{backend}: the device is lost; what comes after was not run")
            break
    print(f"smoke {backend}: {done - failed} of {done} right, {time.monotonic() - begin:.0f} s", flush=True)
    return failed


def interpret() -> None:
    """Triton's kernels on the CPU; the tests know what its interpreter needs for that."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
    import interpreter

    interpreter.install()


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a case failed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", choices=[*SERVED, []], help=f"of {', '.join(SERVED)}")
    parser.add_argument("--output", type=Path, help="file for a line of JSON a case")
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and "triton" in options.backends:
        interpret()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # an element that nothing writes is seen
    failed = 0
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(options.output or os.devnull, "w"))
        for backend in options.backends or (["cuda", "triton"] if has_gpu else ["cpp"]):
            on_gpu = has_gpu and backend != "cpp"
            failed += run(backend, torch.device("cuda" if on_gpu else "cpu"), log)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
