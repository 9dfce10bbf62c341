"""Shared by the benchmarks: timings side by side, the description of the machine, records."""

import argparse
import gc
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qwen3.engine.sequence import percentile
from qwen3.errors import Qwen3Error
from qwen3.measure.timing import Timing

from .provenance import sources

# The checkout that this package is part of; of an installed package, the folder that it is installed in.
REPOSITORY = Path(__file__).parents[1]
IN_CHECKOUT = (REPOSITORY / "pyproject.toml").is_file()
RESULTS = Path(__file__).with_name("results") if IN_CHECKOUT else Path("results")
CONFIGS = Path(__file__).with_name("configs")


@dataclass(frozen=True)
class Answer:
    """Result of a question: settings and figures.

    within: False where our side leaves the numbers contract. name: of the record (None: the question's own).
    """

    settings: dict
    figures: list[dict]
    within: bool = True
    name: str | None = None


def settings_of(args: argparse.Namespace) -> dict:
    """The question's own options, without those that the runner adds."""
    return {name: value for name, value in vars(args).items() if name not in ("run", "output")}


def seconds(run: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """Wall time of one call, until the GPU has done its part too."""
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def side_by_side(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Seconds that each run returns; runs alternate, so that a slow moment of the machine affects all of them."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured[name].append(run())
    return {name: Timing.of(values) for name, values in measured.items()}


def milliseconds(side: str, timing: Timing) -> dict[str, float]:
    """Median, minimum and maximum of one side, in the units and names of a record."""
    marks = {"": timing.median, "min_": timing.low, "max_": timing.high}
    return {f"{side}_{mark}ms": value * 1e3 for mark, value in marks.items()}


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    """Median, p90 and p99 of seconds, in milliseconds; only those beyond which at least ten values lie."""
    marks = [percent for percent in (50, 90, 99) if len(values) * (100 - percent) >= 1000]
    return {f"{name}_p{percent}_ms": percentile(values, percent) * 1e3 for percent in marks}


def release_memory(device: str | torch.device) -> None:
    """Frees the memory of models without references."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def machine() -> dict:
    """Processors, versions and commit of a measurement."""
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
    """The repository's commit, with "+" if other files than generated ones differ from it; None outside of git."""
    if not IN_CHECKOUT:
        return None
    generated = (":!/benchmarks/results", ":!/benchmarks/plots", ":!/benchmarks/README.md", ":!/README.md")
    changed = ["status", "--porcelain", "--", ":/", *generated]
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changes)


def save(name: str, question: str, answer: Answer, folder: Path, modules: list[str]) -> Path:
    """Writes FOLDER/NAME.json, or NAME.cuda.json for a GPU, so that both records are kept.

    A record is for the GPU if there is one and the setting "device" is not a CPU. modules: those whose code, imports
    included, made the figures.
    """
    on_gpu = torch.cuda.is_available() and not str(answer.settings.get("device", "cuda")).startswith("cpu")
    record = {"name": name, "question": question, "machine": machine()}
    record |= {"settings": answer.settings, "figures": answer.figures, "sources": sources(modules, REPOSITORY)}
    path = folder / f"{name}{'.cuda' * on_gpu}.json"
    replace(path, json.dumps(record, indent=1, default=str) + "\n")
    return path


def replace(path: Path, content: str) -> None:
    """Writes a file and its folder; a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)


def load_records(folder: Path = RESULTS, name: str = "*") -> dict[str, dict]:
    """Every record by the name of its file without .json: "generate_small", "ops.cuda". Raises Qwen3Error."""
    records = {}
    for path in sorted(folder.glob(f"{name}.json")):
        try:
            records[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Qwen3Error(f"{path}: cannot be read as JSON ({error}): measure it again") from None
    return records


def config_folder(name: str) -> Path:
    """Folder of a model shape's config.json, for `model_config` and `LLM(..., random_weights=True)`."""
    folder = CONFIGS / name
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in CONFIGS.glob("*/config.json")))
        raise Qwen3Error(f"no model shape {name!r}: there are {known}")
    return folder
