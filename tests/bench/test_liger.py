"""The export of rows in Liger-Kernel's columns."""

import csv

from bench_setup import ROOT

from bench.liger import COLUMNS, converted, main


def test_every_row_has_its_time_and_its_memory_where_that_was_measured(tmp_path):
    (*_, source) = sorted((ROOT / "bench" / "results").glob("*.csv"))
    with open(source, newline="") as file:
        ours = list(csv.DictReader(file))
    main([str(source), "--output", str(tmp_path / "rows.csv")])
    with open(tmp_path / "rows.csv", newline="") as file:
        reader = csv.DictReader(file)
        theirs = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    times = [row for row in theirs if row["metric_name"] == "speed"]
    assert [row["y_value_50"] for row in times] == [row["median_ms"] for row in ours]
    assert [row["kernel_name"] for row in times] == [row["op"] for row in ours]
    assert len(theirs) - len(times) == sum(bool(row.get("peak_mb")) for row in ours)


def test_the_length_is_that_of_the_text_or_the_first_size():
    row = dict.fromkeys(("shape", "dtype", "backend", "threads", "torch", "triton", "commit", "op", "variant", "mode",
                         "name", "attrdrop", "median_ms", "low_ms", "high_ms"), "")  # fmt: skip
    row["date"] = "2026-11-24T18:48:13Z"
    found = {shape: next(converted([row | {"shape": shape}])) for shape in ("B16 H12 n128 d32", "N32 1024x3", "B7")}
    assert [one["x_value"] for one in found.values()] == ["128", "1024", ""]
    assert found["N32 1024x3"]["timestamp"] == "2026-11-24 18:48:13"
