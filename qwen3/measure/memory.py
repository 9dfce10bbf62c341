"""Available memory, memory requirements, and out-of-memory errors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import Qwen3Error


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or what this machine (or its control group) can still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _proc_kilobytes("/proc/meminfo", "MemAvailable:")
    # Fall back to total memory where free memory is unknown.
    available = available * 1024 if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):
        return available


def kv_cache_bytes(device: torch.device, utilization: float, step_bytes: int, sequence_bytes: int) -> int:
    """How much memory the KV cache may take once the weights are loaded.

    On a GPU: `utilization` of all memory, less what is in use and the `step_bytes` that a step needs for itself.
    On a CPU: 1 GiB, or `sequence_bytes` of one sequence of full length if that is more, and at most `utilization` of
    the free memory.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total * utilization) - (total - free) - step_bytes
    return min(int(available_bytes(device) * utilization), max(2**30, sequence_bytes))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: reserved by PyTorch on a GPU, else resident; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    # getrusage would count what the parent process held when it started this one.
    if peak := _proc_kilobytes("/proc/self/status", "VmHWM:"):
        return peak * 1024
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _proc_kilobytes(path: str, name: str) -> int | None:
    """One figure of a file under /proc, None where there is no such thing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)


def gigabytes(count: int) -> str:
    """A size for people, in powers of ten: 61.1 GB, 15.9 MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def require(needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raises Qwen3Error when `device` cannot hold `needed` bytes more."""
    free = available_bytes(device)
    if needed > free:
        raise Qwen3Error(
            f"out of memory: {what} needs {gigabytes(needed)}, {device} has {gigabytes(free)} free: {advice}"
        )


@contextmanager
def out_of_memory_is_an_error(needed: int, device: torch.device, what: str, advice: str) -> Iterator[None]:
    """Turns an allocation that fails all the same into the same error as `require`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocate" not in str(error):
            raise
        free = gigabytes(available_bytes(device))
        message = f"out of memory: {what} needs {gigabytes(needed)}, {device} has {free} free: {advice}"
        raise Qwen3Error(message) from None
