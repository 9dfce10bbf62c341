"""Compile every kernel for GPUs that are not here and read what they would run: `python -m qwen3_kernels.aot [--check]`.

No driver is needed: Triton ships the assembler and the disassembler. Each kernel module lists its tile table at real
shapes in `aot_cases(model)`. `--write` records the numbers in aot_table.json; `--check` exits with 1 where a kernel
spills, does not fit on a multiprocessor, lacks tensor-core instructions or wide loads that its case asks for, or is
worse than the table (compared under the Triton version that wrote it; another assembler counts differently).
"""

import argparse
import importlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .aot_case import Case

MODULES = (
    "rms_norm", "rope", "swiglu", "attention_decode", "attention_prefill", "moe_route", "moe_small", "moe_experts",
    "linear", "sampling",
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
TABLE = Path(__file__).with_name("aot_table.json")

H100_BYTES_PER_SECOND = 3.35e12
H100_FLOPS = 989e12  # dense bfloat16

# Least share of the loaded bytes that 128-bit instructions carry in a kernel that streams: the rest are page ids and
# the like. One of two streams gone narrow makes it a half.
WIDE_SHARE = 0.7


@dataclass(frozen=True)
class Model:
    """The sizes that decide a kernel's shapes."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    vocab_size: int


MODELS = {
    "30B": Model(2048, 32, 4, 128, 128, 8, 768, 151936),
    "235B": Model(4096, 64, 4, 128, 128, 8, 1536, 151936),
}


# Shared memory of a multiprocessor, KiB. All of these hold 64 warps, 32 blocks and 65,536 registers.
SHARED_KIB = {"sm_80": 164, "sm_90": 228, "sm_100": 228}


@dataclass(frozen=True)
class Report:
    """One compiled case. Instruction counts are static: how often they stand in the code, not how often they run."""

    name: str
    kernel: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    blocks_per_sm: int | None  # None where it is not modelled (AMD)
    matrix_instructions: dict[str, int]
    loads: int
    wide_loads: int
    wide_load_share: float  # of the bytes that all global loads carry
    stores: int
    wide_stores: int
    bytes_moved: int
    flops: int
    roofline_us: float
    tensor_cores: bool
    streams: bool


def occupancy(arch: str, registers: int, shared_bytes: int, num_warps: int) -> int | None:
    """Blocks that one multiprocessor holds; 0 when a single one is too large, None when `arch` is not known."""
    if arch not in SHARED_KIB:
        return None
    # Each of the four sub-partitions has 16,384 registers and hands them to a warp in units of 256; each block takes
    # 1 KiB of shared memory for the system.
    warps = min(64, 4 * (16384 // (256 * math.ceil(registers * 32 / 256))))
    return min(32, warps // num_warps, (SHARED_KIB[arch] << 10) // (shared_bytes + 1024))


class Code(NamedTuple):
    """What is read from a compiled kernel; loads and stores count global memory instructions by their width in bits."""

    registers: int
    spill_bytes: int
    loads: Counter[int]
    stores: Counter[int]
    matrix: Counter[str]


_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
_SASS_BITS = {"256": 256, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
_SASS_MATRIX = re.compile(r"[HQI]G?MMA|UTC\w*MMA")


def _read_cubin(cubin: bytes) -> Code:
    """An NVIDIA binary, disassembled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = (triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    local, loads, stores, matrix = Counter(), Counter(), Counter(), Counter()
    kinds = {"LDG": loads, "LDGSTS": loads, "STG": stores, "LDL": local, "STL": local}
    for instruction in _SASS.findall(text):
        opcode, *modifiers = instruction.split(".")
        if opcode in kinds:
            kinds[opcode][next((_SASS_BITS[m] for m in modifiers if m in _SASS_BITS), 32)] += 1
        elif _SASS_MATRIX.fullmatch(opcode):
            matrix[opcode] += 1
    return Code(int(re.search(r"REG:(\d+)", text)[1]), _bytes(local), loads, stores, matrix)


_GCN_MEMORY = re.compile(r"^\s+(?:global|buffer)_(load|store)_(\w+?)(?:_d16\w*|_lds)?\b", re.M)
_GCN_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "ushort": 16, "short": 16, "ubyte": 8, "byte": 8}


def _read_amdgcn(text: str) -> Code:
    """AMD assembly, with the numbers of its metadata."""
    registers, spilled = (int(re.search(rf"\.vgpr_{n}:\s*(\d+)", text)[1]) for n in ("count", "spill_count"))
    widths = {"load": Counter(), "store": Counter()}
    for kind, width in _GCN_MEMORY.findall(text):
        widths[kind][_GCN_BITS.get(width, 32)] += 1
    matrix = Counter({"MFMA": n}) if (n := len(re.findall(r"^\s+v_mfma", text, re.M))) else Counter()
    return Code(registers, 4 * spilled, widths["load"], widths["store"], matrix)


def _bytes(widths: Counter[int], at_least: int = 0) -> int:
    return sum(bits * count for bits, count in widths.items() if bits >= at_least) // 8


def compile_case(case: Case, arch: str) -> Report:
    """Compile one case for "sm_90" and its like, or "gfx942", as a launch would specialise it.

    Raises RuntimeError when the kernel was defined for the interpreter, ValueError when the case does not name exactly
    the kernel's parameters, and what Triton raises when it rejects the kernel.
    """
    function = case.kernel
    if not re.fullmatch(r"sm_\d+|gfx\w+", arch):
        raise ValueError(f"arch must be like sm_90 or gfx942, got {arch!r}")
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError(f"{case.name}: kernels were imported with TRITON_INTERPRET set, unset it to compile them")
    names = function.arg_names
    if set(names) != set(case.arguments):
        raise ValueError(f"{case.name}: arguments {sorted(set(names) ^ set(case.arguments))} are missing or unknown")
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        value = case.arguments[parameter.name]
        if parameter.is_constexpr or not isinstance(value, str):
            signature[parameter.name], constants[index,] = "constexpr", value
        else:
            signature[parameter.name], _, divisor = value.partition(":")
            if divisor:
                attributes[index,] = [["tt.divisibility", int(divisor)]]
    nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    kernel = triton.compile(ASTSource(function, signature, constants, attributes), target=target, options=options)

    code = _read_cubin(kernel.asm["cubin"]) if nvidia else _read_amdgcn(kernel.asm["amdgcn"])
    return Report(
        name=case.name,
        kernel=function.__name__,
        arch=arch,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=kernel.metadata.shared,
        num_warps=case.num_warps,
        blocks_per_sm=occupancy(arch, code.registers, kernel.metadata.shared, case.num_warps),
        matrix_instructions=dict(code.matrix),
        loads=code.loads.total(),
        wide_loads=sum(count for bits, count in code.loads.items() if bits >= 128),
        wide_load_share=round(_bytes(code.loads, 128) / max(1, _bytes(code.loads)), 3),
        stores=code.stores.total(),
        wide_stores=sum(count for bits, count in code.stores.items() if bits >= 128),
        bytes_moved=case.bytes_moved,
        flops=case.flops,
        roofline_us=round(1e6 * max(case.bytes_moved / H100_BYTES_PER_SECOND, case.flops / H100_FLOPS), 3),
        tensor_cores=case.tensor_cores,
        streams=case.streams,
    )


def absolute_violations(report: Report) -> list[str]:
    """What no kernel may do, whatever the table says."""
    violations = []
    if report.spill_bytes:
        violations.append(f"spills {report.spill_bytes} bytes")
    if report.blocks_per_sm == 0:
        violations.append(f"does not fit: {report.registers} registers, {report.shared_bytes} bytes of shared memory")
    if report.tensor_cores and not report.matrix_instructions:
        violations.append("no tensor-core instruction")
    # The tiles are NVIDIA's; AMD's wider warp has fewer elements for each thread.
    if report.streams and report.arch.startswith("sm_") and report.wide_load_share < WIDE_SHARE:
        share = f"{report.wide_load_share:.0%} of the loaded bytes ({report.wide_loads} of {report.loads} instructions)"
        violations.append(f"narrow loads: 128-bit instructions carry {share}, at least {WIDE_SHARE:.0%} wanted")
    return violations


# What the table keeps of a report: fewer is better of the first three, more of the next two.
RECORDED = ("registers", "spill_bytes", "shared_bytes", "blocks_per_sm", "wide_load_share", "matrix_instructions")


def regressions(report: Report, row: dict) -> list[str]:
    """Where a report is worse than its row of the table."""
    now = {field: getattr(report, field) for field in RECORDED}
    worse = [field for field in RECORDED[:3] if now[field] > row[field]]
    worse += [field for field in RECORDED[3:5] if now[field] < row[field]]
    # Which instruction matters, not how many: an unrolled loop has more of the same.
    worse += ["matrix_instructions"] if set(row["matrix_instructions"]) - set(now["matrix_instructions"]) else []
    return [f"{field} was {row[field]}, now {now[field]}" for field in worse]


def _cases(model: str, module: str) -> list[Case]:
    return importlib.import_module(f"{__package__}.{module}").aot_cases(MODELS[model])


class Job(NamedTuple):
    """One case to compile, by names and a number: a kernel cannot be sent to another process."""

    model: str
    arch: str
    module: str
    index: int

    def run(self) -> Report | str:
        """The report, or why there is none."""
        try:
            with redirect_stdout(io.StringIO()):  # Triton prints the whole PTX that the assembler rejects
                return compile_case(_cases(self.model, self.module)[self.index], self.arch)
        except Exception as error:  # whatever Triton and the assembler raise
            text = " ".join(str(error).split())
            return f"{type(error).__name__}: {text if len(text) < 400 else f'{text[:200]} ... {text[-200:]}'}"


def jobs(models: Iterable[str], archs: Iterable[str], modules: Iterable[str]) -> dict[str, Job]:
    """Every case by its key in the table, "model/arch/module/name"."""
    found: dict[str, Job] = {}
    for module, model, arch in product(modules, models, archs):
        for index, case in enumerate(_cases(model, module)):
            key = f"{model}/{arch}/{module}/{case.name}"
            if key in found:
                raise ValueError(f"two cases are named {key}")
            found[key] = Job(model, arch, module, index)
    return found


def check(results: dict[str, Report | str], table: dict, selected: Iterable[str]) -> list[str]:
    """One line for each violation in these results, which are all there is for the `selected` "model/arch/module"."""
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
    return violations + [f"{key}: in the table but no longer a case, run --write" for key in gone]


def print_table(results: dict[str, Report | str]) -> None:
    lines = [
        [
            "kernel",
            "regs",
            "spill",
            "smem",
            "warps",
            "blocks",
            "mma",
            "loads",
            "wide",
            "stores",
            "wide",
            "MB",
            "GFLOP",
            "us",
        ]
    ]
    for key, r in results.items():
        if isinstance(r, str):
            continue
        mma = "+".join(f"{count} {opcode}" for opcode, count in r.matrix_instructions.items()) or "-"
        blocks = "-" if r.blocks_per_sm is None else r.blocks_per_sm
        sizes = (f"{r.bytes_moved / 1e6:.3f}", f"{r.flops / 1e9:.3f}", f"{r.roofline_us:.2f}")
        numbers = (r.registers, r.spill_bytes, r.shared_bytes, r.num_warps, blocks, mma)
        lines.append([key, *map(str, (*numbers, r.loads, r.wide_loads, r.stores, r.wide_stores)), *sizes])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *rest in lines:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:])), sep="  ")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qwen3_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="sm_80, sm_90, sm_100, gfx942, ...")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--module", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="exit with 1 and a line for each violation")
    action.add_argument("--write", action="store_true", help="record the numbers in aot_table.json")
    options = parser.parse_args(arguments)
    selection = options.model, options.arch, options.module
    if options.write and selection != (list(MODELS), list(ARCHITECTURES), list(MODULES)):
        parser.error("--write records the whole table: leave out --arch, --model and --module")

    todo = jobs(*selection)
    with ProcessPoolExecutor(options.processes) as pool:
        results = dict(zip(todo, pool.map(Job.run, todo.values())))
    if options.json:
        rows = {key: asdict(r) if isinstance(r, Report) else {"error": r} for key, r in results.items()}
        print(json.dumps(rows, indent=1))
    else:
        print_table(results)
    failures = [f"{key}: does not compile: {result}" for key, result in results.items() if isinstance(result, str)]
    if options.write and not failures:
        rows = {key: {field: getattr(report, field) for field in RECORDED} for key, report in results.items()}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        TABLE.write_text(f'{{\n "triton": "{triton.__version__}",\n "kernels": {{\n{lines}\n }}\n}}\n')
    if options.check:
        table = json.loads(TABLE.read_text())
        if table["triton"] != triton.__version__:
            versions = f"the table is of triton {table['triton']}, this is {triton.__version__}"
            print(f"not compared with the table: {versions}", file=sys.stderr)
        failures = check(results, table, {"/".join(names) for names in product(*selection)})
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    # Said here because Triton 3.9 warns of a default that 3.10 will change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    # Kernels that were defined for the interpreter cannot be compiled: start again without it.
    if os.environ.pop("TRITON_INTERPRET", None):
        os.execv(sys.executable, [sys.executable, "-m", "qwen3_kernels.aot", *sys.argv[1:]])
    sys.exit(main())
