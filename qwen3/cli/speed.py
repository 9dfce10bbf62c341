"""Prefill and decode speed of a model: what `qwen3 bench` and the benchmarks measure, and the line of its table."""

import random
from dataclasses import dataclass
from pathlib import Path

from ..engine.params import SamplingParams
from ..errors import Qwen3Error
from ..llm import LLM
from ..measure.expert_load import ExpertLoad
from ..measure.roofline import bytes_read
from ..measure.stats import Phase
from ..measure.timing import Timing

COLUMNS = (
    "batch",
    "context",
    "prefill tokens/s",
    "decode tokens/s",
    "ms per step",
    "   min to max",
    "GB per step",
    "   GB/s",
    "of the copy",
)
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Speed:
    """Several runs of one batch size and context length. decode: seconds of one step; read: bytes that a step reads."""

    batch: int
    context: int
    prefill: Timing
    decode: Timing
    read: float


def config_folder(path: Path) -> Path:
    """Returns the folder of a config.json, given the file or its folder."""
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise Qwen3Error(f"--random-weights {path}: no config.json there: name the file or the folder that holds it")
    return folder


def room_for(context: int, new_tokens: int) -> int:
    """Returns the max_model_len that lets max_num_seqs prompts of `context` tokens always run together.

    The scheduler admits a sequence only if each running one could still grow by a block.
    """
    return context + new_tokens + BLOCK_SIZE


def require_room(llm: LLM, batch: int) -> None:
    """Raises Qwen3Error unless the KV cache holds `batch` sequences of full length."""
    pool = llm.engine.scheduler.pool
    if batch * pool.blocks_for(llm.max_model_len) > pool.num_blocks:
        room = pool.num_blocks * pool.block_size
        raise Qwen3Error(
            f"out of memory: {batch} sequences of {llm.max_model_len} tokens do not fit into the KV cache, which has "
            f"room for {room} tokens: lower --batch or --context"
        )


def measure(llm: LLM, batch: int, context: int, new_tokens: int, rounds: int) -> Speed:
    """Measures `rounds` turns, after one that warms up and counts the experts hit."""
    prompts = random_prompts(llm.config.vocab_size, batch, context)
    prefill_seconds(llm, prompts)
    read = bytes_per_step(llm, prompts, new_tokens)
    turns = [(prefill_seconds(llm, prompts), decode_seconds(llm, prompts, new_tokens)) for _ in range(rounds)]
    prefill, decode = (Timing.of(list(seconds)) for seconds in zip(*turns))
    return Speed(batch, context, prefill, decode, read)


def random_prompts(vocab_size: int, batch: int, context: int) -> list[list[int]]:
    """Returns prompts of different token ids, the same at every call."""
    generator = random.Random(0)
    return [generator.choices(range(vocab_size), k=context) for _ in range(batch)]


def prefill_seconds(llm: LLM, prompts: list[list[int]]) -> float:
    """Returns the time until every prompt has its first token; afterwards the prompts are cached."""
    llm.reset_prefix_cache()
    return max(answer.metrics.total_seconds for answer in llm.generate(prompts, greedy(1)))


def decode_seconds(llm: LLM, prompts: list[list[int]], new_tokens: int) -> float:
    """Returns the mean time of a step that decodes a token of every prompt; llm.stats.decode then counts these steps.

    The prompts must be cached, and a step must have room for a block of each: then all of them start together.
    """
    llm.stats.decode = Phase()
    metrics = [answer.metrics for answer in llm.generate(prompts, greedy(new_tokens))]
    taken = max(m.total_seconds for m in metrics) - max(m.time_to_first_token for m in metrics)
    return taken / (new_tokens - 1)


def greedy(new_tokens: int, logprobs: int | None = None) -> SamplingParams:
    """Returns greedy parameters for exactly `new_tokens` tokens."""
    return SamplingParams(max_new_tokens=new_tokens, temperature=0, ignore_eos=True, logprobs=logprobs)


def bytes_per_step(llm: LLM, prompts: list[list[int]], new_tokens: int) -> float:
    """Returns the bytes that a decode step of cached prompts reads: weights, distinct experts, keys and values."""
    llm.stats.experts = ExpertLoad(llm.config, llm.device) if llm.config.num_experts else None
    decode_seconds(llm, prompts, new_tokens)
    read = bytes_read(llm.model, llm.stats, decode=True) / llm.stats.decode.steps
    llm.stats.experts = None
    return read


def table_row(speed: Speed, bandwidth: float) -> str:
    """Formats one line of the table; `bandwidth` in bytes per second."""
    rate = speed.read / speed.decode.median
    spread = f"{speed.decode.low * 1e3:.2f}-{speed.decode.high * 1e3:.2f}"
    cells = (
        f"{speed.batch}",
        f"{speed.context}",
        f"{speed.batch * speed.context / speed.prefill.median:,.1f}",
        f"{speed.batch / speed.decode.median:,.1f}",
        f"{speed.decode.median * 1e3:.2f}",
        spread,
        f"{speed.read / 1e9:.4f}",
        f"{rate / 1e9:,.1f}",
        f"{rate / bandwidth:.0%}",
    )
    return "  ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, COLUMNS))
