"""occlude_blocks, fill_blocks, draw_images: every backend against the definition, restated slowly."""

import math

import pytest
import torch
from backends import GPU, on_cpu, on_gpu
from emulated import emulated_fill_blocks, emulated_occlude_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import draw_images, fill_blocks, occlude_blocks
from attrdrop.reference.philox import philox4x32_10

TYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32]
POINT = dict(scale=(0.02, 0.02), ratio=(1.0, 1.0))  # in 8 x 8 pixels, a block of one


BACKENDS = {
    "cpp": (on_cpu(occlude_blocks, "cpp"), on_cpu(fill_blocks, "cpp")),
    "emulated": (emulated_occlude_blocks, emulated_fill_blocks),
    "cuda": (on_gpu(occlude_blocks), on_gpu(fill_blocks)),
}


@pytest.fixture(params=["cpp", "emulated", GPU])
def backend(request):
    """(occlude_blocks, fill_blocks) of a compiled backend."""
    return BACKENDS[request.param]


def uniforms(seed: int, call: int, purpose: int, sample: int) -> list[int]:
    counter = (call, 2**31 + purpose, 0, sample % 2**32)
    return [int(word) for word in philox4x32_10(seed, tuple(torch.tensor(c) for c in counter))]


def box_by_definition(
    relevance, height, width, sample, *, p=1.0, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3), alpha=0.0, k_centers=1,
    border="clip", per="image", seed,
):  # fmt: skip
    """The block of one image; relevance: a list of rows, or None."""
    drawn, guided, choice, place = uniforms(seed, 0, 0, sample)
    if per == "batch":
        drawn = uniforms(seed, 0, 1, 0)[0]
    if not drawn / 2**32 < p or height * width == 0:
        return [0, 0, 0, 0]
    row, column = divmod(place * height * width >> 32, width)
    if relevance is not None and not guided / 2**32 < alpha:
        rows, columns = len(relevance), len(relevance[0])
        score = lambda value: -math.inf if value != value else value  # noqa: E731
        cells = [(-score(value), i, j) for i, line in enumerate(relevance) for j, value in enumerate(line)]
        _, i, j = sorted(cells)[choice * min(k_centers, len(cells)) >> 32]
        row, column = (2 * i + 1) * height // (2 * rows), (2 * j + 1) * width // (2 * columns)
    for attempt in range(10):
        u, v = (w / 2**32 for w in uniforms(seed, 1 + attempt // 2, 0, sample)[2 * (attempt % 2) :][:2])
        area = height * width * (scale[0] + u * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = float(torch.tensor(math.exp(low + v * (high - low)), dtype=torch.float32))
        h, w = math.floor(math.sqrt(area * aspect) + 0.5), math.floor(math.sqrt(area / aspect) + 0.5)
        if 0 < h < height and 0 < w < width:
            break
    else:
        return [0, 0, 0, 0]
    top, left = row - h // 2, column - w // 2
    if border == "shift":
        return [min(max(top, 0), height - h), min(max(left, 0), width - w), h, w]
    bottom, right = min(top + h, height), min(left + w, width)
    top, left = max(top, 0), max(left, 0)
    return [top, left, bottom - top, right - left]


def filled_by_definition(images, boxes, s, policy="drop"):
    """Eq. 1 pixel by pixel; s is a function of (image, channel, row, column)."""
    out = images.clone()
    for n, (top, left, h, w) in enumerate(boxes.tolist()):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                inside = top <= y < top + h and left <= x < left + w
                if h > 0 and inside == (policy == "drop"):
                    for c in range(images.shape[1]):
                        out[n, c, y, x] = s(n, c, y, x)
    return out


def pixels(*shape, dtype=torch.float32):
    return (torch.rand(shape) * 255).to(dtype)


RULES = [
    dict(),
    dict(p=0.4, alpha=0.5, k_centers=5, border="shift"),
    dict(p=0.6, per="batch", k_centers=1000, scale=(0.3, 1.0), ratio=(2.0, 2.0)),
    dict(alpha=0.3, k_centers=3, scale=(0.5, 0.5)),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 2), (7, 63), (24, 17)])
@pytest.mark.parametrize("cells", [None, (5, 3), (24, 17)])
def test_the_reference_is_the_definition(height, width, cells, rule):
    images = pixels(6, 2, height, width)
    relevance = None if cells is None else torch.randint(-2, 3, (6, *cells)).float()  # many ties
    for seed in (3, 2**64 - 5):
        out, boxes = occlude_blocks(images, relevance, seed=seed, value=(1.0, 2.0), backend="reference", **rule)
        maps = [None] * 6 if cells is None else relevance.tolist()
        assert boxes.tolist() == [
            box_by_definition(maps[n], height, width, n, **{**rule, "seed": seed}) for n in range(6)
        ]
        assert boxes.dtype == torch.int32
        assert torch.equal(out, filled_by_definition(images, boxes, lambda n, c, y, x: 1.0 + c))


def random_case(seed):
    """Images, relevance and arguments of every kind."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *choices: choices[int(torch.randint(len(choices), (1,), generator=generator))]  # noqa: E731
    n, c = draw(0, 1, 2, 3), draw(1, 3, 4)
    height, width = draw(1, 7, 16, 33), draw(1, 7, 16, 40)
    dtype = draw(*TYPES)
    images = pixels(n, c, height, 2 * width, dtype=dtype)
    layout = draw("contiguous", "contiguous", "channels last", "strided")
    images = images[..., ::2] if layout == "strided" else images[..., :width].contiguous()
    if layout == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    cells = draw((height, width), (5, 3), (16, 16), (64, 32))
    relevance = torch.randint(-9, 10, draw((n, *cells), (n, 3, *cells)), generator=generator)
    relevance = relevance.to(draw(torch.float32, torch.bfloat16, torch.float16))
    if draw(True, False, False):
        relevance = relevance.mT.contiguous().mT
    arguments = dict(
        p=draw(1.0, 0.5), alpha=draw(0.0, 0.5), k_centers=draw(1, 1, 7, 10**6), border=draw("clip", "shift"),
        policy=draw("drop", "drop", "keep"), value=draw(0.0, 77.6, [i + 0.3 for i in range(c)], torch.arange(c)),
        seed=seed,
    )  # fmt: skip
    if draw(True, False, False):
        arguments |= dict(value=0.0, source=images.flip(-1), source_index=draw(None, torch.arange(n).flip(0)))
    if n > 1 and draw(True, False, False):
        relevance, arguments["index"] = relevance[:2], torch.tensor([n - 1, 0])
    if draw(True, False):
        arguments["sample_ids"] = 2**33 + 7 * torch.arange(n)
    return images, relevance, arguments


def test_backends_are_the_reference(backend):
    occlude, fill = backend
    for seed in range(150):
        images, relevance, arguments = random_case(seed)
        expected, boxes = occlude_blocks(images, relevance, backend="reference", **arguments)
        ours, found = occlude(images, relevance, scheduler_seed=seed % 9, **arguments)
        assert torch.equal(found, boxes), (seed, arguments)
        assert torch.equal(ours, expected), (seed, arguments)
        assert ours.is_contiguous(memory_format=torch.channels_last) or not images.is_contiguous(
            memory_format=torch.channels_last
        )
        again = {k: arguments[k] for k in ("value", "policy", "source", "source_index") if k in arguments}
        assert torch.equal(fill(images, boxes, **again), expected), (seed, arguments)
        assert torch.equal(fill_blocks(images, boxes, backend="reference", **again), expected), (seed, arguments)


@pytest.mark.parametrize("size", [63, 111])
def test_larger_maps(backend, size):
    occlude, _ = backend
    images = pixels(2, 3, size, size)
    for relevance in (torch.randn(2, size, size), torch.randn(2, 2, size + 1, size + 1).half(), torch.ones(2, 64, 128)):
        for k_centers in (1, 300):
            arguments = dict(seed=size, k_centers=k_centers)
            expected, boxes = occlude_blocks(images, relevance, backend="reference", **arguments)
            ours, found = occlude(images, relevance, scheduler_seed=k_centers, **arguments)
            assert torch.equal(found, boxes)
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_random_values(backend, dtype, policy):
    occlude, fill = backend
    images = torch.full((3, 3, 30, 31), 9).to(dtype).contiguous(memory_format=torch.channels_last)
    arguments = dict(seed=5, value="random", policy=policy, sample_ids=torch.tensor([4, 2**40, 0]))
    ours, boxes = occlude(images, **arguments)
    expected, same = occlude_blocks(images, backend="reference", **arguments)
    assert torch.equal(boxes, same)
    assert torch.equal(fill(images, boxes, **arguments), ours)
    if dtype == torch.uint8:
        assert torch.equal(ours, expected)
        return
    exact, _ = occlude_blocks(images.double(), backend="reference", **arguments)
    assert (ours.double() - exact).abs().max() <= 2 * (expected.double() - exact).abs().max()
    drawn = exact[exact != 9]
    assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn))
    assert abs(drawn.std() - 1) < 4 / math.sqrt(2 * len(drawn))


def test_random_bytes_are_uniform():
    images, _ = occlude_blocks(torch.zeros(1, 4, 90, 90).byte(), seed=1, value="random", policy="keep")
    counts = torch.bincount(images.flatten().long(), minlength=256)[1:].double()
    assert counts.min() > 0.5 * counts.mean()


def test_the_area_is_uniform_in_scale_and_the_aspect_log_uniform():
    _, boxes = occlude_blocks(torch.zeros(3000, 1, 200, 200), seed=1, scale=(0.1, 0.3), border="shift")
    h, w = boxes[:, 2].double(), boxes[:, 3].double()
    area = h * w / 200**2
    aspect = torch.log(h / w) / -math.log(0.3)  # uniform in [-1, 1]
    assert area.min() > 0.098
    assert area.max() < 0.302
    assert abs(area.mean() - 0.2) < 4 * 0.2 / math.sqrt(12 * 3000)
    assert abs(aspect).max() < 1.02
    assert abs((aspect**2).mean() - 1 / 3) < 4 * 0.3 / math.sqrt(3000)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_images_are_drawn_with_probability_p(p):
    n = 4000
    drawn = draw_images(n, p, seed=11)
    assert drawn.dtype == torch.bool
    assert abs(int(drawn.sum()) - n * p) <= 4 * math.sqrt(n * p * (1 - p))
    assert torch.equal(drawn, draw_images(n, p, seed=11, backend="reference"))
    _, boxes = occlude_blocks(torch.zeros(n, 1, 8, 8), p=p, seed=11)
    assert torch.equal((boxes != 0).any(1), drawn)


def test_per_batch_draws_all_or_none():
    together = []
    for seed in range(40):
        drawn = draw_images(5, 0.5, seed=seed, per="batch")
        _, boxes = occlude_blocks(torch.zeros(5, 1, 8, 8), p=0.5, per="batch", seed=seed)
        part = draw_images(2, 0.5, seed=seed, per="batch", sample_ids=torch.tensor([7, 9]))
        assert drawn.all() or not drawn.any()
        assert torch.equal((boxes[:, 2] > 0), drawn)
        assert bool(part[0]) == bool(drawn[0])
        together.append(bool(drawn[0]))
    assert 8 <= sum(together) <= 32


def test_alpha_one_is_the_uniform_centre_and_alpha_is_its_probability():
    images, relevance = torch.zeros(2000, 1, 8, 8), torch.zeros(2000, 8, 8)
    relevance[:, 6, 5] = 1
    uniform = occlude_blocks(images, seed=2, **POINT)[1]
    assert torch.equal(occlude_blocks(images, relevance, alpha=1.0, seed=2, **POINT)[1], uniform)
    counts = torch.bincount((8 * uniform[:, 0] + uniform[:, 1]).long(), minlength=64)
    assert counts.min() > 10  # of 31 on average
    boxes = occlude_blocks(images, relevance, alpha=0.3, seed=2, **POINT)[1]
    guided = (boxes == torch.tensor([6, 5, 1, 1])).all(1)
    assert abs(int(guided.sum()) - 2000 * (0.7 + 0.3 / 64)) < 4 * math.sqrt(2000 * 0.21)


def test_k_centers_are_the_first_in_order_and_equally_likely(backend):
    occlude, _ = backend
    relevance = torch.zeros(60, 8, 8)
    relevance[:, 7, 7], relevance[:, 3, 1], relevance[:, 3, 0] = 3.0, 2.0, -0.0
    boxes = occlude(torch.zeros(60, 1, 8, 8), relevance, k_centers=4, seed=2, **POINT)[1]
    counts = {place: 0 for place in ((7, 7), (3, 1), (0, 0), (0, 1))}  # the last two by their index
    for top, left, *size in boxes.tolist():
        assert size == [1, 1]
        counts[top, left] += 1
    assert min(counts.values()) >= 5


@pytest.mark.parametrize("fill", [0.0, -0.0, math.inf, -math.inf])
def test_ties_go_to_the_lower_index(backend, fill):
    occlude, _ = backend
    relevance = torch.full((1, 8, 8), fill)
    assert occlude(torch.zeros(1, 1, 8, 8), relevance, seed=0, **POINT)[1].tolist() == [[0, 0, 1, 1]]
    if fill == 0:
        relevance[0, 0, :5] = -0.0
        assert occlude(torch.zeros(1, 1, 8, 8), relevance, seed=0, **POINT)[1].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("chosen", ["reference", "cpp"])
@pytest.mark.parametrize("k_centers", [1, 9])
def test_nan_is_an_error_on_the_cpu_and_nothing_is_written(chosen, k_centers):
    images, relevance = pixels(3, 1, 16, 16), torch.randn(3, 16, 16)
    before = images.clone()
    for p, place in ((1.0, (2, 15, 15)), (0.0, (0, 3, 3))):
        wrong = relevance.clone()
        wrong[place] = math.nan
        with pytest.raises(ValueError, match="relevance must not have NaN"):
            occlude_blocks(images, wrong, p=p, k_centers=k_centers, seed=0, inplace=True, backend=chosen)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["emulated", GPU])
def test_nan_ranks_last_on_cuda(name):
    occlude, _ = BACKENDS[name]
    for k_centers in (1, 200, 256):
        relevance = torch.randn(8, 16, 16)
        relevance[torch.rand(8, 16, 16) < 0.6] = math.nan
        relevance[0] = math.nan
        relevance[1, :2] = -math.inf
        low = torch.where(relevance.isnan(), -math.inf, relevance)
        arguments = dict(seed=4, k_centers=k_centers)
        boxes = occlude(pixels(8, 1, 16, 16), relevance, **arguments)[1]
        assert torch.equal(boxes, occlude_blocks(pixels(8, 1, 16, 16), low, backend="reference", **arguments)[1])


def test_borders():
    relevance = torch.zeros(200, 20, 30)
    relevance[:, 0, 29] = 1
    images = torch.zeros(200, 1, 20, 30)
    clip = occlude_blocks(images, relevance, seed=0)[1]
    shift = occlude_blocks(images, relevance, seed=0, border="shift")[1]
    assert (clip[:, 0] == 0).all()
    assert (clip[:, 1] + clip[:, 3] == 30).all()
    assert torch.equal(clip[:, 2], shift[:, 2] - shift[:, 2] // 2)  # the rows above the centre are cut
    assert torch.equal(clip[:, 3], shift[:, 3] // 2 + 1)
    assert (shift[:, 0] == 0).all()
    assert (shift[:, 1] + shift[:, 3] == 30).all()


def test_a_batch_may_be_split():
    images, relevance = pixels(9, 2, 20, 20), torch.randn(9, 20, 20)
    arguments = dict(p=0.6, alpha=0.4, k_centers=3, seed=8, value="random")
    whole, boxes = occlude_blocks(images, relevance, **arguments)
    for part in (slice(0, 4), slice(4, 9)):
        ids = torch.arange(9)[part]
        out, found = occlude_blocks(images[part], relevance[part], sample_ids=ids, **arguments)
        assert torch.equal(found, boxes[part])
        assert torch.equal(out, whole[part])


def test_relevance_of_the_drawn_images_alone_is_enough(backend):
    occlude, _ = backend
    images, relevance = pixels(12, 2, 20, 20), torch.randn(12, 20, 20)
    for per in ("image", "batch"):
        rule = dict(p=0.7, alpha=0.4, per=per, seed=10)
        guided = draw_images(12, **rule).nonzero()[:, 0].flip(0)
        assert 0 < len(guided) < 12
        whole, boxes = occlude(images, relevance, **rule)
        out, found = occlude(images, relevance[guided], index=guided, **rule)
        assert torch.equal(found, boxes)
        assert torch.equal(out, whole)
    uniform = occlude(images, None, p=0.7, seed=8)[1]
    assert torch.equal(occlude(images, relevance[:0], index=guided[:0], p=0.7, seed=8)[1], uniform)


def test_in_place_writes_what_the_copy_has(backend):
    if backend is BACKENDS["cuda"]:
        pytest.skip("the copy on the device is written")
    occlude, fill = backend
    for images in (pixels(3, 2, 9, 9), pixels(3, 2, 9, 18)[..., ::2], pixels(9, 9, 2, 3).permute(3, 2, 0, 1)):
        before = images.clone()
        out, boxes = occlude(images, torch.ones(3, 4, 4), seed=1)
        assert torch.equal(images, before)
        again = images.clone()
        assert fill(again, boxes, inplace=True) is again
        same, _ = occlude(images, torch.ones(3, 4, 4), seed=1, inplace=True)
        assert same is images
        assert torch.equal(images, out)
        assert torch.equal(again, out)


def test_an_expanded_image_is_copied():
    images = pixels(1, 2, 9, 9).expand(3, 2, 9, 9)
    out, boxes = occlude_blocks(images, seed=1)
    assert torch.equal(out, filled_by_definition(images, boxes, lambda *place: 0.0))


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_boxes_of_the_caller_are_cut_to_the_image(backend, policy):
    _, fill = backend
    images = pixels(6, 2, 9, 9)
    boxes = torch.tensor(
        [[-3, -2, 5, 5], [7, 8, 2**31 - 1, 4], [9, 0, 3, 3], [2, 2, 0, 4], [2, 2, -1, 4], [0, 0, 9, 9]]
    ).int()
    cut = torch.tensor([[0, 0, 2, 3], [7, 8, 2, 1], *[[0] * 4] * 3, [0, 0, 9, 9]])
    expected = filled_by_definition(images, cut, lambda n, c, y, x: 3.0, policy)
    assert torch.equal(fill(images, boxes, value=3.0, policy=policy), expected)
    assert torch.equal(fill_blocks(images, boxes, value=3.0, policy=policy, backend="reference"), expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0), (2, 3, 1, 1), (2, 3, 1, 9)])
def test_where_no_block_fits_nothing_happens(backend, shape):
    images = pixels(*shape)
    for occlude in (backend[0], on_cpu(occlude_blocks, "reference")):
        for relevance in (None, torch.randn(shape[0], *shape[2:]), torch.randn(shape[0], 3, 3)):
            for value in (0.0, "random"):
                out, boxes = occlude(images, relevance, seed=0, value=value)
                assert torch.equal(out, images)
                assert boxes.shape == (shape[0], 4)
                assert min(shape[1:]) == 0 or not boxes.any()


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_the_gradient_is_the_mask(policy):
    images = torch.randn(3, 2, 9, 9, requires_grad=True)
    out, boxes = occlude_blocks(images, seed=1, value=5.0, policy=policy)
    out.sum().backward()
    expected = filled_by_definition(torch.ones_like(images.grad), boxes, lambda *place: 0.0, policy)
    assert torch.equal(images.grad, expected)
    assert fill_blocks(images, boxes, policy=policy).requires_grad


def test_float64_runs_the_reference():
    images, relevance = pixels(2, 1, 9, 9), torch.randn(2, 9, 9)
    expected, boxes = occlude_blocks(images, relevance, seed=0)
    out, found = occlude_blocks(images.double(), relevance.double(), seed=0)
    assert out.dtype == torch.float64
    assert torch.equal(out.float(), expected)
    assert torch.equal(found, boxes)
    with pytest.raises(RuntimeError, match="float64 is served by the reference only"):
        occlude_blocks(images, relevance.double(), seed=0, backend="cpp")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1), height=st.integers(1, 24), width=st.integers(1, 24), p=st.floats(0, 1),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.sampled_from([0.1, 0.5, 1.0, 2.0]), st.sampled_from([2.0, 3.7])), k_centers=st.integers(1, 99),
    border=st.sampled_from(["clip", "shift"]), values=st.lists(st.sampled_from([-1.0, 0.0, -0.0, 2.0]), min_size=4,
    max_size=4), policy=st.sampled_from(["drop", "keep"]),
)  # fmt: skip
def test_properties(seed, height, width, p, values, scale, policy, **arguments):
    images = pixels(3, 2, height, width) + 1
    relevance = torch.tensor(values).view(1, 2, 2).expand(3, 2, 2)
    arguments |= dict(seed=seed, p=p, scale=tuple(scale), policy=policy)
    out, boxes = occlude_blocks(images, relevance, **arguments)
    expected, same = occlude_blocks(images, relevance, backend="reference", **arguments)
    assert torch.equal(boxes, same)
    assert torch.equal(out, expected)
    top, left, h, w = boxes.unbind(1)
    assert ((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width)).all()
    assert torch.equal(h > 0, w > 0)
    assert not (boxes.any(1) & ~draw_images(3, p, seed=seed)).any()
    replaced = (out == 0).sum((1, 2, 3))
    assert torch.equal(replaced, 2 * torch.where(h > 0, height * width - h * w if policy == "keep" else h * w, 0))
    assert ((out == images) | (out == 0)).all()


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    images, relevance = torch.randn(4, 3, 32, 32, device="cuda"), torch.randn(4, 32, 32, device="cuda")
    boxes = occlude_blocks(images, relevance, seed=0)[1]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in (0.0, (1.0, 2.0, 3.0), "random"):
            occlude_blocks(images, relevance, p=0.5, alpha=0.5, k_centers=9, seed=0, value=value, inplace=True)
            fill_blocks(images, boxes, value=value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
