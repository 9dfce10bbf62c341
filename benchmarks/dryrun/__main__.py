"""One dry run, in a process that then believes in its card: `python -m benchmarks.dryrun FOLDER CARD OPTIONS OUT`.

OPTIONS: JSON of memory (bytes), second_device and the fields of scenario.Options. OUT: a file for the result, in JSON.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import triton

from . import launches, stand_in
from .cards import CARDS
from .report import describe, print_report
from .scenario import Options, drive, fitting
from .world import World


def main(folder: Path, arch: int, given: dict, out: Path) -> None:
    """Drives one engine, and then another on the other device if `second_device` says so; writes what they did."""
    memory, second = given.pop("memory"), given.pop("second_device")
    world = World(CARDS[arch], memory)
    stand_in.enter(world)
    variants = launches.intercept(world)
    options = Options(**given | {"logits": tuple(given["logits"])})
    runs = [options]
    if second:
        other = "cuda:0" if options.device == "cuda:1" else "cuda:1"
        runs.append(options._replace(device=other, short=True))
    results, engines = [], []  # engines stay: what they hold counts for the next one
    with tempfile.TemporaryDirectory() as scratch:
        fitted = fitting(folder, Path(scratch), options.layers, options.dtype, memory)
        for run in runs:
            first_step = len(world.steps)
            try:
                driven = drive(world, fitted, run)
            except Exception as error:
                world.fails(error)
                break
            engines.append(driven)
            results.append(describe(world, driven, run, world.steps[first_step:], variants))
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    result = versions | {"runs": results, "breaches": world.lines(), "cpu_seconds": round(sum(os.times()[:4]), 1)}
    print_report(folder.name, result)
    out.write_text(json.dumps(result, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
