"""Options that make a step cheaper and its masks approximate: what they change and what they leave alone."""

import pytest
import torch
from eager import bits_of
from models import batch, build

from attrdrop import ADDrop, ADDropConfig
from attrdrop.addrop.passes import Pass1, Pass2


def new_addrop(model, **options):
    return ADDrop(model, **{**dict(p=0.3, q=0.4, cross_tuning=False), **options})


def equal_bits(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def moved(ours, theirs):
    """The share of bits that differ."""
    return sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True)) / sum(a.numel() for a in ours)


@pytest.fixture
def dtypes(monkeypatch):
    """The types of queries in the two passes."""
    found = {Pass1: set(), Pass2: set()}

    def watched(real, kind):
        def attend(self, call, *rest):
            found[kind].add(call.query.dtype)
            return real(self, call, *rest)

        return attend

    monkeypatch.setattr(Pass1, "_attend_plainly", watched(Pass1._attend_plainly, Pass1))
    monkeypatch.setattr(Pass2, "attend", watched(Pass2.attend, Pass2))
    return found


@pytest.mark.parametrize("attribution", ["GA", "IGA", "AA"])
def test_pass_1_in_bfloat16_is_pass_1_under_autocast_and_pass_2_is_exact(attribution, dtypes):
    model, inputs = build("bert"), batch("bert")
    options = dict(attribution=attribution, iga_steps=3)
    addrop = new_addrop(model, pass1_dtype="bfloat16", **options)
    masks = addrop.attribute(**inputs)
    exact = new_addrop(model, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal_bits(bits_of(masks), bits_of(exact.attribute(**inputs)))
    exact.start_step(1)
    exact.start_step(0)
    assert 0 < moved(bits_of(masks), bits_of(exact.attribute(**inputs))) < 0.05
    for kind in dtypes:
        dtypes[kind].clear()
    loss = addrop(**inputs).loss
    assert dtypes == {Pass1: {torch.bfloat16}, Pass2: {torch.float32}}
    loss.backward()
    assert not torch.is_autocast_enabled("cpu")


def test_another_autocast_around_it_stays_that_of_pass_2(dtypes):
    """Neither pass finds weights that the other had cast."""
    model, inputs = build("bert"), batch("bert")
    addrop = new_addrop(model, pass1_dtype="bfloat16")
    with torch.autocast("cpu", torch.float16):
        model(**inputs)  # its weights are in the cache now
        addrop(**inputs).loss.backward()
        assert torch.get_autocast_dtype("cpu") == torch.float16
    assert dtypes == {Pass1: {torch.bfloat16}, Pass2: {torch.float16}}


def test_keys_may_stay_float32_in_bfloat16():
    model, inputs = build("bert"), batch("bert")
    sums, rounded = (
        bits_of(new_addrop(model, pass1_dtype="bfloat16", keys=keys).attribute(**inputs)) for keys in ("fp32", "auto")
    )
    assert not equal_bits(sums, rounded)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(pass1_dtype="float32"), "pass1_dtype must be 'bfloat16' or None, got 'float32'"),
        (dict(pass1_dtype=torch.bfloat16), "pass1_dtype must be 'bfloat16' or None, got torch.bfloat16"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ADDropConfig(**fields)
