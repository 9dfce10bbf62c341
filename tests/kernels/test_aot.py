"""Recorded launches, compiled code and the table of numbers, in processes that do not use the interpreter."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from qwen3_kernels.aot import table
from qwen3_kernels.aot.compile import Report, occupancy
from qwen3_kernels.aot.table import ARCHITECTURES, check
from qwen3_kernels.attention.decode import TILES as DECODE_TILES
from qwen3_kernels.attention.prefill import TILES as PREFILL_TILES
from qwen3_kernels.linear.matrix import TILES as MATRIX_TILES
from qwen3_kernels.moe.grouped import FLOAT32_TILES
from qwen3_kernels.moe.grouped import TILES as EXPERT_TILES

# As here: what was set for the interpreter must not disturb the compiler.
INTERPRETED = os.environ | {"TRITON_INTERPRET": "1"}
COMPILED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True)


def checked(*selection: str) -> dict[str, dict]:
    """The reports of `--check` on this selection, which must pass."""
    result = python("-m", "qwen3_kernels.aot", "--check", *selection, "--json", env=INTERPRETED)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_committed_table_holds(arch) -> None:
    """Every kernel, every tile, both models: no spill, tensor cores, wide loads, nothing worse than recorded."""
    reports = checked("--arch", arch)
    assert {report["arch"] for report in reports.values()} == {arch}
    assert set(reports) == {key for key in table.read()["kernels"] if key.split("/")[1] == arch}
    assert all(report["registers"] > 0 for report in reports.values())


@pytest.mark.slow
def test_the_compiled_sampler_holds() -> None:
    """By itself, for a changed sampler: seconds instead of minutes."""
    assert len(checked("--arch", "sm_90", "--model", "30B", "--module", "sampling", "--processes", "1")) == 1


@pytest.mark.slow
def test_a_part_of_the_table_is_checked_although_the_interpreter_is_on() -> None:
    reports = checked("--arch", "sm_90", "--model", "30B", "--module", "rms_norm", "--processes", "1")
    assert [key.split("/")[3] for key in reports] == [
        "rms_norm H=2048",
        "add_rms_norm H=2048",
        "rms_norm H=8192",
        "add_rms_norm H=8192",
    ]


@pytest.fixture(scope="module")
def found() -> dict:
    """What aot_program.py prints."""
    result = python(str(Path(__file__).with_name("aot_program.py")), env=COMPILED)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_arguments_are_described_as_triton_specializes_them(found) -> None:
    same = found["compared"]
    if same is None:
        pytest.skip("this Triton does not say how it specializes")
    assert isinstance(same, int), same
    assert same > 1000


def test_a_launch_is_recorded_with_its_grid_and_options(found) -> None:
    assert found["recorded_once"] == {
        "arguments": {
            "a": ["*bf16", "D"],
            "b": ["*bf16", ""],
            "c": ["i32", None],
            "d": ["i32", None],
            "e": ["i32", ""],
            "f": ["*bf16", ""],
            "CONSTANT": ["constexpr", "text"],
            "DEFAULT": ["constexpr", 7],
        },
        "options": {"num_warps": 2},
        "grid": [1, 2],
    }


def test_every_kernel_is_launched(found) -> None:
    assert {launch["kernel"] for launch in found["launched"].values()} == set(found["kernels"])


@pytest.mark.parametrize("model", ["30B", "235B"])
@pytest.mark.parametrize(
    "kernel, constant, tiles",
    [
        ("linear_matrix_kernel", "BLOCK_N", {tile.block_n for tile in MATRIX_TILES}),
        ("decode_split_kernel", "BLOCK_N", {tile.block_n for tile in DECODE_TILES.values()}),
        ("prefill_kernel", "BLOCK_M", {tile.block_m for tile in PREFILL_TILES.values()}),
        ("gate_up_kernel", "BLOCK_M", {tile.block_m for tile in (*EXPERT_TILES, *FLOAT32_TILES)}),
        ("down_kernel", "BLOCK_M", {tile.block_m for tile in (*EXPERT_TILES, *FLOAT32_TILES)}),
    ],
)
def test_every_row_of_a_tile_table_is_launched(found, model, kernel, constant, tiles) -> None:
    launches = [launch for key, launch in found["launched"].items() if key.startswith(f"{model}/")]
    assert {x["arguments"][constant][1] for x in launches if x["kernel"] == kernel} == tiles


def test_the_table_has_the_launches(found) -> None:
    rows = {tuple(key.split("/")) for key in table.read()["kernels"]}
    launches = {tuple(key.split("/")) for key in found["launched"]}
    assert rows == {(model, arch, *names) for model, *names in launches for arch in ARCHITECTURES}


def test_sound_kernels_pass(found) -> None:
    violations, small = found["planted"]["small"]
    assert not violations and small["spill_bytes"] == 0
    assert small["loads"] == small["wide_loads"] == 4  # 4,096 elements, 128 threads, 8 elements a load
    violations, good = found["planted"]["good"]
    assert not violations
    assert set(good["matrix_instructions"]) == {"HGMMA"}
    assert good["wide_load_share"] == 1


def test_a_spill_is_reported(found) -> None:
    (violation,), report = found["planted"]["spills"]
    assert violation == f"spills {report['spill_bytes']} bytes" and report["spill_bytes"] > 0


def test_lost_wide_loads_are_reported(found) -> None:
    (violation,), report = found["planted"]["stride of any size"]
    assert violation.startswith("narrow loads: 128-bit instructions carry 50% of the loaded bytes")
    assert report["wide_loads"] < report["loads"]


def test_missing_tensor_cores_are_reported(found) -> None:
    violations, report = found["planted"]["no bfloat16 in the tensor cores"]
    assert "no tensor-core instruction" in violations and report["multiplies_16_bit"]


def test_every_dot_says_its_precision() -> None:
    """Without a word Triton multiplies float32 as tf32, on a GPU alone: the interpreter does not."""
    folder, dots = Path(__file__).parents[2] / "kernels", 0
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.dot", "tl.dot_scaled"):
                dots += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("input_precision") == "'ieee'", f"{path}:{node.lineno}"
    assert dots >= 8


def test_tf32_is_reported(found) -> None:
    violations, report = found["planted"]["float32 in the tensor cores"]
    assert violations == ["multiplies float32 as tf32: HGMMA"], (violations, report["matrix_instructions"])
    violations, report = found["planted"]["float32"]
    assert not any("tf32" in violation for violation in violations)
    assert report["multiplies_32_bit"] and not report["matrix_instructions"]


def test_barriers_are_counted(found) -> None:
    """A sum over a program's warps needs one, a sum within a warp none."""
    assert found["planted"]["small"][1]["barriers"] > 0
    assert found["planted"]["one warp"][1]["barriers"] == 0


@pytest.mark.slow
def test_the_interpreter_s_kernels_are_refused_in_one_line() -> None:
    result = python("-c", "from qwen3_kernels.aot import shapes; shapes.launches('30B')", env=INTERPRETED)
    assert "RuntimeError: kernels were imported with TRITON_INTERPRET set" in result.stderr


def report_and_table(**changes) -> tuple[dict[str, Report], dict]:
    """A kernel as the table has it, but for these changes."""
    report = Report(
        kernel="kernel",
        arch="sm_90",
        programs=1,
        registers=64,
        spill_bytes=0,
        shared_bytes=1024,
        num_warps=4,
        blocks_per_sm=8,
        matrix_instructions={"HGMMA": 4},
        multiplies_16_bit=True,
        multiplies_32_bit=False,
        barriers=3,
        loads=8,
        wide_loads=8,
        wide_load_share=1.0,
        stores=1,
        wide_stores=1,
    )
    row = {field: getattr(report, field) for field in table.RECORDED}
    recorded = {"triton": triton.__version__, "kernels": {"30B/sm_90/module/case": row}}
    return {"30B/sm_90/module/case": dataclasses.replace(report, **changes)}, recorded


@pytest.mark.parametrize(
    "changes, violations",
    [
        ({}, []),
        ({"registers": 63, "blocks_per_sm": 9, "matrix_instructions": {"HGMMA": 2}, "barriers": 4}, []),
        ({"registers": 65}, ["registers was 64, now 65"]),
        ({"shared_bytes": 1040}, ["shared_bytes was 1024, now 1040"]),
        ({"blocks_per_sm": 7}, ["blocks_per_sm was 8, now 7"]),
        ({"wide_load_share": 0.9}, ["wide_load_share was 1.0, now 0.9"]),
        (
            {"matrix_instructions": {}, "multiplies_16_bit": False},
            ["matrix_instructions was {'HGMMA': 4}, now {}"],
        ),
        ({"matrix_instructions": {"HMMA": 4}}, ["matrix_instructions was {'HGMMA': 4}, now {'HMMA': 4}"]),
        (
            {"matrix_instructions": {"HGMMA": 4, "HMMA": 1}},
            ["matrix_instructions was {'HGMMA': 4}, now {'HGMMA': 4, 'HMMA': 1}"],
        ),
        ({"barriers": 2}, ["barriers was 3, now 2"]),
        ({"spill_bytes": 8}, ["spills 8 bytes", "spill_bytes was 0, now 8"]),
        (
            {"blocks_per_sm": 0},
            ["does not fit: 64 registers, 1024 bytes of shared memory", "blocks_per_sm was 8, now 0"],
        ),
    ],
)
def test_worse_than_the_table(changes: dict, violations: list[str]) -> None:
    results, recorded = report_and_table(**changes)
    assert check(results, recorded, {"30B/sm_90/module"}) == [f"30B/sm_90/module/case: {v}" for v in violations]


@pytest.mark.parametrize(
    "changes, violations",
    [
        ({"spill_bytes": 4}, ["spills 4 bytes"]),
        ({"blocks_per_sm": 1}, []),
        ({"blocks_per_sm": 0}, ["does not fit: 64 registers, 1024 bytes of shared memory"]),
        ({"matrix_instructions": {}}, ["no tensor-core instruction"]),
        ({"matrix_instructions": {}, "multiplies_16_bit": False}, []),
        (
            {"multiplies_16_bit": False, "multiplies_32_bit": True, "matrix_instructions": {"HMMA": 32}},
            ["multiplies float32 as tf32: HMMA"],
        ),
        ({"multiplies_16_bit": False, "multiplies_32_bit": True, "matrix_instructions": {}}, []),
        ({"multiplies_32_bit": True}, []),
        ({"wide_load_share": 0.7}, []),
        (
            {"wide_load_share": 0.69, "wide_loads": 6},
            [
                "narrow loads: 128-bit instructions carry 69% of the loaded bytes (6 of 8 instructions), "
                "at least 70% wanted"
            ],
        ),
        ({"wide_load_share": 0.0, "kernel": "route_kernel"}, []),
        ({"wide_load_share": 0.0, "arch": "gfx942"}, []),
    ],
)
def test_what_no_kernel_may_do(changes: dict, violations: list[str]) -> None:
    """Whatever the table says, on either side of each bound."""
    (report,) = report_and_table(**changes)[0].values()
    assert table.absolute_violations(report) == violations


def test_every_kernel_with_matrix_instructions_is_in_the_table_in_float32_without_any() -> None:
    """float32 is not rounded to tf32 in the tensor cores."""
    rows = table.read()["kernels"]
    multiplying = {key.split("/")[3].split()[0] for key, row in rows.items() if row["matrix_instructions"]}
    float32 = {key.split("/")[3].split()[0]: row for key, row in rows.items() if " float32 " in key}
    assert len(multiplying) == 6 and multiplying <= {*float32}
    assert not any(row["matrix_instructions"] for key, row in rows.items() if " float32 " in key)


def test_the_warps_of_the_sampler_wait_for_each_other() -> None:
    """Without a barrier between them its passes over shared memory race: so many, and no fewer, as the table says."""
    rows = {key: row["barriers"] for key, row in table.read()["kernels"].items() if "/sample " in key}
    assert len(rows) == 2 * len(ARCHITECTURES) and min(rows.values()) > 10


def test_another_triton_s_table_is_not_compared() -> None:
    results, recorded = report_and_table(registers=65)
    assert not check(results, recorded | {"triton": "0.0"}, {"30B/sm_90/module"})
    results, recorded = report_and_table(spill_bytes=4)
    assert len(check(results, recorded | {"triton": "0.0"}, {"30B/sm_90/module"})) == 1


def test_cases_that_came_and_went_are_reported() -> None:
    results, recorded = report_and_table()
    new = {"30B/sm_90/module/new": results["30B/sm_90/module/case"]}
    assert check(new, recorded, {"30B/sm_90/module"}) == [
        "30B/sm_90/module/new: not in the table, run --write",
        "30B/sm_90/module/case: in the table but no longer launched, run --write",
    ]
    assert not check({}, recorded, {"235B/sm_90/module"})


def test_what_triton_rejects_is_reported() -> None:
    _, recorded = report_and_table()
    results = {"30B/sm_90/module/case": "CompilationError: no"}
    assert check(results, recorded, set()) == ["30B/sm_90/module/case: does not compile: CompilationError: no"]


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
    assert occupancy(arch, registers, shared_bytes, num_warps) == blocks
