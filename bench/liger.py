"""Our rows in the columns of Liger-Kernel's benchmark data, for tools that read those.

python -m bench.liger [FILE ...] [--output rows.csv]
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bench.rows import RESULTS

COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str", "gpu_name", "timestamp",
    "liger_version",
)  # fmt: skip
LENGTH = re.compile(r"\bn(\d+)\b")  # of texts; images and clouds have the first of their sizes, as in 1024x3
SIZE = re.compile(r"\b(\d+)x\d+")


def converted(rows: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str | float]]:
    """One row for the time of each of ours, and one for its peak of memory where that was measured."""
    for row in rows:
        length = LENGTH.search(row["shape"])
        size = length or SIZE.search(row["shape"])
        setting = {name: row[name] for name in ("shape", "dtype", "backend", "threads", "torch", "triton", "commit")}
        common = {
            "kernel_name": row["op"],
            "kernel_provider": row["variant"],
            "kernel_operation_mode": row["mode"],
            "x_name": "n" if length else "size",
            "x_label": "sequence length" if length else "size",
            "x_value": size[1] if size else "",
            "extra_benchmark_config_str": json.dumps(setting),
            "gpu_name": row["name"],  # of the processor that did the work, a CPU's too
            "timestamp": row["date"].replace("T", " ").removesuffix("Z"),
            "liger_version": f"attrdrop {row['attrdrop']}",
        }
        times = {f"y_value_{share}": row[name] for share, name in ((50, "median_ms"), (20, "low_ms"), (80, "high_ms"))}
        yield {"metric_name": "speed", "metric_unit": "ms", **common, **times}
        if row.get("peak_mb"):
            peak = {f"y_value_{share}": row["peak_mb"] for share in (50, 20, 80)}
            yield {"metric_name": "memory", "metric_unit": "MB", **common, **peak}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.liger", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="CSV files of rows; default, all of bench/results")
    parser.add_argument("--output", type=Path, help="CSV file to write; default, standard output")
    given = parser.parse_args(arguments)
    with open(given.output, "w", newline="") if given.output else sys.stdout as target:
        writer = csv.DictWriter(target, COLUMNS)
        writer.writeheader()
        for path in given.files or sorted(RESULTS.glob("*.csv")):
            with open(path, newline="") as source:
                writer.writerows(converted(csv.DictReader(source)))


if __name__ == "__main__":
    main()
