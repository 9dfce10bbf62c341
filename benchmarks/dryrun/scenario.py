"""Drives an engine through every kind of step."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qwen3 import LLM, Completion, SamplingParams
from qwen3.config.hf import model_config
from qwen3.config.model import DTYPES
from qwen3.engine import assemble
from qwen3.engine.params import Sampling
from qwen3.engine.sequence import Sequence
from qwen3.load import loader
from qwen3.model.footprint import planned_footprint

from .stand_in import in_thread
from .world import Step, World

# Every filter and penalty alone, then together. Texts need a tokenizer: bad_words is left out.
SETTINGS: tuple[dict, ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 0.7, "min_p": 0.01},
    {"repetition_penalty": 1.05},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"logit_bias": {5: 1.0}},
    {"min_tokens": 2, "stop_token_ids": (7,)},
    {"no_repeat_ngram_size": 2},
)
EVERYTHING = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.01,
    "repetition_penalty": 1.05,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {5: 1.0},
    "no_repeat_ngram_size": 2,
    "seed": 1,
}


class Options(NamedTuple):
    """How an engine is made and driven. short: the first graph sizes only, one of each kind of step."""

    device: str = "cuda:0"
    dtype: str = "auto"
    layers: int = 0
    max_num_seqs: int = 256
    logits: tuple[int, ...] = (40000,)
    expert_stats: bool = False
    short: bool = False


class Driven(NamedTuple):
    """An engine that was driven, and bytes: of its weights, its KV cache, reserved after load."""

    llm: LLM
    weights: int
    kv_cache: int
    loaded: int


def drive(world: World, folder: Path, options: Options) -> Driven:
    """Makes an engine, then drives it; what it does is in `world`. An error of the engine is a breach."""
    allocator = world.allocators[world.index(torch.device(options.device))]
    weights: list[int] = []

    def load_model(*args, **kwargs):
        model = assemble.load_model(*args, **kwargs)
        allocator.collect()
        weights.append(allocator.reserved)
        return model

    def read_tensors(*args, stock=loader.read_tensors):
        """The tensors of a file are real."""
        tensors = stock(*args)
        while True:
            with _disable_current_modes():
                item = next(tensors, None)
            if item is None:
                return
            yield item

    world.phase = "load"
    before = allocator.reserved
    random = not (folder / "model.safetensors").is_file()
    with patch("qwen3.llm.load_model", load_model), patch("qwen3.load.loader.read_tensors", read_tensors):
        llm = in_thread(
            lambda: LLM(
                folder,
                device=options.device,
                dtype=options.dtype,
                max_num_seqs=options.max_num_seqs,
                random_weights=random,
                expert_stats=options.expert_stats,
            )
        )
    allocator.collect()
    cache = sum(t.nbytes for layer in llm.engine.runner.cache.layers for t in layer)
    driven = Driven(llm, weights[0] - before, cache, allocator.reserved)
    _watch(world, llm)
    _Driver(world, llm, options).run()
    for graph in list(world.graphs):
        graph.check()
    return driven


def fitting(folder: Path, target: Path, layers: int, dtype: str, total: int) -> Path:
    """A copy of a model's config in `target` with `layers` layers (0: all), or with as many as `total` bytes hold."""
    config = model_config(folder)
    count = min(layers or config.num_layers, config.num_layers)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(values | {"num_hidden_layers": count}))
    torch_dtype = DTYPES[dtype] if dtype != "auto" else config.dtype or torch.bfloat16
    # A tenth is left to the KV cache and to steps.
    while count > 1 and planned_footprint(model_config(target), torch_dtype).nbytes > 0.8 * total:
        count -= 1
        (target / "config.json").write_text(json.dumps(values | {"num_hidden_layers": count}))
    if count == config.num_layers:
        shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def _watch(world: World, llm: LLM) -> None:
    """Notes the layer of each launch, and makes a record of each step."""
    for i, layer in enumerate(llm.model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: setattr(world, "layer", i))
        layer.register_forward_hook(lambda *_: setattr(world, "layer", None))
    engine = llm.engine
    stock_step, stock_schedule = engine.step, engine.scheduler.schedule

    def schedule():
        scheduled = stock_schedule()
        if world.step is not None and scheduled:
            world.step.decode, world.step.num_tokens = scheduled.is_decode, scheduled.num_tokens
            world.step.contexts = [item.stop for item in scheduled.work]
        return scheduled

    def step():
        # A layer that raised has left its number.
        world.step, world.layer, first = Step(world.phase), None, len(world.launches)
        try:
            return stock_step()
        finally:
            done, world.step = world.step, None
            done.launches = [launch for launch in world.launches[first:] if not launch.captured]
            if done.num_tokens:
                world.steps.append(done)

    engine.step, engine.scheduler.schedule = step, schedule


class _Driver:
    """The phases of a run, in order."""

    def __init__(self, world: World, llm: LLM, options: Options) -> None:
        self.world, self.llm, self.options = world, llm, options
        self.scheduler = llm.engine.scheduler

    def run(self) -> None:
        llm, options, short = self.llm, self.options, self.options.short
        context, chunk = llm.max_model_len, self.scheduler.max_num_batched_tokens
        self.phase("prefill", [[1] * min(4096, context // 2)], max_new_tokens=1)
        self.phase("prefill short", [[1] * 20], max_new_tokens=1)
        if not short:
            self.phase("prefill in chunks", [[2] * min(context - 8, 2 * chunk + 100)], max_new_tokens=2)
            self.phase("prefill of many", [[3 + i] * 7 for i in range(33)], max_new_tokens=1)
        sizes = llm.engine.runner.graphs.sizes
        for size in sizes[:3] if short else sizes:
            self.phase(f"decode {size}", [[1 + i, 2, 3] for i in range(size)], max_new_tokens=3)
        for settings in ({},) if short else SETTINGS:
            name = ", ".join(settings) or "greedy"
            self.phase(f"sampled: {name}", [[1, 2, 3], [2, 3]], max_new_tokens=3, **settings)
        for count in (2,) if short else (1, 2, 3, 4):
            prompts = [[1 + i, 2, 3] for i in range(count)]
            self.phase(f"sampled: everything, {count}", prompts, max_new_tokens=3, **EVERYTHING)
        self.phase("log-probabilities", [[1 + i, 2, 3] for i in range(3)], max_new_tokens=3, logprobs=3)
        with self.on_engine(self._few_tokens, self._many_tokens):
            self.phase("mixed", [[1] * 30, [2] * 150, [3] * 70], max_new_tokens=4)
        self.phase("prefix", [[7] * 50], max_new_tokens=2)
        answers = self.phase("prefix hit", [[7] * 50 + [8]], keep=True, max_new_tokens=2)
        self.happened(any(answer.metrics.cached_prompt_tokens for answer in answers))
        llm.reset_prefix_cache()
        with self.on_engine(self._few_blocks, self._all_blocks):
            answers = self.phase("preemption", [[i] * 15 for i in range(1, 5)], max_new_tokens=4)
        self.happened(any(answer.metrics.preemptions for answer in answers))
        for count in (20,) if short else (20, *(min(context, n) for n in options.logits)):
            self.world.phase = f"logits {count}"
            self.attempt(lambda count=count: llm.logits([1] * count))

    def phase(self, name: str, prompts: list[list[int]], keep: bool = False, **settings) -> list[Completion]:
        """Answers prompts; keep: also from the prefix cache."""
        self.world.phase = name
        if not keep:
            self.llm.reset_prefix_cache()
        params = SamplingParams(**({"temperature": 0.0, "ignore_eos": True} | settings))
        count = self.options.max_num_seqs
        return self.attempt(lambda: self.llm.generate(prompts[:count], params))

    def attempt(self, run: Callable[[], list]) -> list:
        """The result of a call; none of one that raises, which is a breach."""
        try:
            return run()
        except Exception as error:
            self.world.fails(error)
            return []

    def happened(self, seen: bool) -> None:
        if not seen:
            self.world.breach("what this phase is for did not happen")

    @contextmanager
    def on_engine(self, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
        """Calls both functions in the engine's thread."""
        self.llm.loop.call(before)
        try:
            yield
        finally:
            self.llm.loop.call(after)

    def _few_tokens(self) -> None:
        self.chunk, self.scheduler.max_num_batched_tokens = self.scheduler.max_num_batched_tokens, 100

    def _many_tokens(self) -> None:
        self.scheduler.max_num_batched_tokens = self.chunk

    def _few_blocks(self) -> None:
        """Leaves three blocks: two prompts of one are admitted, and then both want another."""
        pool = self.scheduler.pool
        self.holder = Sequence([0], Sampling(), frozenset(), 1)
        pool.allocate(self.holder, max(0, pool.num_free - 3) * pool.block_size)

    def _all_blocks(self) -> None:
        self.scheduler.pool.free(self.holder)
