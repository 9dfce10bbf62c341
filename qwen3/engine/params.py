"""What a request asks of its answer: SamplingParams as the caller gives them, Sampling with every default filled in."""

import math
import secrets
from dataclasses import dataclass, fields

from ..errors import Qwen3Error

# Fields of generation_config.json that do not change which token comes next.
_HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "max_new_tokens", "max_length", "use_cache",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "_from_model_config",
    "output_logits", "cache_implementation", "trust_remote_code", "chat_format", "max_window_size",
}  # fmt: skip
# What transformers writes for switches that are off.
_NEUTRAL: tuple = (None, False, 0, 1, 1.0, [], {}, 50)


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are sampled, every value known."""

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 and -1 keep all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    min_tokens: int = 0  # tokens before an end-of-text or stop id may be sampled
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its score)
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of token ids that the answer must not hold
    no_repeat_ngram_size: int = 0  # 0 allows every repetition

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the scores."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True)
class SamplingParams:
    """The parameters of one request; None takes the model's generation_config.json, else greedy and no filter.

    temperature: 0 is greedy.
    top_k: sample among the k most likely tokens; 0 or -1 keeps all.
    top_p: sample among the most likely tokens that hold this share of the probability.
    min_p: leave out tokens less likely than this share of the most likely one.
    repetition_penalty: divides the scores of tokens of prompt and answer (Keskar et al., 2019).
    presence_penalty, frequency_penalty: subtracted from the scores of tokens of the answer, once or per occurrence.
    max_new_tokens: the longest answer in tokens.
    stop: texts that end the answer and are not part of it.
    stop_token_ids: ids that end the answer, beside the model's own.
    ignore_eos: go on after the model's own end-of-text ids.
    seed: the same seed samples the same tokens, alone or in a batch.
    logprobs: how many of the most likely tokens to report beside each sampled one, as natural logarithms of the
        model's own distribution, before temperature, penalties and filters.

    Raises Qwen3Error for a value out of range.
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

    def __post_init__(self) -> None:
        for name, wanted in (("stop", "text or a list of texts"), ("stop_token_ids", "a list of token ids")):
            if not isinstance(getattr(self, name), (list, tuple, str) if name == "stop" else (list, tuple)):
                raise Qwen3Error(f"{name} is {getattr(self, name)!r}: it must be {wanted}")
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
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not allowed(value):
            raise Qwen3Error(f"{name} is {value!r}: it must be {wanted}")

    def resolve(self, generation: dict, source: str = "generation_config.json") -> Sampling:
        """Fills in every None. generation: the values of generation_config.json, which `source` names.

        Raises Qwen3Error for a field that would change the tokens and is not supported.
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
        names = [f.name for f in fields(Sampling)]
        given = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return Sampling(**{name: defaults[name] if given[name] is None else given[name] for name in given})
