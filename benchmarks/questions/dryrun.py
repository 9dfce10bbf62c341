"""Does the engine hold on a GPU that is not here? All of it runs on tensors without memory, every kernel is compiled.

The real engine answers prompts of every kind on a card that does not exist: shapes, devices and memory are real,
numbers are not computed. Triton compiles each launch as it would there. It fails on errors, on what the card does not
allow (grids, shared memory, 32-bit offsets, waits and allocations in captures, pointers to freed memory, launches on
another device), on spills, on memory beyond memory_utilization, on whatever is compiled or recorded after load, and on
more launches, copies, waits or variants than dryrun/limits.py allows. Each card is driven in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qwen3.config.device import resolve_dtype
from qwen3.config.hf import model_config
from qwen3.errors import Qwen3Error
from qwen3.load.resolve import TINY

from ..common import REPOSITORY, Answer, config_folder
from ..dryrun.cards import CARDS

RUNS = ("benchmarks.dryrun.__main__",)
# Where another environment finds this checkout.
PATHS = (str(REPOSITORY), str(REPOSITORY / "types"))
# What an engine of the dry run is made with, and the options of the question that say so.
OPTIONS = ("device", "dtype", "layers", "max_num_seqs", "logits", "expert_stats", "short", "second_device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", nargs="+", default=["Qwen3-30B-A3B"], metavar="CONFIG", help="shapes of configs/, folders, or tiny"
    )
    parser.add_argument("--cards", nargs="+", type=int, choices=CARDS, default=[90], help="compute capabilities")
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="fewer layers (default: all that fit)")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="of each card, in 1e9 bytes (default: the card's own)"
    )
    parser.add_argument("--device", default="cuda:0", choices=("cuda:0", "cuda:1"), help="where the model is")
    parser.add_argument("--second-device", action="store_true", help="then another model on the other device")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--logits", nargs="*", type=int, default=[40000], metavar="N", help="lengths of texts to score")
    parser.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="most sequences that run together")
    parser.add_argument("--expert-stats", action="store_true", help="count which experts are hit")
    parser.add_argument("--short", action="store_true", help="the first sizes of graphs only, one of each kind of step")
    parser.add_argument("--cold", action="store_true", help="use an empty cache of kernels, to measure a cold start")
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="of another environment, for its PyTorch and Triton"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write everything that was found, variants included"
    )


def run(args: argparse.Namespace) -> Answer:
    for name in ("layers", "memory", "max_num_seqs"):
        if (getattr(args, name) or 0) < 0:
            raise Qwen3Error(f"--{name.replace('_', '-')} {getattr(args, name)} is negative")
    folders = {model: model_folder(model) for model in args.model}
    for folder in folders.values():
        resolve_dtype(args.dtype, model_config(folder))
    figures, found, wrong = [], [], 0
    for model, folder in folders.items():
        for arch in args.cards:
            result = dry_run(args, folder, arch)
            found.append({"model": model, "card": f"sm_{arch}"} | result)
            figures += summaries(model, result)
            wrong += len(result["breaches"])
    if args.json:
        try:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise Qwen3Error(f"--json {args.json}: cannot be written ({error.strerror})") from None
    print(f"{wrong} breaches on {len(found)} cards and models")
    settings = {name: getattr(args, name) for name in ("model", "cards", "memory", "cold", *OPTIONS)}
    return Answer(settings | {"device": "cpu", "on": args.device}, figures, within=not wrong)


def model_folder(name: str) -> Path:
    """A folder, the embedded model, or a shape of configs/; only "tiny" has weights."""
    if name == "tiny":
        return TINY
    return Path(name).resolve() if (Path(name) / "config.json").is_file() else config_folder(name)


def dry_run(args: argparse.Namespace, folder: Path, arch: int) -> dict:
    """What one process says of one model on one card."""
    given = {name: getattr(args, name) for name in OPTIONS}
    given["memory"] = int((args.memory or CARDS[arch].memory) * 1e9)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "TRITON_DEFAULT_FP_FUSION": "1",
            "PYTHONPATH": os.pathsep.join([*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        environment.pop("TRITON_INTERPRET", None)
        if args.cold:
            environment["TRITON_CACHE_DIR"] = scratch
        command = [args.python, "-m", "benchmarks.dryrun", str(folder), str(arch), json.dumps(given), str(out)]
        try:
            code = subprocess.run(command, cwd=REPOSITORY, env=environment).returncode
        except OSError as error:
            raise Qwen3Error(f"--python {args.python}: cannot be run ({error.strerror})") from None
        if not out.is_file():
            raise Qwen3Error(f"the dry run of {folder} on sm_{arch} broke off with exit code {code}")
        return json.loads(out.read_text(encoding="utf-8"))


def summaries(model: str, result: dict) -> list[dict]:
    """A row of the record for each engine; one without numbers where none was driven."""
    versions = {name: result[name] for name in ("torch", "triton")}
    runs = result["runs"] or [{}]
    rows = []
    for run in runs:
        row = (
            {"model": model} | versions | {key: value for key, value in run.items() if key not in ("variants", "steps")}
        )
        row["layer_launches"] = {where: len(names) for where, names in run.get("layer_launches", {}).items()}
        rows.append(row | {"variants": len(run.get("variants", []))})
    rows[0] |= {"breaches": result["breaches"], "cpu_seconds": result["cpu_seconds"]}
    return rows
