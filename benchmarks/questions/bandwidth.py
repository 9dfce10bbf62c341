"""How many bytes a second does a large copy move? The other records give their shares of it.

Measured once for a machine: every question takes it from the record in its output folder, where the record is of the
same processor, number of threads and version of PyTorch, and measures and records it otherwise.
"""

import argparse
from pathlib import Path

import torch

from qwen3.config.device import resolve_device
from qwen3.measure.roofline import copy_bandwidth

from ..common import RESULTS, Answer, Timing, load_records, machine, save

# What makes two measurements comparable.
SAME = ("cpu", "gpu", "threads", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measurements, each the median of nine copies")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> Answer:
    answer = measured(resolve_device(args.device), args.rounds)
    print(f"{answer.settings['device']}: {answer.figures[0]['bytes_per_second'] / 1e9:.1f} GB/s")
    return answer


def measured(device: torch.device, rounds: int = 5) -> Answer:
    speed = Timing.of([copy_bandwidth(device) for _ in range(rounds)])
    row = {"bytes_per_second": speed.median, "min_bytes_per_second": speed.low, "max_bytes_per_second": speed.high}
    return Answer({"device": str(device), "rounds": rounds}, [row])


def bytes_per_second(device: torch.device, folder: Path | None = None) -> float:
    """The bandwidth that the records in `folder` are compared with, from its record."""
    folder = folder or RESULTS
    name = "bandwidth.cuda" if device.type == "cuda" else "bandwidth"
    here, record = machine(), load_records(folder, name).get(name)
    if record is None or any(record["machine"][key] != here[key] for key in SAME):
        question = (__doc__ or "").splitlines()[0]
        save("bandwidth", question, measured(device), folder, [__name__])
        record = load_records(folder, name)[name]
    return record["figures"][0]["bytes_per_second"]
