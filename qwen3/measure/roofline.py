"""Roofline of a run: the bytes that its steps had to read, against the copy bandwidth of the device."""

import statistics
import time

import torch

from ..errors import counted
from ..model.footprint import footprint
from ..model.qwen3 import Qwen3
from .memory import gigabytes
from .stats import Stats


def copy_bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second that a copy of `size` bytes moves on `device`, read and write together, the median of nine."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    # The first copy finds the memory cold.
    return 2 * size / statistics.median(times[1:])


def bytes_read(model: Qwen3, stats: Stats, decode: bool) -> int:
    """What the steps of a phase read at least: shared weights once a step, experts that were hit, each context's KV."""
    phase = stats.decode if decode else stats.prefill
    counted = footprint(model)
    distinct = sum(stats.experts.distinct(decode)) if stats.experts else 0
    weights = phase.steps * (counted.shared_bytes + distinct * counted.expert_bytes)
    return int(weights) + phase.context_tokens * model.config.kv_bytes_per_token(model.dtype)


def roofline_lines(model: Qwen3, stats: Stats, bandwidth: float) -> list[str]:
    """For people, prefill and decode apart: tokens/s, bytes, GB/s, and the share of `bandwidth` (bytes per second)."""
    lines = []
    for name, phase in (("prefill", stats.prefill), ("decode", stats.decode)):
        if not phase.steps:
            lines.append(f"{name}: no steps")
            continue
        read = bytes_read(model, stats, phase is stats.decode)
        rate = read / phase.seconds
        speed = f"{phase.tokens / phase.seconds:,.1f} tokens/s"
        share = f"{rate / 1e9:,.2f} GB/s, {rate / bandwidth:.0%} of the copy bandwidth ({bandwidth / 1e9:,.1f} GB/s)"
        done = f"{counted(phase.tokens, 'token')} in {counted(phase.steps, 'step')}"
        lines.append(f"{name}: {done}, {speed} · {gigabytes(read)} to read, {share}")
    return lines
