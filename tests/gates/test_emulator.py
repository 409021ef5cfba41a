"""The emulator that runs CUDA kernels on the host: it is right, and it notices the usual mistakes."""

import numpy as np
import pytest
import torch

from attrdrop import pack_mask, transpose_mask

host = pytest.importorskip("attrdrop._host")
SEEDS = range(12)
VALUES = np.arange(128, dtype=np.int32) ** 2


def run(mistake: str, seed: int) -> np.ndarray:
    return host.run_sample(VALUES, getattr(host.Mistake, mistake), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correct_kernel_gives_the_right_result_in_every_order(seed):
    assert (run("none", seed) == VALUES.sum()).all()


@pytest.mark.parametrize("mistake", ["missing_barrier", "missing_warp_barrier", "missing_wait", "unwritten_shared"])
def test_a_race_changes_the_result_for_every_seed(mistake):
    assert all((run(mistake, seed) != VALUES.sum()).any() for seed in SEEDS[1:])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("divergent_barrier", "divergent barrier: threads wait at different ones"),
        ("barrier_after_exit", "divergent barrier: 64 of 128 threads reach it"),
        ("missing_lane", "a warp collective waits for lanes that never come"),
        ("write_past_dynamic_shared", "a write past the end or before the begin of shared memory"),
        ("write_past_static_shared", "a write past the end or before the begin of shared memory"),
        ("copy_never_waited_for", "asynchronous copies that it never waited for"),
        ("misaligned_copy", "not aligned to 16 bytes"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mistake_is_reported(mistake, message, seed):
    with pytest.raises(RuntimeError, match=f"sample_kernel: .*{message}"):
        run(mistake, seed)


@pytest.mark.parametrize("n", [0, 1, 7, 31, 32, 33, 63, 64, 111, 1000])
def test_pack_and_unpack(n):
    mask = torch.rand(2 * n, 13).T[:, ::2] < 0.5  # any strides
    bits = host.pack_mask_cuda(mask.numpy(), scheduler_seed=n)
    assert np.array_equal(bits.view(np.int32), pack_mask(mask, backend="reference").numpy())
    assert np.array_equal(host.unpack_mask_cuda(bits, n, scheduler_seed=n), mask.numpy())


@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (7, 33), (32, 32), (100, 63), (65, 200), (0, 5), (5, 0)])
def test_transpose(n_q, n_k):
    rows = pack_mask(torch.rand(3, n_q, n_k) < 0.5)
    cols = host.transpose_mask_cuda(rows.numpy().view(np.uint32), n_k, scheduler_seed=n_q)
    assert np.array_equal(cols.view(np.int32), transpose_mask(rows, n_k, backend="reference").numpy())
