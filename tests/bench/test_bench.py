"""The benchmark harness: peers compute the right thing, rows are complete, and red is never timed."""

import csv
import importlib
from dataclasses import replace

import pytest
import torch
from bench_setup import CPU, ROOT, compiled_kernels, one_thread, tiny  # noqa: F401
from typer.testing import CliRunner

import attrdrop
from attrdrop.lab.cli.main import app
from attrdrop.reference.keep_mask import candidates
from bench import plot, rows, run, timing
from bench.ops import peers
from bench.ops.registry import REGISTRY
from bench.ops.shapes import NAMED, OVER_N, Shape

TINY = Shape(2, 2, 40, 16)
RAGGED = (40, 7, 23)
PUBLIC_OPS = [name for name in attrdrop.ops.__all__ if name.islower()]

masks = pytest.mark.parametrize("make", [*peers.EAGER_MASKS.values(), "sorted"], ids=[*peers.EAGER_MASKS, "sorted"])
lengths = pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])


def peer_mask(make, x, y, p, q, lengths):
    return peers.sort_and_drop(x @ y.mT, p, q, lengths).bool() if make == "sorted" else make(x, y, p, q, lengths)


def definition(x, y, p, lengths):
    """(valid, candidates) by the reference."""
    b = x @ y.mT
    valid = torch.ones_like(b, dtype=torch.bool)
    if lengths is not None:
        valid &= ~peers.padding(lengths, b.shape[-1], CPU)
    return valid, candidates(b, valid, p, False)


@masks
@lengths
@pytest.mark.parametrize("p", [0.1, 0.3, 0.8, 0.9])
def test_mask_peers_drop_the_candidates(make, lengths, p):
    x, y = torch.randn(2, 3, 2, 40, 8)
    valid, region = definition(x, y, p, lengths)
    assert torch.equal(peer_mask(make, x, y, p, 1.0, lengths), valid & ~region)


@masks
@lengths
def test_mask_peers_drop_with_probability_q(make, lengths):
    torch.manual_seed(0)
    p, q = 0.5, 0.3
    x, y = torch.randn(2, 3, 8, 40, 8)
    valid, region = definition(x, y, p, lengths)
    dropped = valid & ~peer_mask(make, x, y, p, q, lengths)
    assert not (dropped & ~region).any()
    count = region.sum()
    assert abs(dropped.sum() / count - q) < 5 * (q * (1 - q) / count) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.3, 0.8, 0.9])
def test_rank_is_the_float32_product(p):
    lengths = torch.arange(1, 600)
    expected = (lengths.float() * torch.tensor(1 - p, dtype=torch.float64).float()).int()
    assert [peers.rank(n, p) for n in lengths.tolist()] == expected.tolist()


COMPARABLE = [
    (name, mode)
    for name, entry in REGISTRY.items()
    if entry.agree
    for mode in entry.modes
    if not mode.endswith("dropout")
]


@pytest.mark.parametrize(("name", "mode"), COMPARABLE)
def test_peers_agree_with_ours(name, mode):
    case = run.Case(REGISTRY[name], tiny(REGISTRY[name]), mode)
    found = run.variants(case, CPU)
    assert len(found) > 1
    assert run.disagreeing(case, found) == []
    if REGISTRY[name].unlike:
        assert run.disagreeing(case._replace(entry=replace(case.entry, unlike=())), found) == ["SDPA, no mask"]


@pytest.mark.parametrize("op", PUBLIC_OPS)
def test_every_public_op_has_an_entry_and_tests(op):
    assert (ROOT / REGISTRY[op].tests).exists()


@pytest.mark.parametrize("op", REGISTRY)
def test_a_measurement_fills_its_rows(op, tmp_path):
    output = tmp_path / "new" / "rows.csv"
    entry = REGISTRY[op]
    found = [row for mode in entry.modes for row in run.measure(run.Case(entry, tiny(entry), mode), CPU, 0)]
    rows.append(found[:1], output)
    rows.append(found[1:], output)
    with output.open() as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(found)
    for row in read:
        assert tuple(row) == rows.COLUMNS
        assert {column for column in rows.COLUMNS if not row[column]} - {"triton"} == {"peak_mb", "saved_mb", "bound"}
        assert float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
    ours = [row for row in read if row["variant"] == "attrdrop"]
    assert len(ours) == len(entry.modes)
    assert all(float(row["ratio"]) == 1 and row["backend"] in attrdrop.BACKENDS for row in ours)


def test_the_backend_that_ran_is_recorded():
    with attrdrop.use_backend("reference"):
        found = run.variants(run.Case(REGISTRY["keep_mask"], TINY, "forward"), CPU)
    assert found["attrdrop"].backend == "reference"


def test_disagreement_is_not_timed():
    wrong = replace(REGISTRY["pack_mask"], agree=lambda ours, theirs: False)
    with pytest.raises(RuntimeError, match="disagree"):
        run.measure(run.Case(wrong, TINY, "forward"), CPU, 0)


def other(result):
    """A variant of a peer with this result."""
    return run.Variant(lambda: torch.tensor(result), "torch", None)


def test_a_single_wrong_peer_is_left_out(capsys):
    case = run.Case(replace(REGISTRY["pack_mask"], unlike=("less",)), TINY, "forward")
    found = {"attrdrop": other(1), "a": other(1), "less": other(2), "wrong": other(2), "b": other(1)}
    assert list(run.agreeing(case, found)) == ["attrdrop", "a", "less", "b"]
    assert "wrong" in capsys.readouterr().out
    for odd in ("c", "attrdrop, cuda"):  # half of the peers, and one of ours
        with pytest.raises(RuntimeError, match="nothing was timed"):
            run.agreeing(case, {name: variant for name, variant in found.items() if name != "b"} | {odd: other(2)})


def test_verify_does_not_time_red(tmp_path, monkeypatch):
    tests = tmp_path / REGISTRY["keep_mask"].tests
    tests.parent.mkdir(parents=True)
    tests.write_text("def test_red():\n    open('ran', 'w').close()\n    assert False\n")
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    monkeypatch.setattr(run, "bench", lambda ops: pytest.fail("timed"))
    assert run.verify("keep_mask") == 1
    assert (tmp_path / "ran").exists()


def test_unknown_ops_are_named(capsys):
    assert run.bench(["keep_masks"]) == run.verify("keep_masks") == 2
    assert "keep_masks" in capsys.readouterr().out


def test_interleaving_takes_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleave(calls, CPU, budget=0, rounds=(4, 4))
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(runs).endswith("abcbcacababc")
    assert all(len(times[name].samples) == 4 for name in calls)


def test_ratio_is_taken_within_rounds():
    assert timing.Timing((2.0, 20.0, 6.0)).ratio(timing.Timing((1.0, 10.0, 3.0))) == 2.0


def test_fastest_passes_over_what_cannot_run():
    def broken():
        raise RuntimeError("no kernel")

    assert timing.fastest({"broken": broken, "works": lambda: None}, CPU) == "works"
    with pytest.raises(RuntimeError, match="no kernel"):
        timing.fastest({"broken": broken}, CPU)


@pytest.fixture(scope="module")
def rivals():
    """LeanEager and PerLayerLoop on the same tiny model without ordinary dropout, and a padded batch."""
    transformers = pytest.importorskip("transformers")
    from bench.steps.text_peers import LeanEager, PerLayerLoop

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    still = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}

    def build(attention):
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=99, attn_implementation=attention, **sizes, **still)
        return transformers.BertForSequenceClassification(config).train()

    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(99, (3, 40), generator=generator),
        "attention_mask": (torch.arange(40) < torch.tensor(RAGGED)[:, None]).long(),
        "labels": torch.tensor([0, 1, 0]),
    }
    return build, lambda p, q: (LeanEager(build("bench_lean"), p, q), PerLayerLoop(build("bench_loop"), p, q)), batch


def test_rival_steps_find_the_same_candidates(rivals):
    # dO Vᵀ of all layers in one call, dF/dA layer by layer, and ADDrop: with q = 1 only rounding tells them apart
    build, steps, batch = rivals
    lean, loop = steps(0.3, 1.0)
    pairs = list(zip(lean.masks(batch).values(), loop.masks(batch).values(), strict=True))
    assert len(pairs) == 2
    for ours, theirs in pairs:
        assert (ours == theirs.bool()).float().mean() > 0.998
    losses = [step(**batch).loss.item() for step in (lean, loop, build("sdpa"))]
    importlib.import_module("attrdrop.integrations.transformers")
    addrop = attrdrop.ADDrop(build("attrdrop"), p=0.3, q=1.0, cross_tuning=False)
    assert addrop(**batch).loss.item() == pytest.approx(losses[0], abs=1e-5)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0], abs=1e-3)


def test_the_rival_of_iga_finds_the_same_candidates(rivals):
    build, _, batch = rivals
    from bench.steps.text_peers import IntegratedLoop

    loop = IntegratedLoop(build("bench_loop"), 0.3, 1.0, steps=5)
    importlib.import_module("attrdrop.integrations.transformers")
    addrop = attrdrop.ADDrop(build("attrdrop"), p=0.3, q=1.0, attribution="IGA", iga_steps=5, cross_tuning=False)
    first, last = (attrdrop.unpack_mask(site.keep.rows, 40) for site in addrop.attribute(**batch).sites)
    theirs = [mask.bool() for mask in loop.masks(batch).values()]
    alive = batch["attention_mask"].bool()[:, None, :, None].expand(3, 2, 40, 40)  # a padded query has no gradient
    assert (first == theirs[0])[alive].float().mean() > 0.998
    assert (last == theirs[1])[:, :, 0].float().mean() > 0.99  # the only query that the classifier reads
    (only,) = IntegratedLoop(build("bench_loop"), 0.3, 1.0, steps=5, layers=1).masks(batch).values()
    assert torch.equal(only.bool(), theirs[0])


def test_rival_steps_drop_p_times_q_and_train(rivals):
    _, steps, batch = rivals
    torch.manual_seed(0)
    valid = batch["attention_mask"][:, None, None].bool().expand(3, 2, 40, 40)
    for step in steps(0.3, 0.3):
        first, last = step.masks(batch).values()
        alive = valid & valid.mT  # rows without a gradient tie: all their keys are candidates
        assert abs((~first[alive].bool()).float().mean() - 0.3 * 0.3) < 0.02
        dead = valid & (torch.arange(40) > 0)[:, None]
        assert abs((~last[dead].bool()).float().mean() - 0.3) < 0.03
        assert not first[~valid].any()
        step(**batch).loss.backward()
        assert all(weight.grad.isfinite().all() for weight in step.model.parameters() if weight.grad is not None)


@pytest.mark.slow
def test_every_arm_of_the_step_trains(tmp_path, capsys):
    step = pytest.importorskip("bench.steps.text")
    output = tmp_path / "rows.csv"
    arguments = ["--model", "tiny", "--batch", "3", "--n", "24", "--device", "cpu", "--seconds", "0"]
    arguments += ["--arms", *step.ARMS]
    assert step.main([*arguments, "--attention-dropout", "0", "--no-memory", "--output", str(output)]) == 0
    found = plot.load([output])
    assert list(found.variant) == [arm for arm in step.ARMS if step.missing(arm) is None]
    assert set(found["mode"]) == {"attention dropout 0"}
    assert found.set_index("variant").ratio["plain"] == 1
    assert "per-layer loop" in plot.markdown(found)
    assert "per-layer loop" in capsys.readouterr().out


def test_table_and_figures_from_rows(tmp_path):
    output = tmp_path / "rows.csv"
    for _ in range(2):  # the newest rows count
        rows.append(run.measure(run.Case(REGISTRY["keep_mask"], TINY, "forward"), CPU, 0), output)
    found = plot.load([output])
    assert len(found) == len(found.variant.unique()) == 6
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{plot.START}\nold\n{plot.END}\nafter\n")
    plot.rewrite(readme, plot.markdown(found))
    text = readme.read_text()
    assert text.startswith(f"before\n{plot.START}\n**")
    assert text.endswith(f"{plot.END}\nafter\n")
    assert "old" not in text
    assert "; sorted" in text
    assert all(path.stat().st_size for path in plot.draw(found, tmp_path))


def test_the_cost_over_length_is_drawn_where_it_was_measured(tmp_path):
    step = dict(op="step", name="A CPU", device="cpu", clock="processor", ratio_to="plain")
    lengths = {f"bert-4x384 B1 n{n}": ratio for n, ratio in ((128, 1.7), (512, 1.6), (1024, 1.5))}
    found = [measured(variant=variant, shape=shape, ratio=ratio, bound=1.6, **step)
             for shape, ratio in lengths.items() for variant in (*plot.LENGTHS, "plain")]  # fmt: skip
    rows.append(found, tmp_path / "rows.csv")
    (path,) = plot.draw_over_length(plot.load([tmp_path / "rows.csv"]), tmp_path)
    assert path.name == "a-cpu-step-over-length.png"
    table = plot.length_table(plot.load([tmp_path / "rows.csv"])).splitlines()
    ratios = {"128": "1.70", "512": "1.60", "1,024": "1.50"}
    assert table[2:] == [f"| {n} | {ratio} | {ratio} | {ratio} | 1.60 |" for n, ratio in ratios.items()]
    rows.append(found[:4], tmp_path / "one.csv")
    assert plot.draw_over_length(plot.load([tmp_path / "one.csv"]), tmp_path) == []


def test_the_tables_of_the_documents_are_those_of_the_rows():
    found = plot.load(sorted(rows.RESULTS.glob("*.csv")))
    for page, table in (("README.md", plot.length_table(found)), ("docs/measured.md", plot.markdown(found))):
        assert f"{plot.START}\n{table}\n{plot.END}" in (ROOT / page).read_text(), "python -m bench.plot --pages ."


def measured(**columns):
    """A row of invented numbers."""
    text = dict.fromkeys(("date", "torch", "triton", "python", "attrdrop", "commit", "dtype"), "some")
    times = {"median_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0, "ratio": 1.0, "ratio_to": "attrdrop"}
    given = {"name": "A GPU", "device": "cuda", "threads": 1, "op": "masked_attention", "mode": "forward"}
    return rows.Row(**{**text, **times, **given, "variant": "attrdrop", "backend": "triton", "shape": "", **columns})


def test_timings_are_kept_where_it_is_asked_for_and_nowhere_else(tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(rows, "RESULTS", results)
    monkeypatch.setattr(run, "measure", lambda *arguments: [measured()])
    shown = CliRunner().invoke(app, ["bench", "unpack_mask", "--quick"])
    assert shown.exit_code == 0, shown.output
    assert list(results.iterdir()) == []
    given = CliRunner().invoke(app, ["bench", "unpack_mask", "--quick", "--output", str(results)])
    assert given.exit_code == 0, given.output
    assert list(results.iterdir()) == [rows.default_output(run.current_device())]
    named = CliRunner().invoke(app, ["bench", "unpack_mask", "--quick", "--output", str(tmp_path / "own.csv")])
    assert named.exit_code == 0, named.output
    assert (tmp_path / "own.csv").read_text() == next(results.iterdir()).read_text()


def test_earlier_files_gain_the_new_columns(tmp_path):
    output = tmp_path / "rows.csv"
    rows.append([measured(bound=1.0)], output)
    lines = [line.rsplit(",", 2)[0] for line in output.read_text().splitlines()]  # as it was before bound and clock
    output.write_text("\n".join(lines) + "\n")
    rows.append([measured(variant="new", bound=2.0)], output)
    with output.open() as stream:
        old, new = csv.DictReader(stream)
    assert tuple(old) == tuple(new) == rows.COLUMNS
    assert (old["variant"], old["bound"], old["clock"]) == ("attrdrop", "", "")
    assert (new["variant"], new["bound"], new["clock"]) == ("new", "2", "wall")
    assert list(tmp_path.iterdir()) == [output]


def test_files_of_other_columns_are_refused(tmp_path):
    output = tmp_path / "rows.csv"
    output.write_text("date,colour\n2026,red\n")
    with pytest.raises(ValueError, match="colour"):
        rows.append([measured()], output)
    assert output.read_text() == "date,colour\n2026,red\n"


def test_results_are_shown_with_their_speed(capsys):
    rows.show([measured(gflop=500.0, backend="triton: fwd")])
    assert "250" in capsys.readouterr().out
    rows.show([measured(gflop=500.0, device="cpu")])
    assert "TFLOP" not in capsys.readouterr().out


def test_a_gpu_has_a_figure_over_n(tmp_path):
    output = tmp_path / "rows.csv"
    found = [
        measured(shape=str(shape), mode=mode, variant=variant, ratio=ratio, gflop=1e3, peak_mb=1.0)
        for shape in OVER_N["cuda"]
        for mode in ("forward", "backward")
        for variant, ratio in (("attrdrop", 1.0), ("SDPA efficient, bool mask", 3.5))
    ]
    rows.append(found, output)
    frame = plot.load([output])
    (path,) = plot.draw_over_n(frame, tmp_path)
    assert path.stat().st_size
    table = plot.markdown(frame)
    assert all(table.count(str(shape)) == 2 * (shape in NAMED.values()) for shape in OVER_N["cuda"])
    assert "2 ms, 500 TFLOP/s, triton" in table
    assert plot.draw_over_n(frame[frame["shape"] == str(NAMED["S1"])], tmp_path) == []
