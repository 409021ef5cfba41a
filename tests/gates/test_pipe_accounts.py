"""The accounts of keep_mask stay where they were when they were written down (docs/benchmarks.md)."""

import shutil

import pipe_accounts as accounts
import pytest


def test_an_account_weighs_the_statement_that_a_rule_names():
    lines = accounts.statement(accounts.SELECT, r"for \(int step = 0;;")
    text = (accounts.CSRC / accounts.SELECT).read_text().splitlines()
    assert text[lines[0] - 1].strip().startswith("for (int step = 0;;")
    assert text[lines[-1] - 1] == "  }"

    inside, outside = (accounts.SELECT, lines[1]), (accounts.SELECT, lines[0] - 2)
    kernel = [
        accounts.Instruction("HSET2.BF16_V2", False, 3, (inside,)),
        accounts.Instruction("FADD", False, 0, (outside,)),
    ]
    warps = (
        accounts.MULTIPROCESSORS * accounts.SCHEDULERS * accounts.CLOCK / 1e6
    )  # so that a cycle of a warp is a microsecond
    parts = accounts.account(kernel, [accounts.Rule(accounts.SELECT, r"for \(int step = 0;;", 5, "search")], warps)
    assert parts["search"] == pytest.approx({"alu": 10, "issue": 5, "stall": 15})
    assert parts["rest"] == pytest.approx({"fma": 1, "issue": 1, "stall": 1})


@pytest.mark.parametrize("pattern", ["no such line", "const"])
def test_a_rule_that_matches_no_line_or_many_is_refused(pattern):
    with pytest.raises(ValueError, match=r"pattern must match one line of cuda/keep_mask_select.cuh"):
        accounts.statement(accounts.SELECT, pattern)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_pipes_of_keep_mask_are_busy_no_longer_than_written_down():
    short, long = accounts.total(accounts.short_rows()), accounts.total(accounts.long_rows())
    assert short["alu"] <= 105
    assert short["issue"] <= 114
    assert max(long["alu"], long["issue"], long["bytes"]) <= 2600
