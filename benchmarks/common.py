"""What every benchmark needs: medians taken side by side, the machine's name, a place for the result."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def side_by_side(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median that each run returns; the runs take turns, so that a slow moment of the machine hits all of them."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured[name].append(run())
    return {name: statistics.median(values) for name, values in measured.items()}


def copy_bandwidth() -> float:
    """Bytes read per second by a large copy on this CPU, the median of nine."""
    source = torch.ones(2**26)
    target = torch.ones(2**26)
    return source.nbytes / side_by_side({"copy": lambda: seconds(lambda: target.copy_(source))}, 9)["copy"]


def machine() -> dict:
    """The CPU and the versions that made a result."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}


def save(name: str, result: dict) -> None:
    """Writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result | {"machine": machine()}, indent=2) + "\n")
    print(f"written to {path}")
