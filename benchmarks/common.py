"""What every benchmark needs: timings taken side by side, the machine's name, and a record of the result."""

import gc
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qwen3.cli.bench import Timing
from qwen3.errors import Qwen3Error

REPOSITORY = Path(__file__).parents[1]
RESULTS, CONFIGS = Path(__file__).with_name("results"), Path(__file__).with_name("configs")


def seconds(run: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """Wall time of one call, with all that it leaves to a GPU."""
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def side_by_side(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """What each run returns, in seconds; the runs take turns, so that a slow moment of the machine hits all of them."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured[name].append(run())
    return {name: Timing.of(values) for name, values in measured.items()}


def milliseconds(side: str, timing: Timing) -> dict[str, float]:
    """The three marks as a record holds them, for one of the sides that took turns."""
    marks = {"": timing.median, "p20_": timing.p20, "p80_": timing.p80}
    return {f"{side}_{mark}ms": value * 1e3 for mark, value in marks.items()}


def release_memory(device: str | torch.device) -> None:
    """Gives back what models that nobody uses any more have held."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def machine() -> dict:
    """The processors, the versions and the commit that make a result."""
    return {
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "transformers")},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The repository's commit, with "+" where files that could change a result differ from it; None outside of git."""
    changed = ["status", "--porcelain", "--", ":/", ":!/benchmarks/results", ":!/benchmarks/plots", ":!/README.md"]
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changes)


def save(name: str, question: str, settings: dict, figures: dict | list) -> Path:
    """Writes results/NAME.json, or NAME.cuda.json from a GPU, so that one machine's record leaves the other's alone.

    It is the GPU's where there is one, unless settings["device"] says cpu.
    """
    on_gpu = torch.cuda.is_available() and not str(settings.get("device", "cuda")).startswith("cpu")
    record = {"name": name, "question": question, "machine": machine(), "settings": settings, "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'.cuda' * on_gpu}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)
    print(f"written to {path}")
    return path


def load_records(folder: Path = RESULTS) -> dict[str, dict]:
    """Every record by the name of its file without .json: "generate_small", "ops.cuda". Raises Qwen3Error."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Qwen3Error(f"{path}: cannot be read as JSON ({error}): measure it again") from None
    return records


def config_folder(name: str) -> Path:
    """Where the config.json of a model shape is, for `model_config` and `LLM(..., random_weights=True)`."""
    folder = CONFIGS / name
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in CONFIGS.glob("*/config.json")))
        raise Qwen3Error(f"no model shape {name!r}: there are {known}")
    return folder
