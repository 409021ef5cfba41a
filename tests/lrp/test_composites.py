"""Composites by name, type and predicate, and the table of what each layer gets."""

import pytest
import torch
from nets import build, prepare
from torch import nn

from attrdrop import lrp


def is_head(name, module):
    return name.startswith("12") and isinstance(module, nn.Linear)


@pytest.fixture
def vgg():
    return build("vgg_norm")


PLAIN = lrp.Composite(lrp.ZPlus(1e-3), lrp.Epsilon(1e-2), lrp.Flat())


@pytest.mark.parametrize(
    "layers",
    [
        [("0", lrp.Flat()), (nn.Conv2d, lrp.ZPlus(1e-3)), (nn.Linear, lrp.Epsilon(1e-2))],
        [("0", lrp.Flat()), ("[0-9]", lrp.ZPlus(1e-3)), ("1[0-3]", lrp.ZPlus(1e-3)), ("*", lrp.Epsilon(1e-2))],
        [
            (lambda name, module: isinstance(module, nn.Linear), lrp.Epsilon(1e-2)),
            (lambda name, module: name == "0", lrp.Flat()),
            (lambda name, module: True, lrp.ZPlus(1e-3)),
        ],
    ],
)
def test_names_types_and_predicates_choose_as_places_do(vgg, layers):
    net, x, target = vgg
    found = lrp.relevance(net, x, target, rule=lrp.Composite(layers=layers))
    assert torch.equal(found, lrp.relevance(net, x, target, rule=PLAIN))
    rows = lrp.explain(net, x, rule=lrp.Composite(layers=layers))
    assert [row.rule for row in rows] == [row.rule for row in lrp.explain(net, x, rule=PLAIN)]


def test_the_first_that_holds_decides_and_others_have_the_rest(vgg):
    net, x, target = vgg
    rule = lrp.Composite(
        layers=[("0", lrp.WSquare(1e-3)), ("0", lrp.Flat()), (is_head, lrp.Zero())], conv=lrp.ZPlus(1e-3)
    )
    plain = lrp.Composite(lrp.ZPlus(1e-3), first=lrp.WSquare(1e-3))
    with pytest.warns(
        UserWarning, match="pattern '0' of the composite assigns its rule to no layer: an earlier condition"
    ):
        table = lrp.explain(net, x, rule=rule)
    assert [row.why for row in table if row.rule is not None] == ["pattern '0'", *["conv"] * 3, "linear", "linear"]
    with pytest.warns(UserWarning, match="predicate is_head of the composite matches no module of Sequential, which"):
        found = lrp.relevance(net, x, target, rule=rule)
    assert torch.equal(found, lrp.relevance(net, x, target, rule=plain))


def test_the_table_tells_names_functions_and_reasons(vgg):
    net, x, _ = vgg
    rule = lrp.Composite(lrp.Gamma({"0": 0.5, "*": 0.1}), first=lrp.Flat(), layers=[(nn.Linear, lrp.Zero())])
    table = lrp.explain(net.train(), x[:1], rule=rule)
    assert net.training
    assert (len(table), table[0], table[1]) == (
        10,
        ("0", "Conv2d", "conv2d", lrp.Flat(), "first: it sees the input"),
        ("1", "BatchNorm2d", "batch_norm", None, "part of the layer before"),
    )
    assert table[2].rule == lrp.Gamma(0.1)
    assert table[-1] == ("18", "Linear", "linear", lrp.Zero(), "type Linear")
    text = str(table).splitlines()
    assert text[0].split() == ["layer", "module", "function", "rule", "why"]
    assert len(text) == 11
    assert text[1].split(maxsplit=4) == ["0", "Conv2d", "conv2d", "Flat()", "first: it sees the input"]
    assert "every layer" in str(lrp.explain(net, x, rule=lrp.Epsilon()))


def test_what_has_its_own_input_alone_says_so():
    net, x, _ = build("densenet")
    row = next(row for row in lrp.explain(net, x, rule=lrp.ZPlus()) if row.name == "3")
    assert (row.rule, row.why) == (lrp.Epsilon(1e-6), "a batch_norm has no ZPlus")


def test_layers_without_a_module_of_their_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.attention, self.head = Own(), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            y = self.body(x)[:, None]
            return self.head(self.attention(y, y, y)[0][:, 0])

    rule = lrp.Composite(layers=[(Own, lrp.WSquare()), ("attention", lrp.Zero()), ("head", lrp.Epsilon(1e-2))])
    table = lrp.explain(prepare(Net()), torch.randn(2, 3).double(), rule=rule)
    assert [(row.name, row.rule) for row in table] == [
        ("body", lrp.WSquare()), *[("attention", lrp.Zero())] * 4, ("head", lrp.Epsilon(1e-2)),
    ]  # fmt: skip


def test_patterns_that_match_nothing_are_warned_of(vgg):
    net, x, target = vgg
    for rule in (lrp.Composite(layers=[("stem.*", lrp.Zero())]), lrp.Gamma({"stem.*": 0.5, "*": 0.1})):
        for call in (lrp.explain, lambda *a, **k: lrp.relevance(*a, target, **k)):
            with pytest.warns(UserWarning, match=r"pattern 'stem\.\*' of the composite matches no module of Seq"):
                call(net, x, rule=rule)
    with pytest.warns(UserWarning, match="type LSTM of the composite matches no module"):
        lrp.explain(net, x, rule=lrp.Composite(layers=[(nn.LSTM, lrp.Zero())]))


def test_the_preset_of_the_released_point_net():
    net, x, target = build("pointnet")
    assert torch.equal(
        lrp.relevance(net, x, target, rule=lrp.PointNetFlat(first="layers.0")),
        lrp.relevance(net, x, target, rule=lrp.EpsilonFlat(1e-6)),
    )
    assert lrp.PointNetFlat() == lrp.EpsilonFlat(1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("a", lrp.GradientTimesInput())], "layers must be a rule for single layers, such as Epsilon"),
        ([(nn.ReLU(), lrp.Zero())], r"layers must name layers by a shell pattern, .* got ReLU\(\)"),
        ([(int, lrp.Zero())], "layers must name layers by a shell pattern"),
        (["a"], "layers must be a list of pairs of a condition and a rule"),
        ("ab", "layers must be a list of pairs"),
    ],
)
def test_errors_name_the_argument(layers, message):
    with pytest.raises(TypeError, match=message):
        lrp.Composite(layers=layers)


def test_plain_gradients_have_no_table(vgg):
    with pytest.raises(ValueError, match="rule must apply to layers, got GradientTimesInput"):
        lrp.explain(*vgg[:2], rule=lrp.GradientTimesInput())


@pytest.mark.slow
def test_inside_compiled_functions_there_are_no_names(vgg):
    net, x, target = vgg
    rule = lrp.Composite(layers=[("0", lrp.Flat())])
    attribute = torch.compile(lambda x: lrp.relevance(net, x, target, rule=rule), fullgraph=True, backend="eager")
    with (
        torch._dynamo.config.patch(trace_autograd_ops=True),
        pytest.raises(Exception, match=r"inside torch\.compile a composite cannot tell layers"),
    ):
        attribute(x)
