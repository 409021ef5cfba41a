"""Options that make a step cheaper and its masks approximate: what they change and what they leave alone."""

import itertools

import pytest
import torch
from eager import bits_of
from models import batch, build

from attrdrop import ADDrop, ADDropConfig
from attrdrop.addrop.attention import AttentionPass1
from attrdrop.addrop.gradient import GradientPass1
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

    for kind in (GradientPass1, AttentionPass1):
        monkeypatch.setattr(kind, "attend", watched(kind.attend, Pass1))
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


def test_masks_in_every_third_step_are_those_of_these_steps():
    """Steps are those of the optimizer, of two calls each; a resumed run goes on in the same place."""
    model, inputs = build("bert"), batch("bert")
    every_step = new_addrop(model, accumulation_steps=2)
    addrop = new_addrop(model, accumulation_steps=2, mask_every=3)
    plain = model(**inputs).loss
    for step in range(7):
        for call in range(2):
            expected = every_step(**inputs).loss
            assert addrop.is_active == (step % 3 == 0)
            assert torch.equal(addrop(**inputs).loss, plain if step % 3 else expected), (step, call)
            if step == 2:
                resumed = new_addrop(model, accumulation_steps=2, mask_every=3)
                resumed.load_state_dict(addrop.state_dict())
                addrop = resumed
    assert addrop.statistics().steps == 4  # since it resumed


def test_masks_in_some_of_the_steps_whose_turn_it_is():
    config = ADDropConfig(alternate="steps", every=4, mask_every=2)
    assert "".join("-+"[config.has_masks(1, step)] for step in range(12)) == "----+-+-----"
    assert [config.is_active(1, step) for step in (3, 5)] == [False, True]


@pytest.fixture
def drawn():
    """Which samples of a step have a mask."""

    def drawn(masks, size):
        part = masks.draws.part
        return sorted(part.index.tolist()) if part is not None else list(range(size))

    return drawn


@pytest.mark.parametrize("attribution", ["GA", "IGA", "AA"])
@pytest.mark.parametrize("name", ["bert", "swin"])
def test_a_share_of_the_samples_has_the_masks_of_the_whole_step_and_others_are_plain(name, attribution, drawn):
    model, inputs = build(name, torch.float64), batch(name, size=6, dtype=torch.float64)
    options = dict(attribution=attribution, iga_steps=2)
    whole = new_addrop(model, **options).attribute(**inputs)
    addrop = new_addrop(model, sample_share=0.5, **options)
    masks = addrop.attribute(**inputs)
    chosen = drawn(masks, 6)
    assert 0 < len(chosen) < 6
    expected, plain = (model(**inputs, attrdrop=found).logits for found in (whole, None))
    is_chosen = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)
    out = model(**inputs, attrdrop=masks)
    torch.testing.assert_close(out.logits, torch.where(is_chosen[:, None], expected, plain), atol=1e-12, rtol=1e-12)
    out.loss.backward()
    assert addrop.statistics().valid == new_count(model, inputs, chosen, options)


def new_count(model, inputs, chosen, options):
    """The valid positions of some samples."""
    addrop = new_addrop(model, **options)
    addrop.attribute(**{name: x[chosen] for name, x in inputs.items()})
    return addrop.statistics().valid


def test_which_samples_have_masks_depends_on_their_ids_alone(monkeypatch, drawn):
    """Neither on the split over calls nor on that over processes; another step draws others."""
    model, inputs = build("bert"), batch("bert", size=8)
    options = dict(sample_share=0.4, q=1.0)

    def parts(count):
        return [{name: x.chunk(count)[index] for name, x in inputs.items()} for index in range(count)]

    def found(masks, size, first=0):
        return [first + index for index in drawn(masks, size)] if masks is not None else []

    whole = new_addrop(model, **options)
    expected = found(whole.attribute(**inputs), 8)
    whole.start_step(1)
    assert found(whole.attribute(**inputs), 8) != expected
    addrop = new_addrop(model, accumulation_steps=4, **options)
    by_call = [found(addrop.attribute(**part), 2, 2 * index) for index, part in enumerate(parts(4))]
    assert list(itertools.chain(*by_call)) == expected
    monkeypatch.setattr("attrdrop.addrop.step.held_by_all", lambda size, _model: [size, size])
    by_rank = []
    for rank, part in enumerate(parts(2)):
        monkeypatch.setattr("attrdrop.addrop.step.process_rank", lambda rank=rank: rank)
        by_rank += found(new_addrop(model, **options).attribute(**part), 4, 4 * rank)
    assert by_rank == expected


def test_the_share_is_kept_on_average_and_a_step_without_samples_is_plain(drawn):
    model, inputs = build("bert"), batch("bert", size=2)
    addrop = new_addrop(model, sample_share=0.25, layers="first")
    counts = []
    for step in range(60):
        addrop.start_step(step)
        masks = addrop.attribute(**inputs)
        counts.append(len(drawn(masks, 2)) if masks is not None else 0)
    assert 0 in counts
    assert addrop.statistics().steps == sum(count > 0 for count in counts)
    assert abs(sum(counts) / 120 - 0.25) < 4 * (0.25 * 0.75 / 120) ** 0.5


def test_other_units_of_a_share_of_the_samples(drawn):
    model, inputs = build("bert", torch.float64), batch("bert", size=6, dtype=torch.float64)
    units = dict(units=("attention", "feed-forward", "heads"))
    masks = new_addrop(model, sample_share=0.5, **units).attribute(**inputs)
    expected, plain = (
        model(**inputs, attrdrop=found).logits for found in (new_addrop(model, **units).attribute(**inputs), None)
    )
    is_chosen = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(drawn(masks, 6)), True)
    found = model(**inputs, attrdrop=masks).logits
    torch.testing.assert_close(found, torch.where(is_chosen[:, None], expected, plain), atol=1e-12, rtol=1e-12)


def test_where_a_share_cannot_be_taken_it_is_said():
    with pytest.raises(ValueError, match="capturable must be False if sample_share is below 1"):
        new_addrop(build("bert"), sample_share=0.5, capturable=True)
    inputs = {**batch("bert"), "pixel_values": torch.zeros(5, 3, 4, 4)}
    with pytest.raises(
        ValueError, match=r"sample_share must be 1 if the first dimension of pixel_values .* 5 for 3 samples, got 0.5"
    ):
        new_addrop(build("bert"), sample_share=0.5).attribute(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(mask_every=0), "mask_every must be a positive int, got 0"),
        (dict(mask_every=3, alternate="steps", every=2), "mask_every must not be above every, 2, if .* got 3"),
        (dict(sample_share=0), "sample_share must be above 0, got 0"),
        (dict(sample_share=1.5), r"sample_share must lie in \[0, 1\], got 1.5"),
        (dict(sample_share=0.5, attribution="RD"), "sample_share must be 1 if attribution is 'RD', got 0.5"),
        (dict(pass1_dtype="float32"), "pass1_dtype must be 'bfloat16' or None, got 'float32'"),
        (dict(pass1_dtype=torch.bfloat16), "pass1_dtype must be 'bfloat16' or None, got torch.bfloat16"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ADDropConfig(**fields)
