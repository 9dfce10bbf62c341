"""How long from a file to the first token, and how much memory does that take, beside transformers?

A checkpoint of about 1 GB in one file. Each start is a new process that imports its libraries, then, timed, loads the
weights and computes the first token of a prompt. Both sides alternate and must give the same token. Cold: the file is
evicted from the operating system's cache before each start, and the bytes fetched from storage are recorded. Warm: the
file is in that cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from qwen3.config.device import resolve_device
from qwen3.config.hf import model_config
from qwen3.errors import Qwen3Error

from ..common import REPOSITORY, Answer, Timing, milliseconds, side_by_side
from ..random_checkpoint import random_checkpoint

SIDES = ("ours", "theirs")
RUNS = ("benchmarks.questions.load_once",)
# A start that fetched a smaller share of the file from storage was not cold.
COLD_SHARE = 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="small", help="a shape of configs/")
    parser.add_argument("--layers", type=int, default=5, help="layers of it")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes, cold and warm")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> Answer:
    if not Path("/proc/self/statm").is_file():
        raise Qwen3Error("load reads the memory of processes from /proc, which is not here: run it on Linux")
    device = resolve_device(args.device)
    figures = []
    with random_checkpoint(args.shape, torch.bfloat16, device, num_hidden_layers=args.layers) as folder:
        config, size = model_config(folder), (folder / "model.safetensors").stat().st_size
        for state in ("cold", "warm"):
            row = starts(folder, device, state, args.rounds)
            figures.append(row)
            print(
                f"{row['cache']}: first token after {row['ours_ms']:,.0f} ms, memory added "
                f"{row['ours_peak_bytes'] / 1e6:,.0f} MB; transformers {row['theirs_ms']:,.0f} ms, "
                f"{row['ratio']:.2f} times as long, {row['theirs_peak_bytes'] / 1e6:,.0f} MB"
            )
    largest = config.vocab_size * config.hidden_size * torch.bfloat16.itemsize
    settings = {"shape": args.shape, "layers": args.layers, "rounds": args.rounds, "device": str(device)}
    settings |= {"dtype": "bfloat16", "checkpoint_bytes": size, "largest_tensor_bytes": largest}
    return Answer(settings, figures)


def starts(folder: Path, device: torch.device, state: str, rounds: int) -> dict:
    """One row; its cache is "cold", "warm", or "unknown" if a cold start did not fetch the file from storage."""
    measured: dict[str, list[dict]] = {side: [] for side in SIDES}

    def start(side: str) -> float:
        if state == "cold":
            drop_from_cache(folder)
        command = [sys.executable, "-m", "benchmarks.questions.load_once", side, str(folder), str(device)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode:
            raise Qwen3Error(f"{side} could not load {folder}: {done.stderr.strip().splitlines()[-1]}")
        measured[side].append(json.loads(done.stdout))
        return measured[side][-1]["total_seconds"]

    for side in SIDES:
        # The first start brings Python's files into the cache, and in the warm state the checkpoint.
        start(side)
        measured[side].clear()
    times = side_by_side({side: lambda side=side: start(side) for side in SIDES}, rounds)
    if len(tokens := {run["token"] for runs in measured.values() for run in runs}) > 1:
        raise RuntimeError(f"the first tokens differ: {tokens}")
    size = (folder / "model.safetensors").stat().st_size
    row: dict = {"cache": cache_state(state, measured, size), "ratio": times["theirs"].median / times["ours"].median}
    for side in SIDES:
        row |= side_figures(side, times[side], measured[side])
    return row


def cache_state(wanted: str, measured: dict[str, list[dict]], size: int) -> str:
    """`wanted`, or "unknown" if a cold start is wanted and not every process fetched the file from storage."""
    fetched = [run["storage_bytes"] for runs in measured.values() for run in runs]
    cold = None not in fetched and min(fetched) >= COLD_SHARE * size
    return wanted if wanted == "warm" or cold else "unknown"


def side_figures(side: str, timing: Timing, runs: list[dict]) -> dict:
    load = statistics.median(run["load_seconds"] for run in runs)
    fetched = [run["storage_bytes"] for run in runs]
    return milliseconds(side, timing) | {
        f"{side}_load_ms": load * 1e3,
        f"{side}_peak_bytes": max(run["peak_bytes"] for run in runs),
        f"{side}_storage_bytes": None if None in fetched else statistics.median(fetched),
    }


def drop_from_cache(folder: Path) -> None:
    """Evicts the weights from the operating system's cache, if it has a call for that."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
