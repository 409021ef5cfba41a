"""Recurrent layers: against the rule restated place by place, conservation, packed texts, states, cells."""

import itertools

import pytest
import recurrent_restatement
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attrdrop import lrp

LENGTHS = torch.tensor([4, 6, 1])
IDS = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < LENGTHS[:, None]).long()
TARGET = torch.tensor([0, 2, 1])
PLAIN, DEEP = {}, {"num_layers": 2, "bidirectional": True}
KINDS = {
    "lstm": (nn.LSTM, PLAIN), "deep lstm": (nn.LSTM, DEEP), "lstm, no bias": (nn.LSTM, {**DEEP, "bias": False}),
    "projected lstm": (nn.LSTM, {**DEEP, "proj_size": 3}), "gru": (nn.GRU, PLAIN), "deep gru": (nn.GRU, DEEP),
    "gru, no bias": (nn.GRU, {"bias": False}), "rnn": (nn.RNN, DEEP), "relu": (nn.RNN, {"nonlinearity": "relu"}),
}  # fmt: skip


class Texts(nn.Module):
    """Embedding, recurrent layer, the last valid token's output, linear layer."""

    def __init__(self, kind, options, is_packed=False, batch_first=True):
        super().__init__()
        torch.manual_seed(0)
        width = options.get("proj_size", 4) * (2 if options.get("bidirectional") else 1)
        self.embed, self.head = nn.Embedding(20, 5), nn.Linear(width, 3)
        self.layer = kind(5, 4, batch_first=batch_first, **options)
        self.is_packed, self.first = is_packed, batch_first
        self.double().eval()

    def forward(self, input_ids, attention_mask, state=None):
        lengths, x = attention_mask.sum(1), self.embed(input_ids)
        x = x if self.first else x.transpose(0, 1)
        if self.is_packed:
            x = pack_padded_sequence(x, lengths, self.first, enforce_sorted=False)
        y, _ = self.layer(x, state)
        if self.is_packed:
            y, _ = pad_packed_sequence(y, self.first)
        y = y if self.first else y.transpose(0, 1)
        return self.head(y[torch.arange(len(y)), lengths - 1])


def relevance(net, rule, **options):
    return lrp.relevance(net, IDS, TARGET, rule=rule, arguments={"attention_mask": MASK}, **options)


def assert_same(found, wanted, tolerance=1e-9):
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def restated(net, eps, states=None):
    """Relevance of the embeddings of packed texts: each text by itself, without its padding."""
    layer, head = net.layer, net.head
    hidden = [layer.proj_size or 4] + ([4] if isinstance(layer, nn.LSTM) else [])
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    found = torch.zeros(3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        for place, (ids, length, target) in enumerate(zip(IDS, LENGTHS, TARGET, strict=True)):
            x = net.embed(ids[:length])
            zeros = [torch.zeros(rows, size, dtype=x.dtype) for size in hidden]
            initial = zeros if states is None else [state[:, place] for state in states]
            given = [state[:, None].contiguous() for state in initial]
            y = layer(x[None], tuple(given) if len(given) > 1 else given[0])[0][0]
            logits = head(y[-1])
            last = recurrent_restatement.epsilon(
                head.weight, y[-1], logits, logits * nn.functional.one_hot(target, 3), eps
            )
            of_y = torch.cat([torch.zeros_like(y[:-1]), last[None]])
            found[place, :length] = recurrent_restatement.restated(layer, x, initial, of_y, eps)[0]
    return found


@pytest.mark.parametrize("name", KINDS)
def test_relevance_is_the_rule_restated(name):
    net = Texts(*KINDS[name], is_packed=True)
    assert_same(relevance(net, lrp.Epsilon(1e-2), per="dimension"), restated(net, 1e-2))


@pytest.mark.parametrize("name", ["deep lstm", "deep gru", "relu"])
def test_packed_padded_and_either_axis_agree(name):
    kind, options = KINDS[name]
    options = {**options, "bidirectional": False}  # padding would be read first
    ways = itertools.product((False, True), repeat=2)
    found = [relevance(Texts(kind, options, *way), lrp.Epsilon(1e-2)) for way in ways]
    for other in found[1:]:
        assert_same(other, found[0], 1e-12)
    assert (found[0][MASK == 0] == 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_relevance_sums_to_the_logit_without_biases(name):
    net = Texts(*KINDS[name], is_packed=True)
    for key, values in net.named_parameters():
        if "bias" in key:
            nn.init.zeros_(values)
    wanted = net(IDS, MASK).gather(1, TARGET[:, None])[:, 0].detach()
    assert_same(relevance(net, lrp.Epsilon(1e-20)).sum(1), wanted)


@pytest.mark.parametrize("name", ["deep lstm", "deep gru"])
def test_states_that_are_given_take_their_share(name):
    net = Texts(*KINDS[name], is_packed=True)
    states = [torch.randn(4, 3, 4).double() for _ in range(2 if "lstm" in name else 1)]
    given = tuple(states) if len(states) > 1 else states[0]
    found = lrp.relevance(
        net, IDS, TARGET, rule=lrp.Epsilon(1e-2), per="dimension", arguments={"attention_mask": MASK, "state": given}
    )
    assert_same(found, restated(net, 1e-2, states))


class Decoder(nn.Module):
    """One recurrent layer's last state is where another begins: relevance comes through the state alone."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.head = kind(5, 4, bias=False), kind(2, 4, bias=False), nn.Linear(4, 3, False)
        self.double().eval()

    def forward(self, x, y):
        _, state = self.encoder(x.transpose(0, 1))
        return self.head(self.decoder(y.transpose(0, 1), state)[0][-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_relevance_comes_through_states(kind):
    net, x = Decoder(kind), torch.randn(3, 6, 5).double()
    nothing = torch.zeros(3, 2, 2).double()
    found = lrp.relevance(net, x, TARGET, rule=lrp.Epsilon(1e-20), arguments={"y": nothing})
    wanted = net(x, nothing).gather(1, TARGET[:, None])[:, 0].detach()
    assert_same(found.flatten(1).sum(1), wanted)


class Cells(nn.Module):
    """A layer's loop, written with cells."""

    def __init__(self, layer):
        super().__init__()
        kind = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}.get(type(layer))
        options = {"bias": layer.bias}
        self.cell = kind(5, 4, **options) if kind else nn.RNNCell(5, 4, **options, nonlinearity=layer.nonlinearity)
        own = dict(layer.named_parameters())
        self.cell.load_state_dict({key: own[f"{key}_l0"] for key in self.cell.state_dict()})

    def forward(self, x, state=None):
        y = []
        for part in x.unbind(1):
            state = self.cell(part, state)
            y.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(y, 1), state


@pytest.mark.parametrize("name", ["lstm", "gru", "gru, no bias", "relu"])
def test_cells_are_layers(name):
    net = Texts(*KINDS[name])
    wanted = relevance(net, lrp.Epsilon(1e-2))
    net.layer = Cells(net.layer).double()
    assert_same(relevance(net, lrp.Epsilon(1e-2)), wanted, 1e-12)


def test_a_layer_has_one_rule_by_name_and_is_never_the_first():
    net = Texts(nn.LSTM, DEEP, is_packed=True)
    rule = lrp.Composite(layers=[("layer", lrp.ZPlus(1e-3))])
    table = lrp.explain(net, IDS, rule=rule, arguments={"attention_mask": MASK})
    assert [(row.name, row.function, row.rule) for row in table] == [
        ("layer", "lstm", lrp.ZPlus(1e-3)), ("head", "linear", lrp.Epsilon()),
    ]  # fmt: skip
    plain = relevance(net, lrp.Epsilon())
    assert (relevance(net, rule) - plain).abs().max() > 0.01 * plain.abs().max()
    body = nn.Sequential(nn.RNN(5, 4, bias=False), Picked(), nn.Linear(4, 3, False)).double()
    x = torch.randn(2, 3, 5).double()
    assert torch.equal(*(lrp.relevance(body, x, TARGET[:2], rule=rule) for rule in (lrp.EpsilonFlat(), lrp.Epsilon())))


class Picked(nn.Module):
    def forward(self, found):
        return found[0][:, -1]
