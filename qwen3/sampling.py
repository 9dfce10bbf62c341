"""How the next token is chosen: the parameters of a request, and the sampler of a batch."""

import math
import secrets
from collections import Counter
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import Qwen3Error
from .step import to_device

if TYPE_CHECKING:
    from .sequence import Sequence

# Fields of generation_config.json that say nothing about which token comes next.
_HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "max_new_tokens", "max_length", "use_cache",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "_from_model_config",
    "output_logits", "cache_implementation", "trust_remote_code", "chat_format", "max_window_size",
}  # fmt: skip
# What transformers writes for switches that are off.
_NEUTRAL = (None, False, 0, 1, 1.0, [], {}, 50)


@dataclass(frozen=True)
class SamplingParams:
    """What one request wants; None means what the model's generation_config.json says, else greedy and no filter.

    temperature 0 is greedy. top_k 0 or -1 keeps all tokens. stop: text that ends the answer and is not printed.
    seed: the same seed draws the same tokens, alone or in a batch. logprobs: how many of the most likely tokens to
    report beside each chosen one, as natural logarithms of the model's own distribution (before temperature,
    penalties and filters). repetition_penalty counts prompt and answer (Keskar et al., 2019), presence_penalty and
    frequency_penalty the answer alone. Raises Qwen3Error for a value that makes no sense.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check("temperature", float, lambda v: 0 <= v <= 100, "0 (greedy) to 100")
        self._check("top_k", int, lambda v: v >= -1, "-1 or 0 (all tokens), or 1 and more")
        self._check("top_p", float, lambda v: 0 < v <= 1, "above 0 and up to 1")
        self._check("min_p", float, lambda v: 0 <= v <= 1, "0 to 1")
        self._check("repetition_penalty", float, lambda v: 0 < v <= 100, "above 0 and up to 100")
        self._check("presence_penalty", float, lambda v: -100 <= v <= 100, "-100 to 100")
        self._check("frequency_penalty", float, lambda v: -100 <= v <= 100, "-100 to 100")
        self._check("max_new_tokens", int, lambda v: v >= 1, "1 or more")
        self._check("seed", int, lambda v: -(2**63) <= v < 2**63, "a whole number of 64 bits")
        self._check("logprobs", int, lambda v: 0 <= v <= 100, "0 to 100")
        if not all(isinstance(s, str) and s for s in stop):
            raise Qwen3Error("stop: each stop string must be text that is not empty")
        if not all(isinstance(i, int) and i >= 0 for i in self.stop_token_ids):
            raise Qwen3Error("stop_token_ids: each must be a token id, 0 or more")

    def _check(self, name: str, kind: type, allowed, wanted: str) -> None:
        value = getattr(self, name)
        optional = type(self).__dataclass_fields__[name].default is None
        if value is None and optional:
            return
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not allowed(value):
            raise Qwen3Error(f"{name} is {value!r}: it must be {wanted}")

    def with_defaults(self, generation: dict, source: str = "generation_config.json") -> "SamplingParams":
        """The same with every None but logprobs filled in. generation: the values of generation_config.json.

        Raises Qwen3Error for a field that would change the tokens and is not implemented.
        """
        known = {f.name for f in fields(self)} | _HARMLESS | {"do_sample"}
        for key, value in generation.items():
            if key not in known and value not in _NEUTRAL:
                raise Qwen3Error(f"{source}: field {key!r} = {value!r} is not supported")
        sampled = generation.get("do_sample", "temperature" in generation)
        defaults = {
            "temperature": generation.get("temperature", 1.0) if sampled else 0.0,
            "top_k": generation.get("top_k", 0) if sampled else 0,
            "top_p": generation.get("top_p", 1.0) if sampled else 1.0,
            "repetition_penalty": generation.get("repetition_penalty", 1.0),
            "seed": secrets.randbits(62),
        }
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None and v is not None}
        return replace(self, **missing)


@dataclass(frozen=True)
class TokenLogprob:
    """The chosen token's log-probability, and the most likely tokens with theirs, most likely first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Draws:
    """What a backend's `sample` needs beside the logits, a value for each of S draws, on the device."""

    temperature: Tensor  # [S] float32
    top_k: Tensor  # [S] int64, the vocabulary's size keeps all
    top_p: Tensor  # [S] float32
    min_p: Tensor  # [S] float32
    seeds: Tensor  # [S] int64
    positions: Tensor  # [S] int64, the place in its sequence of each token to be drawn

    @classmethod
    def of(cls, draws: list[tuple[SamplingParams, int]], vocab_size: int, device: torch.device) -> "Draws":
        """draws: parameters and position of each."""
        params = [p for p, _ in draws]
        floats = [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]]
        top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
        temperature, top_p, min_p = to_device(floats, device, torch.float32)
        top_k, seeds, positions = to_device([top_k, [p.seed for p in params], [at for _, at in draws]], device)
        return cls(temperature, top_k, top_p, min_p, seeds, positions)


class Sampler:
    """Draws one token for each sequence of a batch through a backend's `sample`; makes no GPU wait."""

    def __init__(self, ops: ModuleType):
        self.ops = ops

    def __call__(self, logits: Tensor, draws: Draws, sequences: list["Sequence"]) -> Tensor:
        """logits float32 [S, V], row i for draw i and sequences[i] -> token ids [S] int64, on the device."""
        d = draws
        scores = _penalised(logits, sequences)
        return self.ops.sample(scores, d.temperature, d.top_k, d.top_p, d.min_p, d.seeds, d.positions)

    def logprobs(self, logits: Tensor, sequences: list["Sequence"], token_ids: list[int]) -> list[TokenLogprob | None]:
        """The log-probabilities that each sequence asked for, None for those that asked for none."""
        wanted = [sequence.params.logprobs for sequence in sequences]
        return [
            None if count is None else _logprob(logits[row], token, count)
            for row, (count, token) in enumerate(zip(wanted, token_ids))
        ]


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    values = logits.log_softmax(-1)
    top = values.topk(min(count, len(values)))
    return TokenLogprob(token, values[token].item(), tuple(zip(top.indices.tolist(), top.values.tolist())))


def _penalised(logits: Tensor, sequences: list["Sequence"]) -> Tensor:
    """Repetition penalty first, as in transformers, then presence and frequency; rows without penalties stay as they are."""
    out = logits
    for row, sequence in enumerate(sequences):
        p = sequence.params
        if p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0:
            continue
        out = out.clone() if out is logits else out
        # A token that occurs twice is read and written twice, with the same value.
        if p.repetition_penalty != 1:
            seen = to_device(sequence.token_ids, logits.device)
            values = out[row, seen]
            out[row, seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        answer = sequence.token_ids[sequence.prompt_length :]
        if answer:
            counts = Counter(answer)
            ids = to_device(list(counts), logits.device)
            counted = to_device(list(counts.values()), logits.device)
            out[row, ids] -= p.presence_penalty + p.frequency_penalty * counted
    return out
