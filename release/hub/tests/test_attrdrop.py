"""On a GPU the Triton kernels, elsewhere plain PyTorch, against torch's own attention and a sort."""

from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel

attrdrop = get_local_kernel(Path(__file__).parents[1])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return [torch.randn(2, 4, 111, 32, device=DEVICE, requires_grad=True) for _ in range(3)]


@pytest.mark.kernels_ci
def test_attention_under_a_mask_is_that_of_torch(qkv):
    mask = torch.rand(2, 4, 111, 111, device=DEVICE) < 0.5
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv, mask).transpose(1, 2)
    found = attrdrop.masked_attention(*qkv, attrdrop.KeepMask.from_rows(attrdrop.pack_mask(mask), 111))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    grad_out = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, qkv, grad_out) for out in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.kernels_ci
def test_what_keep_mask_drops_ranks_high(qkv):
    x, _, y = (t.detach() for t in qkv)
    keep = attrdrop.keep_mask(x, y, p=0.3, q=1.0, seed=0)
    kept = attrdrop.unpack_mask(keep.rows, 111)
    attribution = (x @ y.transpose(-1, -2)).masked_fill(~kept, -torch.inf)
    threshold = (x @ y.transpose(-1, -2)).sort(-1).values[..., int(111 * 0.7)]
    assert kept.sum(-1).eq(int(111 * 0.7)).all()
    assert (attribution.amax(-1) <= threshold).all()


@pytest.mark.kernels_ci
def test_a_step_of_ad_drop_trains_a_model(qkv):
    transformers = pytest.importorskip("transformers")
    transformers.AttentionInterface.register("attrdrop", attrdrop.flash_attn_forward)
    transformers.AttentionMaskInterface.register("attrdrop", transformers.masking_utils.sdpa_mask)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)
    config = transformers.BertConfig(**size, attn_implementation="attrdrop")
    model = transformers.BertForSequenceClassification(config).to(DEVICE).train()
    addrop = attrdrop.ADDrop(model, p=0.3, q=0.5, cross_tuning=False)
    batch = {"input_ids": torch.randint(100, (4, 20)), "labels": torch.tensor([0, 1, 0, 1])}
    addrop(**{name: x.to(DEVICE) for name, x in batch.items()}).loss.backward()
    assert addrop.statistics().dropped > 0
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "layer" in name)
