"""The ahead-of-time compiler of the gates: it sees dots, loops and spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
import ahead  # noqa: E402
import sample_kernels  # noqa: E402

MATMUL = {"p_x": "*bf16", "p_y": "*bf16", "p_out": "*bf16", "n_k": "i32"}
ROW_SUM = {"p_x": "*fp32", "p_out": "*fp32", "n": "i32"}
PROGRAM = f"""
import dataclasses, json
from ahead import compile_ahead
from sample_kernels import matmul_kernel, row_sum_kernel

def matmul(arch):
    constants = {{"p_bias": None, "BLOCK": 64, "BLOCK_K": 64}}
    aligned = ("p_x", "p_y", "p_out", "n_k")
    return compile_ahead(matmul_kernel, {MATMUL}, constants, arch, warps=4, stages=3, aligned=aligned)

def row_sum(block):
    return compile_ahead(row_sum_kernel, {ROW_SUM}, {{"BLOCK": block}}, 80, warps=1, stages=1, aligned=("p_x", "n"))

reports = {{"sm_80": matmul(80), "sm_90": matmul(90), "few": row_sum(256), "many": row_sum(8192)}}
print(json.dumps({{name: dataclasses.asdict(report) for name, report in reports.items()}}))
"""


@pytest.fixture(scope="module")
def reports():
    """Compiled in a process of its own: this one has the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: ahead.Report(**fields) for name, fields in json.loads(done.stdout).items()}


@pytest.mark.parametrize("arch", [80, 90])
def test_a_matmul_uses_tensor_cores_and_does_not_spill(reports, arch):
    report = reports[f"sm_{arch}"]
    assert (report.hmma > 0, report.hgmma > 0) == (arch == 80, arch == 90)
    assert report.stack == report.local_loads == report.local_stores == 0
    assert 0 < report.shared <= report.shared_limit
    assert 0 < report.registers <= 255
    assert 0 < report.loop_instructions < report.instructions
    assert report.loop_counts["HMMA" if arch == 80 else "HGMMA"] == report.hmma + report.hgmma
    assert sum(report.loop_counts.values()) == report.loop_instructions


def test_a_spill_is_seen(reports):
    few, many = reports["few"], reports["many"]
    assert few.stack == few.local_loads == few.local_stores == 0
    assert many.stack > 0
    assert many.local_loads > 0
    assert many.local_stores > 0


def test_a_loop_without_dots_is_found(reports):
    counts = reports["few"].loop_counts
    assert counts["FADD"] == 4 * counts["LDG"] > 0  # aligned, so one load brings four floats


def test_the_hottest_loop_is_the_innermost_with_dots():
    code = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/               @P0 EXIT ;
.L_x_2:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
.L_x_3:
        /*0030*/              @!P1 LDL.64 R2, [R1] ;
        /*0040*/              @!P1 BRA `(.L_x_3) ;
        /*0050*/             @!UP1 UMOV UR4, 0x400 ;
        /*0060*/                   BRA.DIV UR4, `(.L_x_7) ;
.L_x_4:
        /*0070*/                   BRA.U !UP0, `(.L_x_2) ;
        /*0080*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0090*/               @P2 BRA `(.L_x_1) ;
.L_x_5:
        /*00a0*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;
        /*00b0*/               @P2 BRA `(.L_x_5) ;
        /*00c0*/                   EXIT ;
.L_x_6:
        /*00d0*/                   BRA `(.L_x_6);
.L_x_7:
        /*00e0*/                   SHFL.BFLY PT, R2, R3, 0x1, 0x1f ;
        /*00f0*/                   BRA `(.L_x_4) ;
        /*0100*/                   NOP;
"""
    instructions, labels = ahead.parse(code)
    assert len(instructions) == 16
    opcodes = [i.opcode for i in ahead.hottest_loop(instructions, labels)]
    assert opcodes == ["HGMMA", "LDL", "BRA", "UMOV", "BRA", "BRA"]
    opcodes = [i.opcode for i in ahead.hottest_loop(*ahead.parse(code.replace("HGMMA", "FADD")))]
    assert opcodes == ["LDL", "BRA"]
    assert ahead.hottest_loop(*ahead.parse(code[: code.index(".L_x_2")])) == []


def test_the_interpreter_is_refused():
    if not triton.knobs.runtime.interpret:
        pytest.skip("the interpreter is off")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        ahead.compile_ahead(sample_kernels.row_sum_kernel, ROW_SUM, {"BLOCK": 256}, 80, warps=1, stages=1)
