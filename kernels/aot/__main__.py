"""Compile every kernel without a GPU and report on the code: `python -m qwen3_kernels.aot [--check]`.

Each kernel is compiled as the ops launch it at the shapes of real models (shapes.py). `--write` records the numbers in
table.json. `--check` exits with 1 where a kernel spills, does not fit on a multiprocessor, multiplies 16-bit tiles
without tensor cores or float32 tiles with them, streams with narrow loads, or is worse than the table (compared under
the Triton version that wrote it; another assembler counts differently).
"""

import argparse
import io
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import product
from typing import NamedTuple

import triton

from . import table
from .compile import Report, compile_launch
from .shapes import MODELS, launches, modules
from .table import ARCHITECTURES


class Job(NamedTuple):
    """One launch to compile, by names: a kernel cannot be sent to another process."""

    model: str
    arch: str
    launch: str  # "module/name"

    def run(self) -> Report | str:
        """Returns the report, or why there is none."""
        try:
            with redirect_stdout(io.StringIO()):  # Triton prints the whole PTX that the assembler rejects
                return compile_launch(launches(self.model)[self.launch], self.arch)
        except Exception as error:  # whatever Triton and the assembler raise
            text = " ".join(str(error).split())
            return f"{type(error).__name__}: {text if len(text) < 400 else f'{text[:200]} ... {text[-200:]}'}"


def compile_all(models: list[str], archs: list[str], only: list[str], processes: int) -> dict[str, Report | str]:
    """Compiles every launch of these modules; keys are "model/arch/module/name", as in the table."""
    jobs = [
        Job(model, arch, launch)
        for model, arch in product(models, archs)
        for launch in launches(model)
        if launch.split("/")[0] in only
    ]
    with ProcessPoolExecutor(processes) as pool:
        return dict(zip(map("/".join, jobs), pool.map(Job.run, jobs)))


def print_table(results: dict[str, Report | str]) -> None:
    """Prints one line for each report."""
    header = "kernel programs regs spill smem warps blocks bars mma loads wide stores wide"
    lines = [header.split()]
    for key, r in results.items():
        if isinstance(r, str):
            continue
        mma = "+".join(f"{count} {opcode}" for opcode, count in r.matrix_instructions.items()) or "-"
        blocks = "-" if r.blocks_per_sm is None else r.blocks_per_sm
        numbers = (r.programs, r.registers, r.spill_bytes, r.shared_bytes, r.num_warps, blocks, r.barriers, mma)
        lines.append([key, *map(str, (*numbers, r.loads, r.wide_loads, r.stores, r.wide_stores))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *rest in lines:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:])), sep="  ")


def main(arguments: list[str] | None = None) -> int:
    every_module = modules()
    parser = argparse.ArgumentParser(prog="python -m qwen3_kernels.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--arch",
        nargs="+",
        default=list(ARCHITECTURES),
        help="sm_80, sm_90, sm_100, gfx942, ... (default: the first three)",
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="whose shapes (default: both)")
    parser.add_argument(
        "--module",
        nargs="+",
        choices=every_module,
        default=every_module,
        metavar="MODULE",
        help=f"of {', '.join(every_module)} (default: all)",
    )
    parser.add_argument("--processes", type=int, default=2, help="that compile at a time (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="exit with 1 and a line for each violation")
    action.add_argument("--write", action="store_true", help="record the numbers in table.json")
    options = parser.parse_args(arguments)
    selection = options.model, options.arch, options.module
    if options.write and selection != (list(MODELS), list(ARCHITECTURES), every_module):
        parser.error("--write records the whole table: leave out --arch, --model and --module")

    results = compile_all(*selection, options.processes)
    reports = {key: report for key, report in results.items() if isinstance(report, Report)}
    failures = [f"{key}: does not compile: {result}" for key, result in results.items() if isinstance(result, str)]
    if options.json:
        rows = {key: asdict(r) if isinstance(r, Report) else {"error": r} for key, r in results.items()}
        print(json.dumps(rows, indent=1))
    else:
        print_table(results)
    if options.write and not failures:
        table.write(reports)
    if options.check:
        recorded = table.read()
        if recorded["triton"] != triton.__version__:
            versions = f"the table is of triton {recorded['triton']}, this is {triton.__version__}"
            print(f"not compared with the table: {versions}", file=sys.stderr)
        failures = table.check(results, recorded, {"/".join(names) for names in product(*selection)})
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
