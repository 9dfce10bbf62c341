"""LLM: a model, its tokenizer and its engine behind a few calls: generate, stream, chat, logits."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Sequenceable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from .config.device import resolve_backend, resolve_device, resolve_dtype
from .config.engine import EngineConfig
from .config.files import read_json_if_there
from .config.hf import model_config
from .config.model import dtype_name
from .engine.assemble import assemble, load_model
from .engine.loop import EngineLoop, Handle, Request
from .engine.params import Sampling, SamplingParams
from .engine.request import Completion, Delta
from .engine.sequence import Sequence
from .errors import Qwen3Error
from .load.resolve import resolve
from .measure.expert_load import ExpertLoad
from .measure.stats import Stats
from .text.stream import IncrementalDecoder, TextStream
from .text.tokenizer import Tokenizer

log = logging.getLogger("qwen3")

Prompt = str | list[int]
Prompts = str | Sequenceable[str] | Sequenceable[list[int]]
Params = SamplingParams | Sequenceable[SamplingParams] | None


class LLM:
    """A Qwen3 model ready to answer. Every method may be called from any thread.

    model: a folder, a hub id that was downloaded to models/, "tiny", or None for the latest download, else tiny.
    options: the fields of EngineConfig, such as device="cpu" or max_num_seqs=8; engine_config gives them all at once.
    progress: show a progress bar while the weights are loaded.
    random_weights: of `model` only config.json is read, for measurements; prompts must be token ids, texts are empty.
    expert_stats: `stats.experts` counts which experts are hit; it is None for a dense model.

    Raises Qwen3Error for everything that the user can fix.
    """

    def __init__(
        self,
        model: str | Path | None,
        *,
        engine_config: EngineConfig | None = None,
        progress: bool = False,
        random_weights: bool = False,
        expert_stats: bool = False,
        **options: Any,
    ) -> None:
        unknown = options.keys() - EngineConfig.__dataclass_fields__.keys()
        if unknown:
            raise Qwen3Error(f"LLM has no option {min(unknown)!r}: see the fields of qwen3.EngineConfig")
        self.engine_config = replace(engine_config or EngineConfig(), **options)
        self.folder = resolve(model)
        self.config = model_config(self.folder)
        self.device = resolve_device(self.engine_config.device)
        self.dtype = resolve_dtype(self.engine_config.dtype, self.config)
        self.backend, ops = resolve_backend(self.engine_config.backend, self.device)
        self.max_model_len = self.engine_config.max_model_len or self.config.max_context
        if self.max_model_len > self.config.max_context:
            limit = self.config.max_context
            raise Qwen3Error(f"max_model_len {self.max_model_len} is beyond the {limit} tokens of {self.config.source}")
        self.random_weights = random_weights
        self._generation_file = self.folder / "generation_config.json"
        self._generation = read_json_if_there(self._generation_file)
        self._resolve(SamplingParams())
        counted = expert_stats and self.config.num_experts > 0
        self.stats = Stats(experts=ExpertLoad(self.config, self.device) if counted else None)
        weights = None if random_weights else self.folder
        self.model = load_model(self.config, ops, self.max_model_len, self.dtype, self.device, weights, progress)
        self.engine = assemble(self.model, self.engine_config, self.max_model_len, self.backend, self.stats)
        self.loop = EngineLoop(self.engine)
        weakref.finalize(self, self.loop.close)
        log.info("%s on %s, %s, %s backend", self.folder, self.device, dtype_name(self.dtype), self.backend)
        log.info("KV cache of %d tokens", self.kv_cache_tokens)

    @property
    def kv_cache_tokens(self) -> int:
        """How many tokens the KV cache holds, of all sequences together."""
        pool = self.engine.scheduler.pool
        return pool.num_blocks * pool.block_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    def generate(self, prompts: Prompts, params: Params = None) -> list[Completion]:
        """Continues every prompt, as it stands (no chat template); the answers are in the order of the prompts.

        params: one for all prompts, or a list with one for each.
        """
        answers = dict(self.generate_each(prompts, params))
        return [answers[i] for i in range(len(answers))]

    def generate_each(self, prompts: Prompts, params: Params = None) -> Iterator[tuple[int, Completion]]:
        """The same, each (index, completion) as soon as it is ready."""
        return self.complete(self._requests(prompts, params))

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers prepared requests together, each (index, completion) as soon as it is ready."""
        ended: SimpleQueue[tuple[int, Delta | Exception]] = SimpleQueue()

        def deliver_end(i: int, item: Delta | Exception) -> None:
            if isinstance(item, Exception) or item.finish_reason is not None:
                ended.put((i, item))

        handles = [Handle(request, partial(deliver_end, i)) for i, request in enumerate(requests)]
        try:
            self.loop.submit(handles)
            for _ in handles:
                i, item = ended.get()
                _raised(item)
                yield i, handles[i].completion()
        finally:
            self.loop.cancel(handles)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """The pieces of the text as they are made; together they are the text that `generate` gives.

        Streams that are open at the same time run in one batch. A stream that is closed, or whose reader breaks off,
        ends and gives back its memory.
        """
        return self._pieces(self.prepare(prompt, params))

    def _pieces(self, request: Request) -> Iterator[str]:
        arrived: SimpleQueue[Delta | Exception] = SimpleQueue()
        handles = [Handle(request, arrived.put)]
        try:
            self.loop.submit(handles)
            delta = None
            while delta is None or delta.finish_reason is None:
                delta = _raised(arrived.get())
                if delta.text:
                    yield delta.text
        finally:
            self.loop.cancel(handles)

    async def stream_async(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[str]:
        """`stream` for an event loop, which it never holds up: the engine runs in its own thread."""
        request = await asyncio.to_thread(self.prepare, prompt, params)
        event_loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Delta | Exception]()

        def deliver(item: Delta | Exception) -> None:
            event_loop.call_soon_threadsafe(arrived.put_nowait, item)

        handles = [Handle(request, deliver)]
        try:
            self.loop.submit(handles)
            delta = None
            while delta is None or delta.finish_reason is None:
                delta = _raised(await arrived.get())
                if delta.text:
                    yield delta.text
        finally:
            self.loop.cancel(handles)

    def chat(self, messages: list[dict], params: SamplingParams | None = None, **template_kwargs: Any) -> Completion:
        """Answers one conversation, rendered by the model's chat template with `template_kwargs` as its variables."""
        return self.generate([self.render(messages, **template_kwargs)], params)[0]

    def render(self, messages: list[dict], **template_kwargs: Any) -> list[int]:
        """The token ids of a conversation in the model's chat template, ready for the answer."""
        text = self.tokenizer.apply_chat_template(messages, **template_kwargs)
        # The template itself writes what begins a text.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, token_ids: list[int]) -> Tensor:
        """The scores of every next token after each token of one sequence, float32 [len(token_ids), vocab_size]."""
        sequence = self._sequence(list(token_ids), SamplingParams(), "the sequence", room=0)
        return self.loop.call(lambda: self.engine.logits(sequence))

    def reset_prefix_cache(self) -> None:
        """Empties the prefix cache: no request after this finds anything that was computed before."""
        self.loop.call(self.engine.scheduler.reset_prefix_cache)

    def check(self, prompt: Prompt, params: SamplingParams | None = None) -> None:
        """Raises the Qwen3Error that `generate` would raise for this prompt."""
        self.prepare(prompt, params)

    def close(self) -> None:
        """Ends the engine's thread after the step that it runs. Happens by itself when the LLM is not used any more."""
        self.loop.close()

    def prepare(self, prompt: Prompt, params: SamplingParams | None = None, name: str = "the prompt") -> Request:
        """Checks a prompt and its parameters; raises Qwen3Error, which calls the prompt by `name`."""
        wanted = params or SamplingParams()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if self.random_weights and wanted.stop:
            raise Qwen3Error(f"{name}: stop strings need text, and random weights give none: use stop_token_ids")
        sequence = self._sequence(ids, wanted, name)
        self.engine.scheduler.check(sequence.max_length)
        decoder = None if self.random_weights else IncrementalDecoder(self.tokenizer)
        return Request(sequence, TextStream(decoder, wanted.stop))

    def _requests(self, prompts: Prompts, params: Params) -> list[Request]:
        listed: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
        each = list(params) if isinstance(params, Sequenceable) else [params] * len(listed)
        if len(each) != len(listed):
            raise Qwen3Error(f"{len(each)} SamplingParams for {len(listed)} prompts: give one for all or one for each")
        names = ["the prompt"] if len(listed) == 1 else [f"prompt {i}" for i in range(len(listed))]
        return [self.prepare(*arguments) for arguments in zip(listed, each, names)]

    def _sequence(self, ids: list[int], params: SamplingParams, name: str, room: int = 1) -> Sequence:
        """room: how many tokens the context must have left."""
        if not ids:
            raise Qwen3Error(f"{name} is empty: it needs at least one token")
        vocab_size = self.config.vocab_size
        if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size]:
            raise Qwen3Error(f"{name} has token id {bad[0]!r}: the model knows 0 to {vocab_size - 1}")
        if len(ids) + room > self.max_model_len:
            raise Qwen3Error(
                f"{name} has {len(ids)} tokens, the context has room for {self.max_model_len}"
                f"{' with at least one to generate' * room}: shorten it or raise max_model_len"
            )
        eos = () if params.ignore_eos else self.config.eos_token_ids
        longest = min(self.max_model_len, len(ids) + params.max_new_tokens) if room else len(ids)
        stop_ids = frozenset((*eos, *params.stop_token_ids))
        return Sequence(ids, self._resolve(params), stop_ids, longest, params.logprobs)

    def _resolve(self, params: SamplingParams) -> Sampling:
        return params.resolve(self._generation, str(self._generation_file))


def _raised(item: Delta | Exception) -> Delta:
    if isinstance(item, Exception):
        raise item
    return item
