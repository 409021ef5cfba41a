"""bench-check: what counts as slower, what is stored, and one case for real."""

import csv
from dataclasses import replace

import pytest
import torch
from bench_setup import one_thread  # noqa: F401
from rich.console import Console

from bench import check
from bench.check import Ratio

BEFORE = Ratio("keep_mask", "avx2", 1.5, 1.47, 1.53, "2.13", "abc")


@pytest.mark.parametrize(
    ("ratio", "low", "high", "slower"),
    [(1.5, 1.49, 1.51, False), (1.53, 1.53, 1.53, False), (1.6, 1.59, 1.61, True), (1.6, 1.45, 1.75, False),
     (1.2, 1.19, 1.21, False)],
)  # fmt: skip
def test_slower_is_more_than_both_spreads(ratio, low, high, slower):
    now = replace(BEFORE, ratio=ratio, low=low, high=high)
    assert now.is_slower_than(BEFORE) == slower
    named = check.compare([now], {("keep_mask", "avx2"): BEFORE}, Console(quiet=True))
    assert named == (["keep_mask"] if slower else [])


def test_another_instruction_set_is_another_case(tmp_path):
    path = tmp_path / "check.csv"
    check.store([BEFORE, replace(BEFORE, isa="avx512", ratio=3.0)], path)
    check.store([replace(BEFORE, ratio=1.25)], path)
    found = check.load(path)
    assert {key: row.ratio for key, row in found.items()} == {("keep_mask", "avx2"): 1.25, ("keep_mask", "avx512"): 3.0}
    assert check.compare([replace(BEFORE, isa="base", ratio=9.0)], found, Console(quiet=True)) == []


def test_a_case_is_measured_stored_and_compared(tmp_path, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "check.csv"
    arguments = ["--cases", "keep_mask", "--seconds", "0", "--stored", str(path)]
    try:
        assert check.main([*arguments, "--store"]) == 0
        (row,) = csv.DictReader(path.open())
        path.write_text(path.read_text().replace(row["ratio"], "0.001").replace(row["high"], "0.001"))
        assert check.main(arguments) == 1
    finally:
        torch.set_num_threads(threads)
    assert "Slower by more than the spread: keep_mask" in capsys.readouterr().out


def test_what_is_stored_are_cases():
    assert {case for case, _ in check.load(check.STORED)} <= set(check.CASES)
