"""The random stream: published vectors, and the same bits from the reference, the host module and C++."""

import numpy as np
import pytest
import torch

from attrdrop import random_keep_mask, unpack_mask
from attrdrop.reference.philox import bernoulli, philox4x32_10

_host = pytest.importorskip("attrdrop._host")

# Known answers of Random123 (kat_vectors, philox4x32 10 rounds): key, counter, output.
VECTORS = [
    (0, [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (2**64 - 1, [0xFFFFFFFF] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        0x299F31D0A4093822,
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("key", "counter", "output"), VECTORS)
def test_known_answers(key, counter, output):
    words = philox4x32_10(key, tuple(torch.tensor([c]) for c in counter))
    assert [int(w) for w in words] == output
    assert _host.philox(key, np.array(counter, dtype=np.uint32)).tolist() == output


def test_reference_and_host_agree_on_many_counters():
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, (500, 4), dtype=np.uint32)
    seed = int(generator.integers(0, 2**63))
    expected = _host.philox(seed, counters)
    ours = philox4x32_10(seed, tuple(torch.from_numpy(counters[:, i].astype(np.int64)) for i in range(4)))
    assert np.array_equal(torch.stack(ours, -1).numpy(), expected.astype(np.int64))


@pytest.mark.parametrize("rate", [0.0, 1 / 65536, 0.1, 0.25, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("n_k", [1, 31, 32, 33, 100, 700])
def test_same_draws_everywhere(rate, n_k):
    heads, n_q, layer, seed = 3, 37, 11, 0xDEADBEEF12345678
    ids = torch.tensor([5, 2**31 + 3])
    drawn = bernoulli(seed, layer, ids, heads, n_q, n_k, rate)
    words = (n_k + 31) // 32
    for i, sample in enumerate(ids.tolist()):
        for head in range(heads):
            bits = _host.bernoulli_words(seed, layer, head, sample, n_q, words, rate)
            assert np.array_equal(_host.unpack_mask(bits, n_k), drawn[i, head].numpy())
    keep = random_keep_mask(2, heads, n_q, n_k, p=1.0, q=rate, seed=seed, layer=layer, sample_ids=ids, backend="cpp")
    kept = ~drawn | ~(~drawn).any(-1, keepdim=True)  # a row that would lose everything keeps everything
    assert torch.equal(unpack_mask(keep.rows, n_k), kept)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7])
def test_draws_are_bernoulli(rate):
    drawn = bernoulli(7, 0, torch.arange(4), 4, 64, 512, rate).float()
    count = drawn.numel()
    assert abs(float(drawn.mean()) - rate) < 5 * (rate * (1 - rate) / count) ** 0.5 + 1 / 65536
    neighbours = (drawn[..., 1:] * drawn[..., :-1]).mean()
    assert abs(float(neighbours) - rate**2) < 6 * (rate**2 * (1 - rate**2) / count) ** 0.5
