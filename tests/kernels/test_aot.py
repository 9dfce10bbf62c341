"""kernels.aot in processes of its own, because this one defines its kernels for the interpreter."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_kernels import aot

ROOT = Path(__file__).parents[2]
# As here: what was set for the interpreter must not disturb the compiler.
INTERPRETED = os.environ | {"TRITON_INTERPRET": "1"}
COMPILED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

PLANTED = '''
import dataclasses, json, sys
import triton
import triton.language as tl
from qwen3_kernels import aot
from qwen3_kernels.aot_case import Case


@triton.jit
def scale_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """One program holds all of x in registers until its sum is known."""
    index = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index).to(tl.float32)
    tl.store(out_ptr + index, (x / tl.sum(x, 0)).to(tl.bfloat16))


@triton.jit
def matmul_kernel(out_ptr, x_ptr, weight_ptr, stride, DOT: tl.constexpr):
    """64 x 64 times 64 x 64."""
    row = tl.arange(0, 64)
    square = row[:, None] * 64 + row[None, :]
    x = tl.load(x_ptr + square)
    weight = tl.load(weight_ptr + row[:, None] * stride + row[None, :])
    if DOT:
        out = tl.dot(x, weight)
    else:
        out = x.to(tl.float32) * weight.to(tl.float32)
    tl.store(out_ptr + square, out.to(tl.bfloat16))


def scale(name, block):
    pointers = {"out_ptr": "*bf16:16", "x_ptr": "*bf16:16"}
    return Case(name, scale_kernel, pointers | {"BLOCK": block}, 4, 3, 1, 4 * block, block, streams=True)


def matmul(name, stride="i32:16", dot=True):
    pointers = {"out_ptr": "*bf16:16", "x_ptr": "*bf16:16", "weight_ptr": "*bf16:16"}
    arguments = pointers | {"stride": stride, "DOT": dot}
    return Case(name, matmul_kernel, arguments, 4, 3, 1, 6 * 4096, 2 * 64**3, tensor_cores=True, streams=True)


cases = [
    scale("small", 4096),
    scale("spills", 32768),
    matmul("good"),
    matmul("stride of any size", stride="i32"),
    matmul("no dot", dot=False),
]
reports = {case.name: aot.compile_case(case, sys.argv[1]) for case in cases}
found = {name: [aot.absolute_violations(report), dataclasses.asdict(report)] for name, report in reports.items()}
print(json.dumps(found))
'''


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_the_committed_table_holds_although_the_interpreter_is_on(arch) -> None:
    """Every kernel, every tile, both models: no spill, tensor cores, wide loads, nothing worse than recorded."""
    result = python("-m", "qwen3_kernels.aot", "--check", "--arch", arch, "--json", env=INTERPRETED)
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout)
    assert {report["arch"] for report in reports.values()} == {arch}
    assert {key.split("/")[2] for key in reports} == set(aot.MODULES)
    assert all(report["registers"] > 0 and report["roofline_us"] > 0 for report in reports.values())


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, tuple[list[str], dict]]:
    """Violations and report of each case of PLANTED on sm_90."""
    script = tmp_path_factory.mktemp("planted") / "planted.py"
    script.write_text(PLANTED)
    result = python(str(script), "sm_90", env=COMPILED)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_sound_cases_pass(planted) -> None:
    violations, small = planted["small"]
    assert not violations and small["spill_bytes"] == 0
    assert small["loads"] == small["wide_loads"] == 4  # 4,096 elements, 128 threads, 8 elements a load
    violations, good = planted["good"]
    assert not violations
    assert set(good["matrix_instructions"]) == {"HGMMA"}
    assert good["wide_load_share"] == 1
    assert good["roofline_us"] == pytest.approx(6 * 4096 / 3.35e6, abs=1e-3)


def test_a_spill_is_reported(planted) -> None:
    (violation,), report = planted["spills"]
    assert violation == f"spills {report['spill_bytes']} bytes" and report["spill_bytes"] > 0


def test_lost_wide_loads_are_reported(planted) -> None:
    (violation,), report = planted["stride of any size"]
    assert violation.startswith("narrow loads: 128-bit instructions carry 50% of the loaded bytes")
    assert report["wide_loads"] < report["loads"]


def test_missing_tensor_cores_are_reported(planted) -> None:
    assert "no tensor-core instruction" in planted["no dot"][0]


def test_the_interpreter_s_kernels_are_refused_in_one_line() -> None:
    code = (
        "from qwen3_kernels import aot, rms_norm; aot.compile_case(rms_norm.aot_cases(aot.MODELS['30B'])[0], 'sm_90')"
    )
    result = python("-c", code, env=INTERPRETED)
    assert "RuntimeError: rms_norm H=2048: kernels were imported with TRITON_INTERPRET set" in result.stderr


def report_and_table(**changes) -> tuple[dict[str, aot.Report], dict]:
    """A kernel as the table has it, but for these changes."""
    report = aot.Report(
        name="case",
        kernel="kernel",
        arch="sm_90",
        registers=64,
        spill_bytes=0,
        shared_bytes=1024,
        num_warps=4,
        blocks_per_sm=8,
        matrix_instructions={"HGMMA": 4},
        loads=8,
        wide_loads=8,
        wide_load_share=1.0,
        stores=1,
        wide_stores=1,
        bytes_moved=1,
        flops=1,
        roofline_us=1.0,
        tensor_cores=True,
        streams=True,
    )
    row = {field: getattr(report, field) for field in aot.RECORDED}
    table = {"triton": aot.triton.__version__, "kernels": {"30B/sm_90/module/case": row}}
    return {"30B/sm_90/module/case": dataclasses.replace(report, **changes)}, table


@pytest.mark.parametrize(
    "changes, violations",
    [
        ({}, []),
        ({"registers": 63, "blocks_per_sm": 9, "matrix_instructions": {"HGMMA": 2}}, []),
        ({"registers": 65}, ["registers was 64, now 65"]),
        ({"shared_bytes": 1040}, ["shared_bytes was 1024, now 1040"]),
        ({"blocks_per_sm": 7}, ["blocks_per_sm was 8, now 7"]),
        ({"wide_load_share": 0.9}, ["wide_load_share was 1.0, now 0.9"]),
        ({"matrix_instructions": {"HMMA": 4}}, ["matrix_instructions was {'HGMMA': 4}, now {'HMMA': 4}"]),
        ({"spill_bytes": 8}, ["spills 8 bytes", "spill_bytes was 0, now 8"]),
        (
            {"blocks_per_sm": 0},
            ["does not fit: 64 registers, 1024 bytes of shared memory", "blocks_per_sm was 8, now 0"],
        ),
    ],
)
def test_worse_than_the_table(changes: dict, violations: list[str]) -> None:
    results, table = report_and_table(**changes)
    assert aot.check(results, table, {"30B/sm_90/module"}) == [f"30B/sm_90/module/case: {v}" for v in violations]


def test_another_triton_s_table_is_not_compared() -> None:
    results, table = report_and_table(registers=65)
    assert not aot.check(results, table | {"triton": "0.0"}, {"30B/sm_90/module"})
    results, table = report_and_table(spill_bytes=4)
    assert len(aot.check(results, table | {"triton": "0.0"}, {"30B/sm_90/module"})) == 1


def test_cases_that_came_and_went_are_reported() -> None:
    results, table = report_and_table()
    new = {"30B/sm_90/module/new": results["30B/sm_90/module/case"]}
    assert aot.check(new, table, {"30B/sm_90/module"}) == [
        "30B/sm_90/module/new: not in the table, run --write",
        "30B/sm_90/module/case: in the table but no longer a case, run --write",
    ]
    assert not aot.check({}, table, {"235B/sm_90/module"})


def test_what_triton_rejects_is_reported() -> None:
    _, table = report_and_table()
    results = {"30B/sm_90/module/case": "CompilationError: no"}
    assert aot.check(results, table, set()) == ["30B/sm_90/module/case: does not compile: CompilationError: no"]


@pytest.mark.parametrize(
    "arch, registers, shared_bytes, num_warps, blocks",
    [
        ("sm_90", 32, 0, 4, 16),  # 64 warps
        ("sm_90", 16, 0, 1, 32),  # 32 blocks
        ("sm_90", 255, 0, 4, 2),  # 2 warps on each sub-partition
        ("sm_90", 128, 0, 8, 2),
        ("sm_90", 129, 0, 8, 1),  # 136 registers in units of 256: 3 warps where 128 let 4 in
        ("sm_90", 32, 100 << 10, 4, 2),
        ("sm_90", 32, 227 << 10, 4, 1),  # the most that a block can have
        ("sm_90", 32, (227 << 10) + 1, 4, 0),
        ("sm_80", 32, 163 << 10, 4, 1),
        ("sm_80", 32, 164 << 10, 4, 0),
        ("gfx942", 32, 0, 4, None),
    ],
)
def test_occupancy(arch: str, registers: int, shared_bytes: int, num_warps: int, blocks: int | None) -> None:
    assert aot.occupancy(arch, registers, shared_bytes, num_warps) == blocks
