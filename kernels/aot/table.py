"""The recorded numbers of every compiled kernel (table.json), and what counts as a violation."""

import json
from collections.abc import Iterable
from pathlib import Path

import triton

from .compile import Report
from .shapes import NARROW_KERNELS

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
TABLE = Path(__file__).with_name("table.json")

# The table keeps these fields of a report. A barrier that is gone may be a race, which no test without a GPU sees.
FEWER_IS_BETTER, MORE_IS_BETTER = ("registers", "spill_bytes", "shared_bytes"), ("blocks_per_sm", "wide_load_share")
RECORDED = (*FEWER_IS_BETTER, *MORE_IS_BETTER, "barriers", "matrix_instructions")

# Least share of the loaded bytes that 128-bit instructions carry in a kernel that streams: the rest are block ids and
# the like. One of two streams gone narrow makes it a half.
WIDE_SHARE = 0.7


def read() -> dict:
    """Reads {"triton": version, "kernels": {"model/arch/module/name": row}}."""
    return json.loads(TABLE.read_text())


def write(results: dict[str, Report]) -> None:
    """Records these results, one row a line."""
    rows = {key: {field: getattr(report, field) for field in RECORDED} for key, report in results.items()}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    TABLE.write_text(f'{{\n "triton": "{triton.__version__}",\n "kernels": {{\n{lines}\n }}\n}}\n')


def absolute_violations(report: Report) -> list[str]:
    """Says what no kernel may do, whatever the table says."""
    violations = []
    if report.spill_bytes:
        violations.append(f"spills {report.spill_bytes} bytes")
    if report.blocks_per_sm == 0:
        violations.append(f"does not fit: {report.registers} registers, {report.shared_bytes} bytes of shared memory")
    if report.multiplies_16_bit and not report.matrix_instructions:
        violations.append("no tensor-core instruction")
    if report.multiplies_32_bit and not report.multiplies_16_bit and report.matrix_instructions:
        violations.append(f"multiplies float32 as tf32: {', '.join(report.matrix_instructions)}")
    # The tiles are NVIDIA's; AMD's wider warp has fewer elements for each thread.
    streams = report.kernel not in NARROW_KERNELS and report.arch.startswith("sm_")
    if streams and report.wide_load_share < WIDE_SHARE:
        share = f"{report.wide_load_share:.0%} of the loaded bytes ({report.wide_loads} of {report.loads} instructions)"
        violations.append(f"narrow loads: 128-bit instructions carry {share}, at least {WIDE_SHARE:.0%} wanted")
    return violations


def regressions(report: Report, row: dict) -> list[str]:
    """Says where a report is worse than its row of the table."""
    now = {field: getattr(report, field) for field in RECORDED}
    worse = [field for field in FEWER_IS_BETTER if now[field] > row[field]]
    worse += [field for field in (*MORE_IS_BETTER, "barriers") if now[field] < row[field]]
    # Which instruction matters, not how many: an unrolled loop has more of the same. A new one is another precision or
    # another way to multiply, and is read before it is recorded.
    worse += ["matrix_instructions"] if set(row["matrix_instructions"]) != set(now["matrix_instructions"]) else []
    return [f"{field} was {row[field]}, now {now[field]}" for field in worse]


def check(results: dict[str, Report | str], table: dict, selected: Iterable[str]) -> list[str]:
    """Returns a line for each violation in these results, all there are for the `selected` "model/arch/module"."""
    recorded = table["kernels"] if table["triton"] == triton.__version__ else {}
    violations = []
    for key, result in results.items():
        if isinstance(result, str):
            violations.append(f"{key}: does not compile: {result}")
            continue
        found = absolute_violations(result)
        if key in recorded:
            found += regressions(result, recorded[key])
        elif recorded and result.arch in ARCHITECTURES:
            found.append("not in the table, run --write")
        violations += [f"{key}: {violation}" for violation in found]
    gone = [key for key in recorded if key not in results and "/".join(key.split("/")[:3]) in selected]
    return violations + [f"{key}: in the table but no longer launched, run --write" for key in gone]
