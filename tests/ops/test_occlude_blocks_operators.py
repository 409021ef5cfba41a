"""occlude_blocks, fill_blocks, draw_images: errors, and the operators under opcheck and torch.compile."""

import math

import pytest
import torch

from attrdrop import draw_images, fill_blocks, occlude_blocks


def operator_arguments(images, relevance):
    rule = (0.7, [0.02, 0.4], [-1.0, 1.0], 0.2, 3, False, False)
    fill = (False, 0.5, None, False, None, None)
    return (images, relevance, None, *rule, *fill, 5, None), fill


@pytest.mark.parametrize("kind", ["relevance", "uniform", "source"])
def test_opcheck(kind):
    images = torch.randn(3, 2, 8, 8)
    arguments, fill = operator_arguments(images, None if kind == "uniform" else torch.randn(3, 2, 4, 4))
    if kind == "source":
        source = (torch.randn(3, 2, 8, 8), torch.tensor([2, 0, 1]))
        arguments, fill = (*arguments[:14], *source, 5, torch.arange(3)), (*fill[:4], *source)
    torch.library.opcheck(torch.ops.attrdrop.occlude_blocks_, arguments)
    boxes = torch.ones(3, 4).int()
    torch.library.opcheck(torch.ops.attrdrop.fill_blocks_, (images, boxes, *fill, 5, None))
    torch.library.opcheck(torch.ops.attrdrop.draw_images, (torch.arange(9), 0.5, 0.2, 3, False))


@pytest.mark.parametrize(("chosen", "inplace"), [("cpp", False), ("cpp", True), ("reference", False)])
def test_compiles_without_graph_breaks(chosen, inplace):
    images, relevance = torch.rand(4, 3, 12, 12), torch.randn(2, 12, 12)
    index = torch.tensor([3, 1])

    def step(images, relevance):
        out, boxes = occlude_blocks(
            2 * images, relevance, p=0.8, seed=3, index=index, value=(1.0, 2.0, 3.0), inplace=inplace, backend=chosen
        )
        again = fill_blocks(images, boxes, source=images + 1, inplace=inplace, backend=chosen)
        return out + 1, boxes, again.clone(), draw_images(4, 0.8, seed=3, backend=chosen)

    expected = step(images.clone(), relevance)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(images.clone(), relevance)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiles_for_sizes_and_seeds_unknown():
    def step(images, relevance, seed):
        out, boxes = occlude_blocks(images, relevance, p=0.7, seed=seed, inplace=True)
        return out + 1, boxes, draw_images(images.shape[0], 0.7, seed=seed)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, size, seed in ((3, 8, 1), (4, 9, 2)):
        images, relevance = torch.rand(n, 2, size, size), torch.rand(n, 4, 4)
        expected = step(images.clone(), relevance, seed)
        assert all(torch.equal(a, b) for a, b in zip(compiled(images, relevance, seed), expected, strict=True))


IMAGES, BYTES = torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8).byte()
RELEVANCE = torch.ones(2, 4, 4)
ERRORS = [
    (dict(images=[1]), TypeError, "images must be a torch.Tensor, got list"),
    (dict(images=IMAGES.long()), TypeError, "images must be uint8, .* got torch.int64"),
    (dict(images=IMAGES[0]), ValueError, r"images must have shape \(N, C, H, W\), got \(3, 8, 8\)"),
    (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
    (dict(p="half"), TypeError, "p must be a number"),
    (dict(alpha=-0.1), ValueError, "alpha must lie in"),
    (dict(scale=(0.4, 0.2)), ValueError, r"scale must be a pair of numbers 0 < low <= high <= 1, got \(0.4, 0.2\)"),
    (dict(scale=(0.4, 1.2)), ValueError, "scale must be a pair"),
    (dict(scale=0.4), TypeError, "scale must be a pair"),
    (dict(ratio=(0.0, 2.0)), ValueError, r"ratio must be a pair of numbers 0 < low <= high, got"),
    (dict(ratio=(1.0, math.nan)), ValueError, "ratio must be a pair"),
    (dict(k_centers=0), ValueError, "k_centers must be at least 1, got 0"),
    (dict(k_centers=1.0), TypeError, "k_centers must be an int, got float"),
    (dict(border="wrap"), ValueError, "border must be one of clip, shift, got 'wrap'"),
    (dict(per="step"), ValueError, "per must be one of image, batch"),
    (dict(policy="mix"), ValueError, "policy must be one of drop, keep"),
    (dict(relevance=RELEVANCE.int()), TypeError, "relevance must be float32, .* got torch.int32"),
    (dict(relevance=RELEVANCE[0]), ValueError, r"relevance must have shape \(M, h, w\) or"),
    (dict(relevance=RELEVANCE[:1]), ValueError, "relevance must have one row for each of the 2 images, got 1"),
    (dict(relevance=RELEVANCE[:, :0]), ValueError, "relevance must have a cell"),
    (dict(relevance=RELEVANCE.to("meta")), ValueError, "relevance must be on the device of images, cpu, got meta"),
    (dict(relevance=None, index=torch.tensor([0])), ValueError, "index must be None if relevance is None"),
    (dict(index=torch.tensor([0])), ValueError, r"index must be int64 of shape \(2,\)"),
    (dict(index=torch.tensor([0, 2])), ValueError, r"index must lie in \[0, 2\), got 2"),
    (dict(index=torch.tensor([1, 1])), ValueError, r"index must hold distinct numbers, got \[1, 1\]"),
    (dict(sample_ids=torch.tensor([1])), ValueError, r"sample_ids must be int64 of shape \(2,\)"),
    (dict(seed=2**64), ValueError, "seed must fit in 64 bits"),
    (dict(value="mean"), ValueError, "value must be a number, one for each channel, or \"random\", got 'mean'"),
    (dict(value=None), TypeError, "value must be a number"),
    (dict(value=(1.0, 2.0)), ValueError, "value must have one number for each of the 3 channels, got 2"),
    (dict(value=torch.ones(2)), ValueError, r"value must have shape \(3,\)"),
    (dict(value=math.inf), ValueError, "value must be finite in torch.float32, got inf"),
    (dict(images=IMAGES.half(), value=1e5), ValueError, "value must be finite in torch.float16"),
    (dict(images=BYTES, value=(1.0, 2.0, 256.0)), ValueError, "value must lie in 0 to 255 for uint8 images, got 256.0"),
    (dict(images=BYTES, value=torch.tensor([1.0, -1.0, 0.0])), ValueError, "value must lie in 0 to 255"),
    (dict(source=IMAGES + 1, value=1.0), ValueError, "value must be left at 0 if source is given"),
    (dict(source=IMAGES.half()), ValueError, "source must have the dtype and device of images"),
    (dict(source=IMAGES[:1] + 1), ValueError, "source must have shape .* with at least 2 images"),
    (dict(source=torch.ones(2, 3, 8, 9)), ValueError, "source must have shape"),
    (dict(source_index=torch.tensor([0, 1])), ValueError, "source_index must be None if source is None"),
    (dict(source=IMAGES + 1, source_index=torch.tensor([0, 2])), ValueError, r"source_index must lie in \[0, 2\)"),
    (dict(source=IMAGES, inplace=True), ValueError, "source must not share memory with images"),
    (dict(images=IMAGES.clone().requires_grad_(), inplace=True), ValueError, "images must not require grad"),
    (dict(images=IMAGES[:1].expand(2, 3, 8, 8), inplace=True), ValueError, "images must not overlap in memory"),
    (dict(images=IMAGES.flatten().unfold(0, 192, 8)[:2].view(2, 3, 8, 8), inplace=True), ValueError, "overlap"),
    (dict(backend="triton"), RuntimeError, "'triton' cannot serve this call: it is not implemented"),
    (dict(backend="fast"), ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    images, before = IMAGES, IMAGES.clone()
    arguments = {"images": images, "relevance": RELEVANCE, "seed": 0, **change}
    if "images" not in change and isinstance(arguments.get("source"), torch.Tensor):
        arguments.setdefault("inplace", True)
    with pytest.raises(error, match=message):
        occlude_blocks(**arguments)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fill_blocks(IMAGES, torch.ones(2, 4)), ValueError, r"boxes must be int32 of shape \(2, 4\) on cpu"),
        (lambda: fill_blocks(IMAGES, torch.ones(1, 4).int()), ValueError, "boxes must be int32"),
        (lambda: draw_images(-1, 0.5, seed=0), ValueError, "n must not be negative, got -1"),
        (lambda: draw_images(2.0, 0.5, seed=0), TypeError, "n must be an int, got float"),
        (lambda: draw_images(2, 2, seed=0), ValueError, "p must lie in"),
    ],
)
def test_errors_of_the_others(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_operator_itself_stays_inside_its_tensors():
    arguments, fill = operator_arguments(IMAGES.clone(), RELEVANCE)
    with pytest.raises(RuntimeError, match=r"index must lie in \[0, 2\)"):
        torch.ops.attrdrop.occlude_blocks_(*arguments[:2], torch.tensor([0, 2]), *arguments[3:])
    source = (IMAGES, torch.tensor([0, -1]))
    with pytest.raises(RuntimeError, match=r"source_index must lie in \[0, 2\)"):
        torch.ops.attrdrop.fill_blocks_(IMAGES.clone(), torch.ones(2, 4).int(), *fill[:4], *source, 0, None)
