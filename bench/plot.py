"""Tables and figures from the CSVs: `python -m bench.plot` draws, `--pages .` rewrites the tables of the documents."""

import argparse
import re
from pathlib import Path

import pandas as pd

from bench.ops.shapes import IMAGES, NAMED, POINTS
from bench.rows import COLUMNS, RESULTS

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
GROUP = ["name", "op", "mode", "shape", "dtype"]
STEPS = ("step", "step images", "step points")
RIVALS = (
    "plain",
    "lean eager",
    "per-layer loop",
    "random erasing",
    "random point dropout",
    "cloud by cloud",
    "zennit",
)  # among the arms of the steps


def load(paths: list[Path]) -> pd.DataFrame:
    """The newest row of each variant in each group, in the order measured."""
    frames = [pd.read_csv(path) for path in paths]
    if not frames:
        raise FileNotFoundError(f"no CSV in {RESULTS}: run python -m bench.run or a bench/step*.py first")
    found = pd.concat(frames, ignore_index=True).reindex(columns=list(COLUMNS))
    return found.drop_duplicates([*GROUP, "variant"], keep="last")


def headline(found: pd.DataFrame) -> pd.DataFrame:
    """All rows but those of the further lengths on a GPU, which have a figure of their own."""
    named = found["shape"].isin([str(shape) for shape in (*NAMED.values(), *IMAGES.values(), *POINTS.values())])
    return found[(found.device == "cpu") | found.op.isin(STEPS) | named]


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _time(row) -> str:
    """Absolute times only from a GPU: CPUs are shared and noisy, so theirs are quoted as ratios within one run."""
    return "" if row.device == "cpu" else f"{_milliseconds(row.median_ms)} ms, "


def _speed(row) -> str:
    return f"{row.gflop / row.median_ms:.0f} TFLOP/s, " if row.device == "cuda" and row.gflop > 0 else ""


def _op_table(found: pd.DataFrame) -> list[str]:
    lines = ["| op | shape, type | attrdrop | time of the peers over ours |", "| --- | --- | --- | --- |"]
    for (_, op, mode, shape, dtype), group in found.groupby(GROUP, sort=False):
        ours = next(group[group.variant == group.ratio_to].itertuples())
        peers = group[~group.variant.str.startswith("attrdrop")]
        rivals = "; ".join(f"{r.variant} {_time(r)}{r.ratio:.2f}x" for r in peers.itertuples())
        label = f"`{op}`" + ("" if mode == "forward" else f", {mode}".replace("train", "forward + backward"))
        lines.append(f"| {label} | {shape}, {dtype} | {_time(ours)}{_speed(ours)}{ours.backend} | {rivals} |")
    return lines


def _step_table(found: pd.DataFrame) -> list[str]:
    lines = [
        f"| {found.op.iloc[0]} | arm | time to plain | 20 to 80 % | peak memory (MiB) | to plain |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (_, _, mode, shape, dtype), group in found.groupby(GROUP, sort=False):
        plain = group[group.variant == group.ratio_to].peak_mb.iloc[0]
        for row in group.itertuples():
            known = pd.notna(row.peak_mb) and pd.notna(plain)
            memory = f"{row.peak_mb:.0f} | {row.peak_mb / plain:.2f}x" if known else " | "
            what = f"{shape}, {dtype}, {mode} | {row.variant}"
            spread = f"{row.low_ms / row.median_ms * row.ratio:.2f} to {row.high_ms / row.median_ms * row.ratio:.2f}"
            lines.append(f"| {what} | {_time(row)}{row.ratio:.2f}x | {spread} | {memory} |")
    return lines


def markdown(found: pd.DataFrame) -> str:
    """One section per processor: the steps of each kind, then the ops."""
    parts = []
    for name, machine in headline(found).groupby("name", sort=False):
        newest = machine.iloc[machine.date.argmax()]
        cpu = f", {newest.threads} threads" if newest.device == "cpu" else ""
        triton = f", triton {newest.triton}" if pd.notna(newest.triton) else ""
        parts.append(f"**{name}**{cpu}, torch {newest.torch}{triton}, attrdrop {newest.attrdrop}, {newest.date[:10]}")
        tables = [(_step_table, machine[machine.op == step]) for step in STEPS]
        tables.append((_op_table, machine[~machine.op.isin(STEPS)]))
        parts += ["\n".join(make(part)) for make, part in tables if len(part)]
    return "\n\n".join(parts)


def length_table(found: pd.DataFrame) -> str:
    """The medians of the figure over length, in plain training steps."""
    lines = ["| tokens | published procedure | one gradient call, in plain PyTorch | attrdrop | bound |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: |")
    for _, part in _over_length(found):
        for n, rows in part.groupby("n"):
            ratios = rows.set_index("variant").ratio.reindex(list(LENGTHS))
            shown = [f"{ratio:.2f}" if pd.notna(ratio) else "-" for ratio in ratios]
            lines.append(f"| {n:,} | {' | '.join(shown)} | {rows.bound[rows.variant == 'ADDrop'].iloc[0]:.2f} |")
    return "\n".join(lines)


def rewrite(page: Path, text: str) -> None:
    """Put `text` between the markers of `page`."""
    old = page.read_text()
    if START not in old or END not in old:
        raise ValueError(f"{page} must hold the lines {START} and {END}")
    new = re.sub(f"{START}.*?{END}", lambda _: f"{START}\n{text}\n{END}", old, flags=re.DOTALL)
    page.write_text(new)


def draw(found: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure per processor and op, one panel per shape and mode; bars are times over that of the base."""
    import seaborn as sns
    from matplotlib.figure import Figure

    written = []
    for (name, op), part in headline(found).groupby(["name", "op"], sort=False):
        panels = list(part.groupby(["mode", "shape", "dtype"], sort=False))
        heights = [0.8 + 0.3 * len(group) for _, group in panels]
        with sns.axes_style("whitegrid"):
            figure = Figure(figsize=(7, 0.5 + sum(heights)), layout="constrained")
            grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axes, ((mode, shape, dtype), group) in zip(grid, panels, strict=True):
            ours = ~group.variant.str.startswith(RIVALS) if op in STEPS else group.variant.str.startswith("attrdrop")
            colors = dict(zip(group.variant, ours.map({True: "#2a6f97", False: "#b8b8b8"}), strict=True))
            sns.barplot(group, x="ratio", y="variant", hue="variant", palette=colors, ax=axes, legend=False)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.set(title=f"{mode}, {shape}, {dtype}", xlabel=f"time / {group.ratio_to.iloc[0]}", ylabel="")
            for bars, row in zip(axes.containers, group.itertuples(), strict=True):
                axes.bar_label(bars, [f"{_time(row)}{row.ratio:.2f}x"], padding=3, fontsize=8)
            axes.margins(x=0.15)
        figure.suptitle(f"{op} on {name}")
        written.append(_save(figure, folder, name, op))
    return written


def _save(figure, folder: Path, name: str, what: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"{slug}-{what.replace(' ', '-')}.png"
    figure.savefig(path, dpi=150)
    return path


def draw_over_n(found: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure per GPU and op with rows at three lengths or more: times over ours against n, by mode and width."""
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    found = found[(found.device == "cuda") & found["mode"].isin(["forward", "backward"])]
    found = found.join(found["shape"].str.extract(r"n(?P<n>\d+) d(?P<d>\d+)$").astype(float))
    written = []
    for (name, op), part in found.groupby(["name", "op"], sort=False):
        if part.n.nunique() < 3:
            continue
        modes, widths, variants = part["mode"].unique(), sorted(part.d.unique()), part.variant.unique()
        ylabel = f"time / {part.ratio_to.iloc[0]}"
        colors = dict(zip(variants, sns.color_palette("husl", len(variants)), strict=True))
        with sns.axes_style("whitegrid"):
            figure = Figure(figsize=(3 + 4 * len(widths), 1 + 3 * len(modes)), layout="constrained")
            grid = figure.subplots(len(modes), len(widths), squeeze=False, sharex=True, sharey=True)
        for (mode, width), axes in zip(((m, d) for m in modes for d in widths), grid.flat, strict=True):
            panel = part[(part["mode"] == mode) & (part.d == width)]
            sns.lineplot(panel, x="n", y="ratio", hue="variant", palette=colors, marker="o", ax=axes, legend=False)
            axes.set(xscale="log", yscale="log", title=f"{mode}, d {width:.0f}", ylabel=ylabel)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(2))
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter("{x:g}")
        lines = [grid[0, 0].plot([], color=color, marker="o")[0] for color in colors.values()]
        figure.legend(lines, colors, loc="outside right center")
        figure.suptitle(f"{op} on {name}")
        written.append(_save(figure, folder, name, f"{op}-over-n"))
    return written


LENGTHS = {
    "per-layer loop": ("published procedure", "#b8b8b8"),
    "lean eager": ("one gradient call, in plain PyTorch", "#8a8a8a"),
    "ADDrop": ("attrdrop", "#2a6f97"),
}


def _over_length(found: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """By processor and model, steps on texts of three lengths or more, measured in processor time."""
    found = found[(found.op == "step") & (found.clock == "processor")]
    found = found.join(found["shape"].str.extract(r"^(?P<model>\S+) B\d+ n(?P<n>\d+)$"))
    groups = [
        (key, part.assign(n=part.n.astype(int)).sort_values("n")) for key, part in found.groupby(["name", "model"])
    ]
    return [(key, part) for key, part in groups if part.n.nunique() >= 3]


def draw_over_length(found: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure per processor: cost in plain steps against length."""
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    written = []
    for (name, model), part in _over_length(found):
        with sns.axes_style("whitegrid"):
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            axes = figure.subplots()
        for variant, (label, color) in LENGTHS.items():
            rows = part[part.variant == variant]
            axes.plot(rows.n, rows.ratio, marker="o", color=color, label=label)
            for row in rows.itertuples():
                place = (0, -13 if variant == "ADDrop" else 6)  # the lowest line has its numbers below it
                axes.annotate(f"{row.ratio:.2f}", (row.n, row.ratio), place, textcoords="offset points", ha="center",
                              fontsize=8)  # fmt: skip
        bounds = part[part.variant == "ADDrop"]
        axes.plot(
            bounds.n,
            bounds.bound,
            "--",
            color="black",
            linewidth=1,
            label="bound: ratio of operations",
        )
        axes.axhline(1, color="black", linewidth=0.8)
        lengths = sorted(part.n.unique())
        axes.set(xscale="log", yscale="log", xticks=lengths, xticklabels=lengths, yticks=(ticks := (1, 2, 4, 8, 16)),
                 yticklabels=ticks, xlabel="tokens", ylabel="plain training steps")  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        figure.legend(loc="outside lower center", ncols=2)
        axes.set_title(f"A step of AD-DROP, all layers, {model}, {name}", fontsize=10)
        written.append(_save(figure, folder, name, "step-over-length"))
    return written


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("csv", nargs="*", type=Path, help="default: all in bench/results")
    parser.add_argument("--figures", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument(
        "--pages", type=Path, help="folder of README.md and docs/measured.md, whose tables are rewritten"
    )
    options = parser.parse_args()
    found = load(options.csv or sorted(RESULTS.glob("*.csv")))
    for path in (
        *draw(found, options.figures),
        *draw_over_n(found, options.figures),
        *draw_over_length(found, options.figures),
    ):
        print(path)
    if options.pages:
        rewrite(options.pages / "README.md", length_table(found))
        rewrite(options.pages / "docs" / "measured.md", markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
