"""LLM: a model, its tokenizer and its cache behind four calls: generate, stream, chat, logits."""

import logging
import time
from collections.abc import Iterator, Sequence as Sequenceable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import kernels

from .checkpoint import load_weights
from .config import DTYPES, ModelConfig, read_json
from .errors import Qwen3Error
from .hub import resolve
from .kv_cache import BlockAllocator, KVCache
from .memory import available_bytes, gigabytes, out_of_memory_is_an_error, require
from .model import Qwen3
from .sampling import Sampler, SamplingParams
from .sequence import Completion, Sequence
from .step import Step
from .tokenizer import IncrementalDecoder, Tokenizer

log = logging.getLogger("qwen3")

Prompts = str | Sequenceable[str] | Sequenceable[list[int]]


@dataclass
class Stats:
    """What the model has computed since it was loaded; first_token_seconds is the wait of the latest request.

    The first token of an answer comes out of the prefill, so decode_tokens has one less per answer.
    """

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


class LLM:
    """A Qwen3 model ready to answer.

    model: a folder, a hub id that was downloaded to models/, "tiny", or None for the latest download (else tiny).
    device "auto" is cuda where there is one, else cpu. dtype "auto" is the checkpoint's own. backend "auto" is triton
    where it can run, else reference; one that is asked for by name runs or raises. max_model_len: the longest prompt
    and answer together, in tokens (default: what the model was made for). At most max_num_seqs sequences run together,
    and one step computes at most max_num_batched_tokens prompt tokens. kv_cache=False keeps nothing between steps and
    recomputes every sequence for every token, for comparison. prefix_caching and cuda_graphs:
    None or False; True is refused, this version has neither. Raises Qwen3Error for everything that a user can mend.
    """

    def __init__(
        self, model: str | Path | None, device: str = "auto", dtype: str = "auto", backend: str = "auto",
        max_model_len: int | None = None, max_num_seqs: int = 256, max_num_batched_tokens: int = 8192,
        kv_block_size: int = 16, memory_utilization: float = 0.9, prefix_caching: bool | None = None,
        cuda_graphs: bool | None = None, kv_cache: bool = True, progress: bool = False,
    ):  # fmt: skip
        for name, value in (
            ("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens),
            ("kv_block_size", kv_block_size), ("max_model_len", 1 if max_model_len is None else max_model_len),
        ):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise Qwen3Error(f"{name} is {value!r}: it must be a whole number, 1 or more")
        for name, value in (("prefix_caching", prefix_caching), ("cuda_graphs", cuda_graphs)):
            if value:
                raise Qwen3Error(f"{name} = {value!r} is not supported in this version: leave it out")
        if not 0 < memory_utilization <= 1:
            raise Qwen3Error(f"memory_utilization is {memory_utilization!r}: it must be above 0 and up to 1")
        self.folder = resolve(model)
        self.config = ModelConfig.from_folder(self.folder)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.config)
        self.backend, self.ops = resolve_backend(backend, self.device)
        self.max_model_len = max_model_len or self.config.max_context
        if self.max_model_len > self.config.max_context:
            limit = self.config.max_context
            raise Qwen3Error(f"max_model_len {self.max_model_len} is beyond the {limit} tokens of {self.config.source}")
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.block_size, self.memory_utilization = kv_block_size, memory_utilization
        self.kv_cache = kv_cache
        self.stats = Stats()
        generation = self.folder / "generation_config.json"
        self.generation = read_json(generation, "") if generation.is_file() else {}
        self.defaults = SamplingParams().with_defaults(self.generation, str(generation))
        self.model = self._load(progress)
        self.sampler = Sampler(self.ops)
        log.info("%s on %s, %s, %s backend", self.folder, self.device, self.dtype, self.backend)

    def _load(self, progress: bool) -> Qwen3:
        needed = self.config.parameters()[0] * self.dtype.itemsize
        place = (self.device, f"{self.folder} in {str(self.dtype)[6:]}", "use a smaller model or a narrower dtype")
        require(needed, *place)
        with out_of_memory_is_an_error(needed, *place):
            model = Qwen3(self.config, self.ops, self.max_model_len, self.dtype, self.device)
        load_weights(model, self.folder, progress)
        return model.eval()

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
        for _ in self._run(sequences):
            pass
        return [sequence.completion() for sequence in sequences]

    def generate_each(
        self, prompts: Prompts, params: SamplingParams | list[SamplingParams] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """The same, each (index, completion) as soon as it is ready."""
        sequences = self._sequences(prompts, params)
        index = {id(sequence): i for i, sequence in enumerate(sequences)}
        for sequence, _ in self._run(sequences):
            if sequence.finish_reason:
                yield index[id(sequence)], sequence.completion()

    def stream(self, prompt: str | list[int], params: SamplingParams | None = None) -> Iterator[str]:
        """The pieces of the text as they are made; together they are the text that `generate` gives."""
        sequences = self._sequences(prompt if isinstance(prompt, str) else [prompt], params)
        return (text for _, text in self._run(sequences) if text)

    def chat(self, messages: list[dict], params: SamplingParams | None = None, **template_kwargs) -> Completion:
        """Answers one conversation, rendered by the model's chat template with `template_kwargs` as its variables."""
        return self.generate([self.render(messages, **template_kwargs)], params)[0]

    def render(self, messages: list[dict], **template_kwargs) -> list[int]:
        """The token ids of a conversation in the model's chat template, ready for the answer."""
        text = self.tokenizer.apply_chat_template(messages, **template_kwargs)
        # The template itself writes what begins a text.
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> Tensor:
        """The scores of every next token after each token of one sequence, float32 [len(token_ids), vocab_size]."""
        sequence = self._sequence(list(token_ids), self.defaults, "the sequence", room=0)
        sequence.blocks = list(range(self._blocks(len(token_ids))))
        cache = self._cache(len(sequence.blocks))
        rows = []
        while sequence.computed < len(token_ids):
            count = min(self.max_num_batched_tokens, len(token_ids) - sequence.computed)
            rows.append(self.model.logits(self._forward([(sequence, count)], cache)[0]))
        return torch.cat(rows)

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
            sequence = self._sequence(ids, wanted.with_defaults(self.generation, source), name)
            sequence.decoder = IncrementalDecoder(self.tokenizer)
            sequences.append(sequence)
        return sequences

    def check(self, ids: list[int], params: SamplingParams) -> None:
        """Raises the Qwen3Error that `generate` would raise for this prompt."""
        self._sequence(ids, params, "the prompt")

    def _sequence(self, ids: list[int], params: SamplingParams, name: str, room: int = 1) -> Sequence:
        if not ids:
            raise Qwen3Error(f"{name} is empty: it needs at least one token")
        if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.config.vocab_size]:
            raise Qwen3Error(f"{name} has token id {bad[0]!r}: the model knows 0 to {self.config.vocab_size - 1}")
        if len(ids) + room > self.max_model_len:
            raise Qwen3Error(
                f"{name} has {len(ids)} tokens, the context has room for {self.max_model_len}"
                f"{' with at least one to generate' * room}: shorten it or raise max_model_len"
            )
        eos = () if params.ignore_eos else self.config.eos_token_ids
        stop_ids = frozenset(eos) | frozenset(params.stop_token_ids)
        return Sequence(ids, params, stop_ids, self.max_model_len)

    def _run(self, sequences: list[Sequence]) -> Iterator[tuple[Sequence, str]]:
        """Runs all sequences, as many together as fit; yields every sequence with the text of its newest token."""
        waiting = list(sequences)
        while waiting:
            group, blocks = self._group(waiting)
            yield from self._run_group(group, blocks)

    def _group(self, waiting: list[Sequence]) -> tuple[list[Sequence], int]:
        """Takes the next sequences that fit into memory together; also the number of blocks that they can fill."""
        block_bytes = self.block_size * self.config.kv_bytes_per_token(self.dtype)
        free = int(available_bytes(self.device) * self.memory_utilization) // block_bytes
        group, blocks = [], 0
        while waiting and len(group) < self.max_num_seqs:
            needed = self._blocks(waiting[0].max_length)
            if blocks + needed > free:
                break
            blocks += needed
            group.append(waiting.pop(0))
        if not group:
            tokens = waiting[0].max_length
            raise Qwen3Error(
                f"out of memory: the KV cache of {tokens} tokens needs {gigabytes(needed * block_bytes)}, {self.device} "
                f"has {gigabytes(free * block_bytes)} for it: lower max_new_tokens, the prompt or max_model_len"
            )
        return group, blocks

    @torch.inference_mode()
    def _run_group(self, group: list[Sequence], num_blocks: int) -> Iterator[tuple[Sequence, str]]:
        """A static batch: all prompts, then one token at a time for those that have not ended."""
        allocator, cache = BlockAllocator(num_blocks), self._cache(num_blocks)
        for sequence in group:
            sequence.blocks = allocator.take(self._blocks(sequence.max_length))
        running, prefilling = group, True
        while running:
            started = time.perf_counter()
            if not self.kv_cache:
                for sequence in running:
                    sequence.computed = 0
            logits = self._prefill(running, cache) if prefilling else self._decode(running, cache)
            drawn = self.sampler(logits, running)
            seconds = time.perf_counter() - started
            if prefilling:
                self.stats.prompt_tokens += sum(s.prompt_length for s in running)
                self.stats.prefill_seconds += seconds
                self.stats.first_token_seconds = time.perf_counter() - running[-1].started
            else:
                self.stats.decode_tokens += len(running)
                self.stats.decode_seconds += seconds
            for sequence, token, logprob in zip(running, *drawn):
                yield sequence, sequence.append(token, logprob)
            running, prefilling = [s for s in running if not s.finish_reason], False

    def _prefill(self, sequences: list[Sequence], cache: KVCache) -> Tensor:
        """Computes all tokens that are not in the cache, in chunks; logits [S, V] after each sequence's last token."""
        last: dict[int, Tensor] = {}
        while work := self._chunk(sequences):
            hidden, step = self._forward(work, cache)
            for (sequence, _), row in zip(work, hidden[step.last_rows]):
                last[id(sequence)] = row
        return self.model.logits(torch.stack([last[id(s)] for s in sequences]))

    def _chunk(self, sequences: list[Sequence]) -> list[tuple[Sequence, int]]:
        """The next at most max_num_batched_tokens tokens, first sequences first; a lone last token counts as a decode."""
        left, work = self.max_num_batched_tokens, []
        for sequence in sequences:
            count = min(left, len(sequence.token_ids) - sequence.computed)
            if count:
                work.append((sequence, count))
                left -= count
        return sorted(work, key=lambda item: item[1] > 1 or item[0].computed == 0)

    def _decode(self, sequences: list[Sequence], cache: KVCache) -> Tensor:
        if not self.kv_cache:
            return self._prefill(sequences, cache)
        hidden, _ = self._forward([(sequence, 1) for sequence in sequences], cache)
        return self.model.logits(hidden)

    def _forward(self, work: list[tuple[Sequence, int]], cache: KVCache) -> tuple[Tensor, Step]:
        step = Step.of(work, self.block_size, self.device)
        hidden = self.model(step, cache)
        for sequence, count in work:
            sequence.computed += count
        return hidden, step

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _cache(self, num_blocks: int) -> KVCache:
        needed = num_blocks * self.block_size * self.config.kv_bytes_per_token(self.dtype)
        place = (self.device, "the KV cache", "lower max_new_tokens, max_num_seqs or max_model_len")
        require(needed, *place)
        with out_of_memory_is_an_error(needed, *place):
            return KVCache(self.config, num_blocks, self.block_size, self.dtype, self.device)


def resolve_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N"; raises Qwen3Error for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Qwen3Error(f"device {name!r} is unknown: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise Qwen3Error(f"device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Qwen3Error(f"device {name!r} is not available: PyTorch sees {torch.cuda.device_count()} GPUs here; use cpu")
    return device


def resolve_dtype(name: str, config: ModelConfig) -> torch.dtype:
    """ "auto" is the checkpoint's own dtype, bfloat16 where config.json names none."""
    if name == "auto":
        return config.dtype or torch.bfloat16
    if name not in DTYPES:
        raise Qwen3Error(f"dtype {name!r} is not supported: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_backend(name: str, device: torch.device) -> tuple[str, ModuleType]:
    """The name and the ops of a backend; only "auto" falls back."""
    if name not in ("auto", *kernels.BACKENDS):
        raise Qwen3Error(f"backend {name!r} is unknown: use auto, {', '.join(kernels.BACKENDS)}")
    if name == "auto":
        if device.type == "cuda":
            try:
                return "triton", kernels.backend("triton", device.type)
            except RuntimeError as error:
                log.warning("%s; running on the reference backend", error)
        return "reference", kernels.backend("reference")
    try:
        return name, kernels.backend(name, device.type)
    except RuntimeError as error:
        raise Qwen3Error(str(error)) from None
