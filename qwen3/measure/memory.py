"""Available memory, memory requirements, and out-of-memory errors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import torch

from ..errors import Qwen3Error

# More than any machine has: control groups without a limit show numbers near 2^63.
UNLIMITED = 2**60


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or what this machine and the control groups of this process can still give."""
    if device.type == "cuda":
        # Memory that PyTorch caches counts as used, but serves the next allocation of this process.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = _proc_kilobytes("/proc/meminfo", "MemAvailable:")
    # Fall back to total memory where free memory is unknown.
    machine = available * 1024 if available else _physical_bytes()
    return max(0, min(machine, *_control_groups()))


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return UNLIMITED


def _control_groups() -> Iterator[int]:
    """Yields the memory that each control group of this process can still give, of version 2 and 1 of their files."""
    yield UNLIMITED
    paths = {"memory": "/", "": "/"}
    for line in _lines("/proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "memory" in controllers.split(","):
            paths["" if number == "0" else "memory"] = path
    for root, limits, used, counted in (
        ("", ("memory.max", "memory.high"), "memory.current", ""),
        ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
    ):
        group = PurePosixPath("/sys/fs/cgroup", root)
        # Inside a container the path may be that of the host, and the group itself the root.
        inside = [part for part in PurePosixPath(paths[root]).parts if part not in ("/", "..")]
        for depth in range(len(inside) + 1):
            place = group.joinpath(*inside[:depth])
            limit = min((UNLIMITED, *(n for name in limits if (n := _number(place / name)) is not None)))
            current = _number(place / used)
            if limit < UNLIMITED and current is not None:
                yield limit - max(0, current - _droppable(place / "memory.stat", counted))


def _droppable(path: PurePosixPath, prefix: str) -> int:
    """Bytes of a control group that are given back when memory runs short: pages of files, and caches of the kernel."""
    figures = dict(line.rsplit(maxsplit=1) for line in _lines(str(path)) if len(line.split()) == 2)
    # Version 1 counts a group alone, and with its children under "total_".
    names = ("inactive_file", "active_file", "slab_reclaimable")
    found = (figures.get(f"{prefix}{name}", figures.get(name, "0")) for name in names)
    return sum(int(number) for number in found if number.isdecimal())


def _lines(path: str) -> list[str]:
    """Returns the lines of a system file, none if it is missing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(path: PurePosixPath) -> int | None:
    """Returns the number in a system file; None for "max" or a missing file."""
    text = "".join(_lines(str(path))).strip()
    return int(text) if text.isdecimal() else None


def kv_cache_bytes(device: torch.device, utilization: float, step_bytes: int, sequence_bytes: int) -> int:
    """How much memory the KV cache may take once the weights are loaded.

    On a GPU: `utilization` of all memory, less what is in use and the `step_bytes` that a step needs for itself.
    On a CPU: 1 GiB, or `sequence_bytes` of one sequence of full length if that is more, and at most `utilization` of
    the free memory.
    """
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return int(total * utilization) - (total - available_bytes(device)) - step_bytes
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
    """Returns one figure of a file under /proc, None if it is missing."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(name)), None)


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
