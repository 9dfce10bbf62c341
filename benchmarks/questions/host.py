"""What does Python cost beside a GPU? Processor time of launches, inputs, sampling, with a launcher that is empty.

Tensors on the CPU are real and Triton binds every argument, as for an H100. What CUDA itself takes for a launch, 2 to 4
microseconds, comes on top. Medians of one thread.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from qwen3.config.hf import model_config
from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.sampler import Sampler, SamplingBatch
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence
from qwen3.errors import Qwen3Error
from qwen3.load.resolve import TINY
from qwen3.model.kv_cache import KVCache
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels.backend import backend

from ..common import Answer

BLOCK_SIZE, VOCABULARY, ANSWER = 16, 151936, 500
# Layers of Qwen3-30B-A3B.
LAYERS = 48
# Passes of a model: tokens of each sequence, those that are computed before them.
PASSES = {"decode of 1": ([1], 20), "decode of 8": ([1] * 8, 20), "prefill of 20": ([20], 0)}
# Sequences, tokens of each.
PENALTIES = ((1, 1000), (8, 8000), (32, 8000))
INPUTS = ((1, 1000), (32, 8000), (256, 2000), (64, 32000))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15, help="repetitions, of which the median counts")
    parser.add_argument("--longest", type=int, default=32000, metavar="N", help="no sequence is longer")


def run(args: argparse.Namespace) -> Answer:
    if triton.knobs.runtime.interpret:
        raise Qwen3Error("host times Triton's own launcher: take TRITON_INTERPRET out of the environment")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = [*passes(args.rounds), *steps(args.rounds, args.longest)]
    finally:
        torch.set_num_threads(threads)
    for row in figures:
        if "us_per_launch" in row:
            per = f"{row['launches_per_layer']:.1f} launches a layer, {row['us_per_launch']:.1f} us each"
            print(
                f"{row['what']}: {row['us_per_layer']:.0f} us a layer, {per}; {LAYERS} layers {row['model_ms']:.1f} ms"
            )
        else:
            print(f"{row['what']}, {row['sequences']} sequences of {row['tokens']:,} tokens: {row['ms']:.2f} ms a step")
    return Answer({"rounds": args.rounds, "longest": args.longest, "device": "cpu"}, figures)


def median(call: Callable[[], object], rounds: int) -> float:
    """Seconds of processor time; the first call, which may compile, is not counted."""
    call()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return statistics.median(times)


def passes(rounds: int) -> list[dict]:
    """The embedded model's forward passes, with kernels that are launched but not run."""
    launches = []

    def launch(*_: object) -> None:
        launches.append(None)

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    config = model_config(TINY)
    model = Qwen3(config, backend("triton"), 2048, torch.bfloat16, "cpu").eval()
    cache = KVCache(config, 256, BLOCK_SIZE, torch.bfloat16, "cpu")
    figures = []
    triton.runtime.driver.set_active(driver)
    with (
        torch.inference_mode(),
        patch.object(CompiledKernel, "_init_handles", lambda self: None),
        patch.object(CompiledKernel, "run", launch),
        patch.object(CompiledKernel, "launch_metadata", lambda *_: None),
        patch.object(CompiledKernel, "function", None, create=True),
    ):
        for what, (counts, computed) in PASSES.items():
            batch = forward_batch(scheduled(counts, computed), BLOCK_SIZE, "cpu")
            model(batch, cache)
            launches.clear()
            model(batch, cache)
            count = len(launches)
            seconds = median(lambda batch=batch: model(batch, cache), rounds)
            figures.append(
                {
                    "what": what,
                    "launches_per_layer": count / config.num_layers,
                    "us_per_layer": seconds / config.num_layers * 1e6,
                    "us_per_launch": seconds / count * 1e6,
                    "model_ms": seconds / config.num_layers * LAYERS * 1e3,
                }
            )
    return figures


def steps(rounds: int, longest: int) -> list[dict]:
    """What a step of decodes costs outside of its graph."""
    figures = []
    penalties = Sampling(repetition_penalty=1.05, presence_penalty=0.1)
    for count, length in PENALTIES:
        tokens = min(length, longest)
        seconds = sampling(scheduled([1] * count, tokens - 1, penalties), rounds)
        figures.append({"what": "sampling with penalties", "sequences": count, "tokens": tokens, "ms": seconds * 1e3})
    for count, length in INPUTS:
        tokens = min(length, longest)
        step = scheduled([1] * count, tokens - 1)
        seconds = median(lambda step=step: forward_batch(step, BLOCK_SIZE, "cpu"), rounds)
        figures.append({"what": "inputs", "sequences": count, "tokens": tokens, "ms": seconds * 1e3})
    return figures


def sampling(step: Scheduled, rounds: int) -> float:
    """Seconds of the sampler's Python, without the copy of the scores, which a GPU makes."""
    sequences = [item.sequence for item in step.work]
    logits = torch.zeros(len(sequences), VOCABULARY)
    sampler = Sampler(SimpleNamespace(sample=lambda scores, *batch: None))

    def call() -> None:
        sampler(logits, SamplingBatch.from_work(list(step.work), VOCABULARY, "cpu"), sequences)

    return max(0.0, median(call, rounds) - median(logits.clone, rounds))


def scheduled(counts: list[int], computed: int, params: Sampling | None = None) -> Scheduled:
    """Sequences of random tokens, each with `counts[i]` to compute after `computed`; the last ones are its answer."""
    draw, work, block = random.Random(0), [], 0
    for count in counts:
        length = computed + count
        tokens = draw.choices(range(VOCABULARY), k=length) if params is not None else [1] * length
        answer = min(ANSWER, length // 2)
        sequence = Sequence(tokens[: length - answer], params or Sampling(), frozenset(), length + 1)
        sequence.token_ids += tokens[length - answer :]
        needed = -(-length // BLOCK_SIZE)
        sequence.blocks, sequence.num_computed = list(range(block, block + needed)), computed
        block += needed
        work.append(Work(sequence, computed, count, True))
    return Scheduled(tuple(work))
