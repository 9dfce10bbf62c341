"""What a speed is worth: the bytes that the steps had to read, and how fast this device could have read them."""

import statistics
import time

import torch

from .config.model import ModelConfig
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


def expert_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """The weights of one expert of one layer."""
    return 3 * config.hidden_size * config.moe_intermediate_size * dtype.itemsize


def dense_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """The weights that every step reads: all but the experts, and of an embedding that is not tied only a few rows."""
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_layers))
    experts = moe_layers * config.num_experts * expert_bytes(config, dtype)
    dense = config.parameters()[0] * dtype.itemsize - experts
    if not config.tie_word_embeddings:
        dense -= config.vocab_size * config.hidden_size * dtype.itemsize
    return dense


def bytes_read(config: ModelConfig, dtype: torch.dtype, stats: Stats, decode: bool) -> int:
    """What the steps of a phase had to read at least: weights once a step, distinct experts as hit, every context's KV."""
    phase = stats.decode if decode else stats.prefill
    distinct = sum(stats.experts.distinct(decode)) if stats.experts else 0
    weights = phase.steps * (dense_bytes(config, dtype) + distinct * expert_bytes(config, dtype))
    return int(weights) + phase.context_tokens * config.kv_bytes_per_token(dtype)


def roofline_lines(config: ModelConfig, dtype: torch.dtype, stats: Stats, bandwidth: float) -> list[str]:
    """For people, prefill and decode apart: tokens/s, bytes, GB/s, and the share of `bandwidth` (bytes per second)."""
    lines = []
    for name, phase in (("prefill", stats.prefill), ("decode", stats.decode)):
        if not phase.steps:
            lines.append(f"{name}: no steps")
            continue
        read = bytes_read(config, dtype, stats, phase is stats.decode)
        rate = read / phase.seconds
        lines.append(
            f"{name}: {phase.tokens:,} tokens in {phase.steps:,} steps, {phase.tokens / phase.seconds:,.1f} tokens/s · "
            f"{gigabytes(read)} to read, {rate / 1e9:,.1f} GB/s, {rate / bandwidth:.0%} of the copy bandwidth "
            f"({bandwidth / 1e9:,.1f} GB/s)"
        )
    return lines
