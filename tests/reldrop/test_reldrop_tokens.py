"""RelDropTokens: which tokens are replaced, by what, and what stays as it is."""

import pytest
import torch
from models import CLASSIFIERS, TOKEN_MODELS

import attrdrop
from attrdrop import lrp

CLS, SEP, MASK, PAD = 1, 2, 3, 0


@pytest.fixture
def model():
    return CLASSIFIERS["bert"]().train()


def texts(count=6, length=23):
    ids = torch.randint(5, 99, (count, length))
    lengths = length - 2 * (torch.arange(count) % 6)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ids.masked_fill(mask == 0, PAD)
    ids[:, 0] = CLS
    ids[torch.arange(count), lengths - 1] = SEP
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(2, (count,))}


def test_the_most_relevant_tokens_are_replaced(model):
    batch = texts()
    reldrop = attrdrop.RelDropTokens(model, value=MASK, special=(CLS, SEP, PAD), p=1.0, alpha=0.0, beta=0.3)
    before = batch["input_ids"].clone()
    after = reldrop(batch)
    assert torch.equal(batch["input_ids"], before)
    assert set(after) == set(batch)
    free = (before > 4).sum(1)
    relevance = lrp.relevance(model, batch, batch["labels"], rule=lrp.Epsilon(1e-6))
    changed = after["input_ids"] != before
    assert after["input_ids"][changed].eq(MASK).all()
    for text, gone, score, count in zip(before, changed, relevance, free.tolist(), strict=True):
        score = score.masked_fill(text <= 4, -torch.inf)
        assert set(gone.nonzero().flatten().tolist()) == set(score.topk(int(0.3 * count + 0.5)).indices.tolist())
    assert torch.equal(reldrop.occluded, changed.any(1))
    assert reldrop.statistics() == attrdrop.TokenStatistics(6, int(free.sum()), int(changed.sum()), 6, 1)
    assert model.training
    assert all(x.grad is None for x in model.parameters())


def test_chance_needs_no_attribution_and_p_draws_texts(model):
    batch = texts(60)
    reldrop = attrdrop.RelDropTokens(model, value=MASK, special=(CLS, SEP), p=0.5, alpha=1.0, beta=0.4)
    after = reldrop(batch)
    changed = (after["input_ids"] != batch["input_ids"]).any(1)
    assert 15 < int(changed.sum()) < 45
    assert torch.equal(changed, reldrop.occluded)
    assert reldrop.statistics().attributed == 0
    half = attrdrop.RelDropTokens(model, value=MASK, special=(CLS, SEP), p=0.5, alpha=0.5, beta=0.4)
    assert torch.equal((half(batch)["input_ids"] != batch["input_ids"]).any(1), changed)
    assert half.statistics().attributed == int(changed.sum())


def test_a_mask_of_special_tokens_protects_and_is_taken_out(model):
    batch = texts()
    protected = torch.zeros_like(batch["input_ids"])
    protected[:, ::2] = 1
    reldrop = attrdrop.RelDropTokens(model, value=MASK, p=1.0, alpha=1.0, beta=1.0)
    after = reldrop(batch | {"special_tokens_mask": protected})
    assert "special_tokens_mask" not in after
    expected = batch["attention_mask"].bool() & ~protected.bool()
    assert torch.equal(after["input_ids"] == MASK, expected | (batch["input_ids"] == MASK))


def test_zero_embeddings_keep_their_gradient(model):
    batch = texts()
    by_id = attrdrop.RelDropTokens(model, value=MASK, special=(CLS, SEP), p=1.0, beta=0.3)
    by_zero = attrdrop.RelDropTokens(model, value="zero", special=(CLS, SEP), p=1.0, beta=0.3)
    gone = by_id(batch)["input_ids"] != batch["input_ids"]
    after = by_zero(batch)
    assert "input_ids" not in after
    weight = model.get_input_embeddings().weight
    expected = weight[batch["input_ids"]].masked_fill(gone[..., None], 0)
    assert torch.equal(after["inputs_embeds"], expected)
    model(**after).loss.backward()
    assert weight.grad.any()


def test_draws_depend_on_seed_step_and_place_alone(model):
    batch = texts()
    make = lambda seed: attrdrop.RelDropTokens(model, value=MASK, special=(CLS, SEP), alpha=0.7, seed=seed)  # noqa: E731
    first, again, other = make(1), make(1), make(2)
    runs = [first(batch)["input_ids"] for _ in range(4)]
    assert not torch.equal(runs[0], runs[1])
    assert torch.equal(again(batch)["input_ids"], runs[0])
    again.load_state_dict({"step": 3})
    assert torch.equal(again(batch)["input_ids"], runs[3])
    assert first.state_dict() == again.state_dict() == {"step": 4}
    assert any(not torch.equal(other(batch)["input_ids"], run) for run in runs)
    model.eval()
    assert torch.equal(first(batch)["input_ids"], batch["input_ids"])


def test_a_language_model_by_position():
    model = TOKEN_MODELS["llama-lm"]().train()
    batch = {"input_ids": torch.randint(5, 99, (3, 12))}
    reldrop = attrdrop.RelDropTokens(
        model, value="zero", p=1.0, alpha=0.0, beta=0.25, target="pred", position="last", warmup=1
    )  # fmt: skip
    assert torch.equal(reldrop(batch)["inputs_embeds"], model.get_input_embeddings()(batch["input_ids"]))
    reldrop(batch)
    assert reldrop.statistics().dropped == 9


def test_bad_input_is_refused(model):
    make = lambda **options: attrdrop.RelDropTokens(model, **{"value": MASK, **options})  # noqa: E731
    batch = texts()
    for call, error, message in (
        (lambda: make(value=-1), ValueError, "value must be the id of a token or 'zero', got -1"),
        (lambda: make(value="mask"), ValueError, "value must be 'zero' or the id of a token, got 'mask'"),
        (lambda: make(special=("a",)), TypeError, "special must hold ids of tokens"),
        (lambda: make(mode="some"), ValueError, "mode must be"),
        (lambda: make(p=2), ValueError, "p must lie in"),
        (lambda: make()([1]), ValueError, "batch must be a mapping with input_ids"),
        (lambda: make()({"ids": 1}), ValueError, "got one of ids"),
        (lambda: make()(batch | {"input_ids": torch.ones(2, 3)}), ValueError, "labels must be int64 of shape"),
        (lambda: make(target="pred")({"input_ids": torch.ones(2, 3)}), TypeError, "must be int64 or int32 tokens"),
        (lambda: make()(batch | {"attention_mask": torch.ones(2)}), ValueError, "attention_mask must have the shape"),
        (lambda: make(p=1.0)({"input_ids": batch["input_ids"]}), ValueError, "labels are needed"),
        (lambda: make(p=1.0)(batch, torch.ones(6, 2)), ValueError, "relevance"),
    ):
        with pytest.raises(error, match=message):
            call()
