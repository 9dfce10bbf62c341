"""LLM: a model, its tokenizer and its engine behind a few calls: generate, stream, chat, logits."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Sequenceable
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import load_weights
from .config.hf import model_config, read_json
from .device import resolve_backend, resolve_device, resolve_dtype
from .engine import Engine
from .errors import Qwen3Error
from .experts import ExpertLoad
from .graphs import DecodeGraphs
from .kv_cache import BlockPool, KVCache
from .load.hub import resolve
from .memory import gigabytes, kv_cache_bytes, out_of_memory_is_an_error, require
from .model import Qwen3
from .model import random_weights as fill_randomly
from .sampling import SamplingParams
from .scheduler import Scheduler
from .sequence import Completion, Sequence
from .stats import Stats
from .step import Step
from .text.stream import IncrementalDecoder
from .text.tokenizer import Tokenizer

log = logging.getLogger("qwen3")

Prompts = str | Sequenceable[str] | Sequenceable[list[int]]


class LLM:
    """A Qwen3 model ready to answer.

    model: a folder, a hub id that was downloaded to models/, "tiny", or None for the latest download (else tiny).
    device "auto" is cuda where there is one, else cpu. dtype "auto" is the checkpoint's own. backend "auto" is triton
    where it can run, else reference; one that is asked for by name runs or raises. max_model_len: the longest prompt
    and answer together, in tokens (default: what the model was made for). At most max_num_seqs sequences run together,
    and one step computes at most max_num_batched_tokens tokens; what does not fit waits its turn. The KV cache has
    blocks of kv_block_size tokens and takes, on a GPU, memory_utilization of the memory less weights and work space
    (see memory.kv_cache_bytes for a CPU). prefix_caching: texts that begin alike share what was computed for the
    beginning. cuda_graphs: a decode step is one launch; needs a GPU and the triton backend. None is on where it can be.
    kv_cache=False keeps nothing between steps and recomputes every sequence for every token, for comparison.
    random_weights: of `model` only config.json is read, prompts must be token ids, and texts are empty; for
    measurements. expert_stats: `stats.experts` counts which experts are hit
    (it is None for a dense model).
    Raises Qwen3Error for everything that a user can mend.
    """

    def __init__(
        self,
        model: str | Path | None,
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        kv_block_size: int = 16,
        memory_utilization: float = 0.9,
        prefix_caching: bool | None = None,
        cuda_graphs: bool | None = None,
        kv_cache: bool = True,
        progress: bool = False,
        random_weights: bool = False,
        expert_stats: bool = False,
    ):
        for name, value in (
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
            ("kv_block_size", kv_block_size),
            ("max_model_len", 1 if max_model_len is None else max_model_len),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise Qwen3Error(f"{name} is {value!r}: it must be a whole number, 1 or more")
        if prefix_caching and not kv_cache:
            raise Qwen3Error("prefix_caching = True needs the KV cache: leave out one of it and kv_cache = False")
        if not 0 < memory_utilization <= 1:
            raise Qwen3Error(f"memory_utilization is {memory_utilization!r}: it must be above 0 and up to 1")
        self.folder = resolve(model)
        self.config = model_config(self.folder)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.config)
        self.backend, self.ops = resolve_backend(backend, self.device)
        self.max_model_len = max_model_len or self.config.max_context
        if self.max_model_len > self.config.max_context:
            limit = self.config.max_context
            raise Qwen3Error(f"max_model_len {self.max_model_len} is beyond the {limit} tokens of {self.config.source}")
        can_record = self.device.type == "cuda" and self.backend == "triton" and kv_cache
        if cuda_graphs and not can_record:
            raise Qwen3Error("cuda_graphs = True needs a GPU, the triton backend and the KV cache: leave it out")
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.block_size, self.memory_utilization, self.kv_cache = kv_block_size, memory_utilization, kv_cache
        self.random_weights = random_weights
        generation = self.folder / "generation_config.json"
        self.generation = read_json(generation, "") if generation.is_file() else {}
        self.defaults = SamplingParams().with_defaults(self.generation, str(generation))
        counted = expert_stats and self.config.num_experts > 0
        self.stats = Stats(experts=ExpertLoad(self.config, self.device) if counted else None)
        self.model = self._load(progress)
        cache = self._cache()
        reuse = kv_cache if prefix_caching is None else prefix_caching
        pool = BlockPool(cache.num_blocks, kv_block_size, f"{self.folder} {self.dtype}", reuse)
        scheduler = Scheduler(pool, max_num_seqs, max_num_batched_tokens, kv_cache)
        recorded = can_record if cuda_graphs is None else cuda_graphs
        width = pool.blocks_for(self.max_model_len)
        graphs = DecodeGraphs(self.model, cache, max_num_seqs, width) if recorded else None
        self.engine = Engine(self.model, cache, scheduler, graphs, self.stats)
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        log.info("%s on %s, %s, %s backend", self.folder, self.device, self.dtype, self.backend)
        log.info("KV cache of %d tokens", cache.num_blocks * kv_block_size)

    def _load(self, progress: bool) -> Qwen3:
        needed = self.config.parameters()[0] * self.dtype.itemsize
        place = (self.device, f"{self.folder} in {str(self.dtype)[6:]}", "use a smaller model or a narrower dtype")
        require(needed, *place)
        with out_of_memory_is_an_error(needed, *place):
            model = Qwen3(self.config, self.ops, self.max_model_len, self.dtype, self.device)
        if self.random_weights:
            fill_randomly(model)
        else:
            load_weights(model, self.folder, progress)
        return model.eval()

    def _cache(self) -> KVCache:
        block_bytes = self.block_size * self.config.kv_bytes_per_token(self.dtype)
        longest = -(-self.max_model_len // self.block_size)
        step_bytes = self._step_bytes() if self.device.type == "cuda" else 0
        room = kv_cache_bytes(self.device, self.memory_utilization, step_bytes, longest * block_bytes)
        num_blocks = min(room // block_bytes, self.max_num_seqs * longest)
        advice = "lower max_num_batched_tokens or use a smaller model"
        if num_blocks < 1:
            raise Qwen3Error(
                f"out of memory: the KV cache needs {gigabytes(block_bytes)} for {self.block_size} tokens, {self.device} "
                f"has {gigabytes(max(0, room))} for it: raise memory_utilization, {advice}"
            )
        with out_of_memory_is_an_error(num_blocks * block_bytes, self.device, "the KV cache", advice):
            return KVCache(self.config, num_blocks, self.block_size, self.dtype, self.device)

    @torch.inference_mode()
    def _step_bytes(self) -> int:
        """The most GPU memory that a step takes beside weights and KV cache, found by running the largest one."""
        left, work, num_blocks = self.max_num_batched_tokens, [], 0
        while left:
            count = min(left, self.max_model_len)
            sequence = Sequence([0] * count, self.defaults, frozenset(), count)
            needed = -(-count // self.block_size)
            sequence.blocks = list(range(num_blocks, num_blocks + needed))
            work.append((sequence, count))
            num_blocks += needed
            left -= count
        cache = KVCache(self.config, num_blocks, self.block_size, self.dtype, self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        step = Step.of(work, self.block_size, self.device)
        hidden = self.model(step, cache)
        self.model.logits(hidden[: self.max_num_seqs])
        step_bytes = torch.cuda.max_memory_allocated(self.device) - before
        del cache, hidden
        torch.cuda.empty_cache()
        return step_bytes

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    def generate(
        self, prompts: Prompts, params: SamplingParams | list[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continues every prompt, as it stands (no chat template); the answers are in the order of the prompts.

        params: one for all prompts, or a list with one for each.
        """
        sequences = self._sequences(prompts, params)
        with self._admitted(sequences):
            for sequence in sequences:
                while not sequence.finish_reason:
                    self.engine.step()
        return [sequence.completion() for sequence in sequences]

    def generate_each(
        self, prompts: Prompts, params: SamplingParams | list[SamplingParams] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """The same, each (index, completion) as soon as it is ready."""
        sequences = self._sequences(prompts, params)
        left = dict(enumerate(sequences))
        with self._admitted(sequences):
            while left:
                self.engine.step()
                for i in [i for i, sequence in left.items() if sequence.finish_reason]:
                    yield i, left.pop(i).completion()

    def stream(self, prompt: str | list[int], params: SamplingParams | None = None) -> Iterator[str]:
        """The pieces of the text as they are made; together they are the text that `generate` gives.

        Several streams that are read in turn run in one batch. A stream that is closed, or whose reader breaks off,
        ends at once and gives back its memory.
        """
        [sequence] = self._sequences(prompt if isinstance(prompt, str) else [prompt], params)
        return self._pieces(sequence)

    def _pieces(self, sequence: Sequence) -> Iterator[str]:
        with self._admitted([sequence]):
            while sequence.pieces or not sequence.finish_reason:
                if sequence.pieces:
                    yield sequence.pieces.popleft()
                else:
                    self.engine.advance(sequence)

    async def stream_async(self, prompt: str | list[int], params: SamplingParams | None = None) -> AsyncIterator[str]:
        """`stream` for an event loop: any number of them run together, and the loop stays free while the model works."""
        [sequence] = self._sequences(prompt if isinstance(prompt, str) else [prompt], params)
        with self._admitted([sequence]):
            while sequence.pieces or not sequence.finish_reason:
                if sequence.pieces:
                    yield sequence.pieces.popleft()
                    continue
                # One stream drives the engine in a thread; the others wait here, and mostly find that it has served them.
                async with self._event_loop_turn():
                    if not sequence.pieces and not sequence.finish_reason:
                        await asyncio.to_thread(self.engine.advance, sequence)

    def _event_loop_turn(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]

    @contextmanager
    def _admitted(self, sequences: list[Sequence]) -> Iterator[None]:
        """Hands sequences to the engine; whatever of them has not ended when the caller leaves is cancelled."""
        try:
            for sequence in sequences:
                self.engine.add(sequence)
            yield
        finally:
            for sequence in sequences:
                self.engine.cancel(sequence)

    def chat(self, messages: list[dict], params: SamplingParams | None = None, **template_kwargs) -> Completion:
        """Answers one conversation, rendered by the model's chat template with `template_kwargs` as its variables."""
        return self.generate([self.render(messages, **template_kwargs)], params)[0]

    def render(self, messages: list[dict], **template_kwargs) -> list[int]:
        """The token ids of a conversation in the model's chat template, ready for the answer."""
        text = self.tokenizer.apply_chat_template(messages, **template_kwargs)
        # The template itself writes what begins a text.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, token_ids: list[int]) -> Tensor:
        """The scores of every next token after each token of one sequence, float32 [len(token_ids), vocab_size]."""
        return self.engine.logits(self._sequence(list(token_ids), self.defaults, "the sequence", room=0))

    def forget_prefixes(self) -> None:
        """Empties the prefix cache: no request after this finds anything that was computed before."""
        self.engine.forget_prefixes()

    def _sequences(self, prompts: Prompts, params) -> list[Sequence]:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        each = list(params) if isinstance(params, (list, tuple)) else [params or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise Qwen3Error(f"{len(each)} SamplingParams for {len(prompts)} prompts: give one for all or one for each")
        source = str(self.folder / "generation_config.json")
        sequences = []
        for i, (prompt, wanted) in enumerate(zip(prompts, each)):
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            name = "the prompt" if len(prompts) == 1 else f"prompt {i}"
            if self.random_weights and wanted.stop:
                raise Qwen3Error(f"{name}: stop strings need text, and random weights give none: use stop_token_ids")
            sequence = self._sequence(ids, wanted.with_defaults(self.generation, source), name)
            sequence.decoder = NoText() if self.random_weights else IncrementalDecoder(self.tokenizer)
            self.engine.scheduler.check(sequence)
            sequences.append(sequence)
        return sequences

    def check(self, ids: list[int], params: SamplingParams) -> None:
        """Raises the Qwen3Error that `generate` would raise for this prompt."""
        self.engine.scheduler.check(self._sequence(ids, params, "the prompt"))

    def _sequence(self, ids: list[int], params: SamplingParams, name: str, room: int = 1) -> Sequence:
        if not ids:
            raise Qwen3Error(f"{name} is empty: it needs at least one token")
        if bad := [
            i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.config.vocab_size
        ]:
            raise Qwen3Error(f"{name} has token id {bad[0]!r}: the model knows 0 to {self.config.vocab_size - 1}")
        if len(ids) + room > self.max_model_len:
            raise Qwen3Error(
                f"{name} has {len(ids)} tokens, the context has room for {self.max_model_len}"
                f"{' with at least one to generate' * room}: shorten it or raise max_model_len"
            )
        eos = () if params.ignore_eos else self.config.eos_token_ids
        stop_ids = frozenset(eos) | frozenset(params.stop_token_ids)
        return Sequence(ids, params, stop_ids, self.max_model_len if room else len(ids))


class NoText:
    """The decoder of a model that has no tokenizer."""

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""
