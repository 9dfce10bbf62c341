"""How the next token is chosen: the parameters of a request, and the sampler of a batch."""

import math
import secrets
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import Qwen3Error

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
        self._check("top_k", int, lambda v: -1 <= v, "-1 or 0 (all tokens), or 1 and more")
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


class Sampler:
    """Draws one token for each sequence of a batch through a backend's `sample`."""

    def __init__(self, ops: ModuleType):
        self.ops = ops

    def __call__(self, logits: Tensor, sequences: list["Sequence"]) -> tuple[list[int], list[TokenLogprob | None]]:
        """logits float32 [S, V], row i for sequences[i] -> the token ids, and the log-probabilities that were asked for."""
        params = [s.params for s in sequences]
        device, vocab = logits.device, logits.shape[1]
        floats = torch.tensor([(p.temperature, p.top_p, p.min_p) for p in params], dtype=torch.float32, device=device)
        counts = [(p.top_k if 0 < p.top_k < vocab else vocab, p.seed, len(s.token_ids)) for p, s in zip(params, sequences)]
        temperature, top_p, min_p = floats.t().contiguous()
        top_k, seeds, positions = torch.tensor(counts, device=device).t().contiguous()
        scores = _penalised(logits, sequences)
        chosen = self.ops.sample(scores, temperature, top_k, top_p, min_p, seeds, positions)
        token_ids = chosen.tolist()
        logprobs: list[TokenLogprob | None] = [None] * len(sequences)
        for row, (p, token) in enumerate(zip(params, token_ids)):
            if p.logprobs is not None:
                logprobs[row] = _logprob(logits[row], token, p.logprobs)
        return token_ids, logprobs


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
        if p.repetition_penalty != 1:
            seen = torch.tensor(sequence.token_ids, device=logits.device).unique()
            values = out[row, seen]
            out[row, seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        answer = sequence.token_ids[sequence.prompt_length :]
        if answer:
            ids, counts = torch.tensor(answer, device=logits.device).unique(return_counts=True)
            out[row, ids] -= p.presence_penalty + p.frequency_penalty * counts
    return out
