"""What is counted of masks: the positions of live queries, and those of dead ones apart."""

import pytest
import torch
from models import batch, build

from attrdrop import ADDrop, KeepMask, pack_mask, unpack_mask
from attrdrop.addrop.statistics import dead_counts, live_queries, set_bits


@pytest.mark.parametrize("attribution", ["GA", "IGA"])
def test_dead_queries_are_counted_apart(attribution):
    """In the last layer of a classifier on the first token no other query reaches a logit."""
    model, inputs = build("bert"), batch("bert")
    addrop = ADDrop(model, p=0.4, q=0.5, attribution=attribution, iga_steps=2, cross_tuning=False, count_dead=True)
    masks = addrop.attribute(**inputs)
    statistics = addrop.statistics()
    lengths = inputs["attention_mask"].sum(1)
    live = torch.zeros(3, *inputs["input_ids"].shape, dtype=torch.bool)  # layers, samples, queries
    live[:2], live[2, :, 0] = inputs["attention_mask"].bool(), True
    valid = candidates = dropped = dead_dropped = 0
    for site, alive in zip(masks.sites, live, strict=True):
        kept = unpack_mask(site.keep.rows, n=20).sum(-1)  # (B, H, n)
        lost = lengths[:, None, None] - kept
        rows = alive[:, None].expand_as(lost)
        valid += int((lengths[:, None, None] * rows).sum())
        ranks = (lengths.float() * torch.tensor(0.6, dtype=torch.float32)).int()
        candidates += int(((lengths - ranks)[:, None, None] * rows).sum())
        dropped, dead_dropped = dropped + int(lost[rows].sum()), dead_dropped + int(lost[~rows].sum())
    assert (statistics.valid, statistics.candidates) == (valid, candidates)
    assert (statistics.dropped, statistics.dead_dropped) == (dropped, dead_dropped)
    assert statistics.valid + statistics.dead_valid == 3 * 4 * 20 * int(lengths.sum())
    assert abs(statistics.fraction_dropped - 0.5 * candidates / valid) < 0.05
    assert statistics.dead_dropped / statistics.dead_valid > 0.4  # whose keys are all candidates


def test_attributions_without_gradients_know_no_dead_queries():
    model, inputs = build("bert"), batch("bert")
    for attribution in ("AA", "RD"):
        addrop = ADDrop(model, attribution=attribution, cross_tuning=False, count_dead=True)
        addrop(**inputs)
        assert addrop.statistics().dead_valid == addrop.statistics().fraction_dead == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_zeros_are_dead(dtype):
    x = torch.zeros(1, 1, 5, 3, dtype=dtype)
    x[0, 0, 1:] = torch.tensor([[-0.0, 0, 0], [0, 1e-30, 0], [torch.nan, 0, 0], [0, 0, -torch.inf]])
    assert live_queries(x).tolist() == [[[False, False, True, True, True]]]
    assert live_queries(x[:0]).shape == (0, 1, 5)


@pytest.mark.parametrize("width", [1, 3])
def test_set_bits_are_counted(width):
    words = torch.randint(-(2**31), 2**31, (50, width), dtype=torch.int32)
    words[:3] = torch.tensor([0, -1, -(2**31)], dtype=torch.int32)[:, None]
    assert set_bits(words).tolist() == [
        sum(f"{word & 0xFFFFFFFF:b}".count("1") for word in row) for row in words.tolist()
    ]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n_k", [1, 31, 64, 70])
def test_dead_positions_are_those_that_a_row_could_attend_to(n_k, is_causal):
    shape = (2, 3, 9, n_k)
    live = torch.rand(shape[:3]) < 0.5
    valid = torch.rand(2, 1, 1, n_k) < 0.8
    keep = KeepMask.from_rows(pack_mask(torch.rand(shape) < 0.6), n_k)
    for columns in (None, valid):
        allowed = torch.ones(shape, dtype=torch.bool) if columns is None else columns.expand(shape)
        allowed = allowed.tril() if is_causal else allowed
        kept = unpack_mask(keep.rows, n_k) & allowed
        bits = None if columns is None else pack_mask(columns)
        found = dead_counts(live, KeepMask.from_rows(pack_mask(kept), n_k), bits, is_causal)
        assert found.tolist() == [int(allowed[~live].sum()), int((allowed & ~kept)[~live].sum())]
