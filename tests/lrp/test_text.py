"""Relevance of tokens: against AttnLRP restated, conservation, positions, batches of keywords, and bad input."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
import attnlrp_restatement
import texts

from attrdrop import lrp

TARGET = torch.tensor([1, 2])
PLACES = {"bert": None, "modernbert": None, "llama": "last", "t5": "last"}


def assert_same(found, wanted, tolerance=1e-9):
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.fixture(autouse=True)
def in_double():
    with texts.InDouble():
        yield


@pytest.fixture(scope="module")
def models():
    built = {}
    return lambda name: built.setdefault(name, texts.build(name))


def rows(name, logits):
    return logits if PLACES[name] is None else logits[:, -1]


@pytest.mark.parametrize("name", texts.MODELS)
def test_relevance_is_attnlrp_restated(name, models):
    model, batch = models(name), texts.batch(name)
    keys = [key for key in batch if key.endswith("input_ids")]
    embed = model.get_input_embeddings()
    embeddings = [embed(batch[key]).detach() for key in keys]
    names = [key.replace("input_ids", "inputs_embeds") for key in keys]

    def logits(*given):
        out = model(**dict(zip(names, given, strict=True)), attention_mask=batch["attention_mask"]).logits
        return rows(name, out).gather(1, TARGET[:, None])[:, 0]

    wanted = attnlrp_restatement.restated(logits, embeddings, 1e-6)
    for key, relevance in zip(keys, wanted, strict=True):
        for per, expected in (("dimension", relevance), ("token", relevance.sum(-1))):
            found = lrp.relevance(model, batch, TARGET, rule=lrp.Epsilon(1e-6), position=PLACES[name], of=key, per=per)
            assert_same(found, expected)


@pytest.mark.parametrize("name", texts.MODELS)
def test_relevance_of_all_tokens_sums_to_the_logit(name):
    model, batch = texts.build(name, has_shift=False), texts.batch(name)
    keys = [key for key in batch if key.endswith("input_ids")]
    options = {"rule": lrp.Epsilon(1e-20), "attention": "detach", "position": PLACES[name]}
    found = sum(lrp.relevance(model, batch, TARGET, of=key, **options).sum(1) for key in keys)
    wanted = rows(name, model(**batch).logits).gather(1, TARGET[:, None])[:, 0].detach()
    assert_same(found, wanted, 1e-6)


def test_padding_has_no_relevance(models):
    for name in ("bert", "llama"):
        batch = texts.batch(name)
        found = lrp.relevance(models(name), batch, TARGET, position=PLACES[name])
        assert (found[batch["attention_mask"] == 0] == 0).all()
        assert (found[batch["attention_mask"] == 1] != 0).all()


def test_ways_to_give_tokens(models):
    model, batch = models("bert"), texts.batch("bert")
    ids, mask = batch.values()
    wanted = lrp.relevance(model, batch, TARGET)
    for found in (
        lrp.relevance(model, ids, TARGET, arguments={"attention_mask": mask}),
        lrp.relevance(model, {"input_ids": ids}, TARGET, arguments={"attention_mask": mask}),
        lrp.relevance(model, {**batch, "labels": TARGET}, TARGET),
        lrp.relevance(model, {**batch, "input_ids": ids.int()}, TARGET),
        lrp.relevance(model, batch, TARGET, embedding="bert.embeddings.word_embeddings"),
        lrp.relevance(model, batch, TARGET, embedding=model.get_input_embeddings()),
        lrp.relevance(model, batch, TARGET, stop_at="bert.embeddings.word_embeddings").sum(-1),
        lrp.relevance(
            model, {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "attention_mask": mask}, TARGET
        ).sum(-1),
    ):
        assert_same(found, wanted, 1e-12)
    below = lrp.layer_relevance(model, batch, TARGET, ["bert.embeddings.word_embeddings", "bert.encoder.layer.0"])
    assert_same(below["bert.embeddings.word_embeddings"].sum(-1), wanted, 1e-12)
    assert below["bert.encoder.layer.0"].shape == (2, 7, 16)


def test_plain_gradients_are_those_of_the_embeddings(models):
    model, batch = models("bert"), texts.batch("bert")
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)
    out = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    (grad,) = torch.autograd.grad(out.gather(1, TARGET[:, None]).sum(), embedded)
    found = lrp.relevance(model, batch, TARGET, rule=lrp.GradientTimesInput())
    assert_same(found, (embedded * grad).sum(-1).detach(), 1e-12)
    by_size = lrp.relevance(model, batch, TARGET, rule=lrp.AbsGradient(), per="dimension")
    assert_same(by_size, grad.abs(), 1e-12)


def test_positions(models):
    model, batch = models("llama"), texts.batch("llama")

    def of(position, target=TARGET, given=batch):
        return lrp.relevance(model, given, target, position=position)

    last = of("last")
    for same in (6, -1, torch.tensor([6, -1])):
        assert torch.equal(of(same), last)
    right = {**batch, "attention_mask": batch["attention_mask"].flip(1)}
    assert torch.equal(of("last", given=right), of(torch.tensor([6, 4]), given=right))
    assert torch.equal(
        of("last", given={"input_ids": batch["input_ids"]}), of(6, given={"input_ids": batch["input_ids"]})
    )
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 3] = mask[0, 6] = mask[1, 5] = True
    classes = torch.randint(40, (2, 7))
    together = of(mask, classes)
    assert_same(together[:1], of(3, classes[:, 3])[:1] + of(6, classes[:, 6])[:1], 1e-12)
    assert_same(together[1:], of(5, classes[:, 5])[1:], 1e-12)
    assert of(mask, "pred").shape == (2, 7)
    picked = lrp.relevance(model, batch, TARGET, output=lambda out: out.logits[:, -1])
    assert torch.equal(picked, last)


class Words(nn.Module):
    """A model of no library: tokens are counted from 1, and a second embedding sees them as well."""

    def __init__(self, offset=0):
        super().__init__()
        self.words, self.others, self.head = nn.Embedding(20, 6), nn.Embedding(20, 4), nn.Linear(10, 3)
        self.offset = offset

    def forward(self, tokens):
        tokens = tokens + self.offset if self.offset else tokens
        return self.head(torch.cat([self.words(tokens), self.others(tokens)], -1).relu().mean(1))


def test_every_embedding_of_the_tokens_counts():
    torch.manual_seed(0)
    model, tokens = Words().double().train(), torch.randint(1, 19, (2, 5))
    nn.init.zeros_(model.head.bias)
    found = lrp.relevance(model, tokens, TARGET, rule=lrp.Epsilon(1e-20))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert_same(found.sum(1), model(tokens).gather(1, TARGET[:, None])[:, 0].detach(), 1e-9)
    with pytest.raises(ValueError, match="per='dimension' needs one embedding of the tokens"):
        lrp.relevance(model, tokens, TARGET, per="dimension")
    alone = lrp.relevance(model, tokens, TARGET, per="dimension", embedding="words")
    assert alone.shape == (2, 5, 6)
    shifted = Words(1).double()
    shifted.load_state_dict(model.state_dict())
    with pytest.raises(
        ValueError, match=r"inputs are integers, but no nn.Embedding of the model receives them; pass the"
    ):
        lrp.relevance(shifted, tokens - 1, TARGET)
    assert_same(lrp.relevance(shifted, tokens - 1, TARGET, per="dimension", embedding="words"), alone, 1e-12)


def test_the_table_of_a_language_model(models):
    table = lrp.explain(models("llama"), texts.batch("llama"), rule=lrp.Composite(layers=[("*.mlp.*", lrp.Zero())]))
    assert [row.rule for row in table if ".mlp." in row.name] == [lrp.Zero()] * 6
    assert len(table) == 15


BATCH = texts.batch("llama")


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        (
            "llama",
            BATCH,
            {},
            r"logits of shape \(N, classes\), got \(2, 7, 40\); select .* or select a position in the",
        ),
        ("llama", BATCH, {"position": 7}, r"position must lie in \[-7, 7\), the text has 7 positions, got 7 to 7"),
        ("llama", BATCH, {"position": 0}, "position must be in the text, got a padding position"),
        (
            "llama",
            BATCH,
            {"position": "first"},
            "position must be 'last', an index, one per sample or a mask, got 'f",
        ),
        (
            "llama",
            BATCH,
            {"position": 1.0},
            r"position must be 'last', an index, int64 of shape .* got float",
        ),
        (
            "llama",
            BATCH,
            {"position": torch.tensor([1])},
            r"or a bool mask, got torch.int64 of \(1,\)",
        ),
        ("llama", BATCH, {"position": torch.ones(2, 7).bool()}, r"target must be int64 of shape \(2, 7\) or 'pred'"),
        (
            "bert",
            BATCH,
            {"position": "last"},
            r"logits of shape \(N, T, classes\), got \(2, 3\); position= selects a position",
        ),
        (
            "bert",
            BATCH,
            {"of": "pixels"},
            "of must name the entry of inputs .*, one of input_ids, attention_mask, got",
        ),
        ("bert", {"ids": BATCH["input_ids"]}, {}, "of must name the entry .*, one of ids, got None"),
        (
            "bert",
            BATCH["input_ids"],
            {"of": "input_ids"},
            "of names an entry of a batch of keywords, but inputs are",
        ),
        (
            "bert",
            BATCH,
            {"arguments": BATCH},
            "arguments must not repeat entries of inputs, got attention_mask",
        ),
        ("bert", BATCH, {"per": "word"}, "per must be one of token, dimension, got 'word'"),
        ("bert", BATCH, {"embedding": "no"}, "embedding must name a submodule such as bert"),
        ("bert", BATCH, {"embedding": "bert.pooler"}, "but the given embedding does not receive them"),
    ],
)
def test_errors_name_the_argument(name, inputs, options, message, models):
    with pytest.raises(ValueError, match=message):
        lrp.relevance(models(name), inputs, TARGET, **options)
