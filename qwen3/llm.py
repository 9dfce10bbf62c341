"""LLM: a model, its tokenizer and its engine behind a few calls: generate, stream, chat, logits."""

import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from .config import values
from .config.device import resolve_backend, resolve_device, resolve_dtype
from .config.engine import EngineConfig
from .config.generation import generation_defaults
from .config.hf import model_config
from .config.model import dtype_name
from .engine.arguments import Params, Prompt, Prompts, check_params, params_list, prompt_ids, prompt_list
from .engine.assemble import assemble, load_model, records_graphs
from .engine.loop import EngineLoop, Handle, Request
from .engine.params import Sampling, SamplingParams
from .engine.request import Completion, Delta
from .engine.sequence import Sequence
from .engine.streams import AsyncStream, Stream
from .errors import Qwen3Error, brief, closest
from .load.resolve import resolve
from .measure.expert_load import ExpertLoad
from .measure.stats import Stats
from .text.stream import TextStream
from .text.tokenizer import Tokenizer

log = logging.getLogger("qwen3")


class RenderedChat(list[int]):
    """The token ids of a conversation, as `LLM.render` gives them: the tokenizer's end of turn ends its answer, too."""


class BrokenOff(Qwen3Error):
    """Answers that ended with an error. `completions` holds all answers of the call, in order."""

    def __init__(self, completions: list[Completion]) -> None:
        bad = [i for i, answer in enumerate(completions) if answer.finish_reason == "error"]
        what = f"{len(bad)} of {len(completions)} answers broke off, the first is prompt {bad[0]}"
        what = "the answer broke off" if len(completions) == 1 else what
        super().__init__(f"{what}: {completions[bad[0]].error}")
        self.completions = completions


class LLM:
    """A Qwen3 model ready to answer. Every method may be called from any thread, but not from a fork of the process.

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
        if not isinstance(engine_config, EngineConfig | None):
            values.refuse(engine_config, "engine_config", "an EngineConfig")
        progress, random_weights = values.flag(progress, "progress"), values.flag(random_weights, "random_weights")
        expert_stats = values.flag(expert_stats, "expert_stats")
        unknown = options.keys() - EngineConfig.__dataclass_fields__.keys()
        if unknown:
            near = closest(min(unknown), EngineConfig.__dataclass_fields__)
            meant = f" (did you mean {near}?)" if near else ""
            raise Qwen3Error(f"LLM has no option {brief(min(unknown))}{meant}: see the fields of qwen3.EngineConfig")
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
        # What can be refused is refused before the weights, which may take minutes.
        records_graphs(self.engine_config, self.device, self.backend)
        self.defaults = generation_defaults(self.folder, self.config.vocab_size)
        if not random_weights:
            _ = self.tokenizer
        counted = expert_stats and self.config.num_experts > 0
        self.stats = Stats(experts=ExpertLoad(self.config, self.device) if counted else None)
        weights = None if random_weights else self.folder
        self.model = load_model(self.config, ops, self.max_model_len, self.dtype, self.device, weights, progress)
        self.engine = assemble(self.model, self.engine_config, self.max_model_len, self.backend, self.stats)
        self.loop = EngineLoop(self.engine)
        weakref.finalize(self, self.loop.close)
        log.info("%s on %s, %s, %s backend", self.folder, self.device, dtype_name(self.dtype), self.backend)
        log.info("KV cache of %s tokens", f"{self.kv_cache_tokens:,}")

    @property
    def kv_cache_tokens(self) -> int:
        """How many tokens the KV cache holds, of all sequences together."""
        pool = self.engine.scheduler.pool
        return pool.num_blocks * pool.block_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, prompts: Prompts, params: Params = None) -> list[Completion]:
        """Continues every prompt, as it stands (no chat template); the answers are in the order of the prompts.

        prompts: a text, the token ids of one prompt, or a list of texts and lists of ids; arrays of ids, too.
        params: one for all prompts, or a list with one for each.

        Raises BrokenOff, which holds all answers, once the others have ended where one ended with an error.
        """
        answers = dict(self.generate_each(prompts, params))
        listed = [answers[i] for i in range(len(answers))]
        if any(answer.finish_reason == "error" for answer in listed):
            raise BrokenOff(listed)
        return listed

    def generate_each(self, prompts: Prompts, params: Params = None) -> Iterator[tuple[int, Completion]]:
        """Yields (index, completion) as soon as each is ready; finish_reason "error" raises nothing."""
        return self.complete(self._requests(prompts, params))

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers prepared requests together, each (index, completion) as soon as it is ready."""
        if not isinstance(requests, (list, tuple)) or not all(isinstance(request, Request) for request in requests):
            values.refuse(requests, "requests", "a list of what LLM.prepare returns")
        return self._complete(requests)

    def _complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        ended: SimpleQueue[tuple[int, Delta | Exception]] = SimpleQueue()

        def deliver_end(i: int, item: Delta | Exception) -> None:
            if isinstance(item, Exception) or item.finish_reason is not None:
                ended.put((i, item))

        handles = [Handle(request, partial(deliver_end, i)) for i, request in enumerate(requests)]
        try:
            self.loop.submit(handles)
            for _ in handles:
                i, item = ended.get()
                if not isinstance(item, Exception):
                    yield i, handles[i].completion()
                elif self._ends_alone(item, handles[i]):
                    yield i, handles[i].broken_off(item)
                else:
                    raise item
        finally:
            self.loop.cancel(handles)

    def _ends_alone(self, error: Exception, handle: Handle) -> bool:
        """Tells whether an error, such as a step without memory, ended one request while others go on."""
        return isinstance(error, Qwen3Error) and not self.loop.closed and handle.sequence.finish_reason == "error"

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Yields the text piece by piece; together the pieces are the text of `generate`.

        Streams that are open at the same time run in one batch. `completion` of a stream is the whole answer, with its
        finish_reason, once it has ended.
        """
        return Stream(self.loop, self.prepare(prompt, params))

    def stream_async(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncStream:
        """`stream` for an event loop, which it never holds up: the engine runs in its own thread."""
        return AsyncStream(self.loop, partial(self.prepare, prompt, params))

    def chat(self, /, messages: list[dict], params: SamplingParams | None = None, **options: Any) -> Completion:
        """Answers one conversation; `options` are those of `render`."""
        check_params(params)
        return self.generate([self.render(messages, **options)], params)[0]

    def render(
        self,
        /,  # a template's variable may have this name
        messages: list[dict],
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        tools: list[dict] | None = None,
        sanitize_control_tokens: bool = False,
        **template_variables: Any,
    ) -> RenderedChat:
        """The token ids of a conversation in the model's chat template, ready for the answer.

        See `Tokenizer.apply_chat_template` and `Tokenizer.encode_chat`.
        """
        ids = self.tokenizer.encode_chat(
            messages,
            add_generation_prompt,
            tools,
            continue_final_message=continue_final_message,
            sanitize_control_tokens=sanitize_control_tokens,
            **template_variables,
        )
        return RenderedChat(ids)

    def logits(self, token_ids: list[int]) -> Tensor:
        """The scores of every next token after each token of one sequence, float32 [len(token_ids), vocab_size]."""
        ids = prompt_ids(token_ids, "token_ids", self.config.vocab_size, self.max_model_len)
        self._check_length(len(ids), "token_ids", room=0)
        sequence = Sequence(ids, Sampling(), frozenset(), len(ids))
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
        wanted = check_params(params)
        if wanted.stop is None:
            wanted = replace(wanted, stop=() if self.random_weights else self.defaults.stop)
        if self.random_weights and (wanted.stop or wanted.bad_words):
            raise Qwen3Error(f"{name}: stop strings need text, and random weights give none: use stop_token_ids")
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        else:
            ids = prompt_ids(prompt, name, self.config.vocab_size, self.max_model_len)
        sequence = self._sequence(ids, wanted, name, isinstance(prompt, RenderedChat))
        self.engine.scheduler.check(sequence.max_length)
        text = TextStream(
            None if self.random_weights else self.tokenizer,
            wanted.stop or (),
            sequence.sampling.min_tokens,
            wanted.include_stop_str_in_output,
            wanted.skip_special_tokens,
        )
        return Request(sequence, text)

    def _requests(self, prompts: Prompts, params: Params) -> list[Request]:
        listed = prompt_list(prompts)
        each = params_list(params, len(listed))
        names = ["the prompt"] if len(listed) == 1 else [f"prompt {i}" for i in range(len(listed))]
        return [self.prepare(*arguments) for arguments in zip(listed, each, names)]

    def _sequence(self, ids: list[int], params: SamplingParams, name: str, is_chat: bool) -> Sequence:
        """is_chat: the end of turn that the tokenizer names ends the answer, beside the model's own ids."""
        self._check_length(len(ids), name, room=1)
        vocab_size = self.config.vocab_size
        for field, given in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias or ())):
            if any(i >= vocab_size for i in given):
                raise Qwen3Error(f"{name}: {field} has {max(given)}: the model knows token ids 0 to {vocab_size - 1}")
        ends = set() if params.ignore_eos else set(self.config.eos_token_ids)
        if is_chat and not params.ignore_eos:
            ends |= set(self.tokenizer.end_of_turn_ids)
        reasons: dict[int, int | str] = {i: i for i in params.stop_token_ids if i not in ends}
        if params.stop:
            special = self.tokenizer.special_tokens
            reasons |= {special[stop]: stop for stop in params.stop if stop in special}
        sampling = params.resolve(self.defaults, self._bad_words(params.bad_words or ()))
        longest = self._longest(len(ids), params, name)
        return Sequence(ids, sampling, frozenset({*ends, *reasons}), longest, params.logprobs, reasons)

    def _bad_words(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Returns the token ids of each word, at the beginning of a text and, if they differ, after a space."""
        found = []
        for word in words:
            plain = tuple(self.tokenizer.encode(word, add_special_tokens=False))
            spaced = tuple(self.tokenizer.encode(f" {word}", add_special_tokens=False))
            if not plain:
                raise Qwen3Error(f"bad_words has {brief(word)}, which has no token: leave it out")
            found += [plain] if spaced[-len(plain) :] == plain else [plain, spaced]
        return tuple(found)

    def _longest(self, prompt_length: int, params: SamplingParams, name: str) -> int:
        """Returns the most tokens of prompt and answer together: the context, or less on request.

        If the KV cache is smaller than the context, it limits an answer without max_new_tokens.
        """
        new_tokens, defaults = params.max_new_tokens, self.defaults
        if new_tokens is None:
            new_tokens = defaults.max_new_tokens
        if new_tokens is not None:
            return min(self.max_model_len, prompt_length + new_tokens)
        if defaults.max_length is None:
            return max(prompt_length + 1, min(self.max_model_len, self.kv_cache_tokens))
        if prompt_length >= defaults.max_length:
            raise Qwen3Error(
                f"{name} has {prompt_length} tokens, max_length of {self.folder}/generation_config.json is "
                f"{defaults.max_length}: give max_new_tokens"
            )
        return min(self.max_model_len, defaults.max_length)

    def _check_length(self, length: int, name: str, room: int) -> None:
        """room: how many tokens the context must have left."""
        if not length:
            raise Qwen3Error(f"{name} is empty: it needs at least one token")
        if length + room > self.max_model_len:
            raise Qwen3Error(
                f"{name} has {length} tokens, the context has room for {self.max_model_len}"
                f"{' with at least one to generate' * room}: shorten it or raise max_model_len"
            )
