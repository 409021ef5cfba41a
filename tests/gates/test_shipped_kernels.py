"""Every shipped Triton kernel compiles for the chips we name: nothing spilled, shared memory within the chip, Hopper's
matrix instructions where they are due, and no more instructions than were stored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
COUNTS = json.loads((HERE / "instruction_counts.json").read_text())


def reports(*arguments):
    """From a process of its own: this one may have the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "shipped_kernels.py", *arguments]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows():
    return reports()


def failing(rows, is_wrong):
    return {row["case"]: row for row in rows if is_wrong(row)}


def test_blackwell_gets_kernels():
    """One of each; over three seconds, since they are compiled. The slow tests have the others."""
    rows = {row["arch"]: row for row in reports("^forward-half-d128-sm(100|120)-plain$")}
    assert set(rows) == {100, 120}
    assert not failing(rows.values(), lambda r: r["loop_spills"] or r["shared"] > r["shared_limit"])


LOOP_SPILLS = {"forward-half-d64-sm120-plain": 3, "forward-half-d128-sm120-bias": 4}
"""Few loads and stores where sm_80's tile does not quite fit: tiles without them take 15.3 instructions a position
instead of 14.4, and 110 instead of 81."""
OUTSIDE_LOOPS = {80: 64, 90: 64, 100: 160, 120: 64}
"""Bytes that may wait outside the registers until the tile's end, by chip; sm_100 has sm_90's tiles."""


@pytest.mark.slow
def test_no_loop_spills(rows):
    assert not failing(rows, lambda r: r["loop_spills"] > LOOP_SPILLS.get(r["case"], 0))
    assert not failing(rows, lambda r: r["stack"] > OUTSIDE_LOOPS[r["arch"]])


@pytest.mark.slow
def test_shared_memory_fits(rows):
    """On sm_80 within the 99 KiB of its smaller relatives, which take the same tiles."""
    assert not failing(rows, lambda r: r["shared"] > (99 << 10 if r["arch"] == 80 else r["shared_limit"]))


@pytest.mark.slow
def test_hopper_multiplies_by_warp_groups(rows):
    """But where 64 rows of a product would need more registers than there are."""
    half = [row for row in rows if row["arch"] == 90 and "-half-" in row["case"]]
    assert len(half) > 40
    without = {"forward-half-d256-sm90-bias", "grad_query-half-d256-sm90-bias"}
    without |= {f"grad_key_value-half-d256-sm90-{flags}" for flags in ("plain", "dropout", "bias")}
    assert set(failing(half, lambda r: r["hgmma"] == 0)) == without


@pytest.mark.slow
def test_inner_loops_have_not_grown(rows):
    assert set(COUNTS) == {row["case"] for row in rows if "per_position" in row}
    assert not failing(rows, lambda r: "per_position" in r and r["per_position"] > 1.05 * COUNTS[r["case"]])
