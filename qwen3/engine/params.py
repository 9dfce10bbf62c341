"""What a request asks of its answer: SamplingParams as the caller gives them, Sampling with every default filled in."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from ..config import values
from ..config.generation import GenerationDefaults
from ..errors import Qwen3Error


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


def _option(
    default: Any, check: Callable[[Any, str], Any], help: str, metavar: str | None = None, **settings: Any
) -> Any:
    """A field of SamplingParams: how its value is checked, and the help text of its flag."""
    return field(default=default, metadata={"check": check, "help": help, "metavar": metavar}, **settings)


def _number(low: float, high: float, wanted: str, above: bool = False) -> Callable[[Any, str], float]:
    return partial(values.number, low=low, high=high, wanted=wanted, above=above)


def _whole(low: int, high: int, wanted: str) -> Callable[[Any, str], int]:
    return partial(values.whole, low=low, high=high, wanted=wanted)


def _token_ids(value: Any, name: str) -> tuple[int, ...]:
    return tuple(values.token_ids(value, name))


def _logit_bias(value: Any, name: str) -> dict[int, float]:
    """Checks {token id: bias}; JSON writes the ids as strings."""
    if not isinstance(value, dict):
        values.refuse(value, name, "an object of token ids and numbers, such as {1234: -100}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        is_text = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10
        token_id = values.whole(int(key) if is_text else key, f"a token id of {name}", 0)
        if token_id in biases:
            raise Qwen3Error(f"{name} has token id {token_id} twice: leave one out")
        biases[token_id] = values.number(bias, f"{name}[{token_id}]", -100, 100)
    return biases


_LENGTH = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """The parameters of one request. None is "not said" for every one of them: the model's generation_config.json says
    it then, else sampling is greedy without a filter or a penalty.

    temperature: 0 is greedy.
    top_k: sample among the k most likely tokens; 0 or -1 keeps all.
    top_p: sample among the most likely tokens that hold this share of the probability.
    min_p: leave out tokens less likely than this share of the most likely one.
    repetition_penalty: divides the scores of tokens of prompt and answer (Keskar et al., 2019).
    presence_penalty, frequency_penalty: subtracted from the scores of tokens of the answer, once or per occurrence.
    max_new_tokens: the longest answer in tokens; None goes on to the end of the context.
    stop: texts that end the answer and are not part of it. The name of a special token is found although it is no text.
        Not looked for in the first min_tokens tokens. An empty list turns off those of generation_config.json.
    stop_token_ids: ids that end the answer, beside the model's own.
    ignore_eos: go on after the model's own end-of-text ids.
    seed: the same seed samples the same tokens, alone or in a batch.
    logprobs: how many of the most likely tokens to report beside each sampled one, as natural logarithms of the
        model's own distribution, before temperature, penalties and filters.
    min_tokens: no end-of-text id and no stop id is sampled before the answer has as many tokens.
    logit_bias: {token id: number}, added to the scores of these tokens; the keys may be strings, as in JSON.
    bad_words: texts that the answer must not hold, as the tokens that they are encoded to, with and without a space
        before them; the same text cut into other tokens is not found.
    no_repeat_ngram_size: no sequence of this many tokens comes twice in prompt and answer; 0 allows it.
    include_stop_str_in_output: the text holds the stop string that ended it, or the text of the stop token.
    skip_special_tokens: leave special tokens out of the text.

    Raises Qwen3Error for a value of another type or out of range.
    """

    temperature: float | None = _option(
        None, _number(0, 100, "0 (greedy) to 100"), "0 is greedy; higher is more random", "X"
    )
    top_k: int | None = _option(
        None,
        _whole(-1, _LENGTH, "-1 or 0 (all tokens), or 1 and more"),
        "sample among the K most likely tokens; 0 keeps all",
        "K",
    )
    top_p: float | None = _option(
        None,
        _number(0, 1, "above 0 and up to 1", above=True),
        "sample among the most likely tokens that hold this share of the probability",
        "X",
    )
    min_p: float | None = _option(
        None, _number(0, 1, "0 to 1"), "leave out tokens less likely than this share of the most likely one", "X"
    )
    repetition_penalty: float | None = _option(
        None,
        _number(0, 100, "above 0 and up to 100", above=True),
        "above 1 makes tokens of prompt and answer less likely",
        "X",
    )
    presence_penalty: float | None = _option(
        None, _number(-100, 100, "-100 to 100"), "taken off the score of every token of the answer", "X"
    )
    frequency_penalty: float | None = _option(
        None,
        _number(-100, 100, "-100 to 100"),
        "taken off the score of a token for each time it is in the answer",
        "X",
    )
    max_new_tokens: int | None = _option(
        None, _whole(1, _LENGTH, "1 or more"), "tokens to generate at most (default: what is left of the context)", "N"
    )
    stop: tuple[str, ...] | None = _option(None, values.texts, "end before this text; repeatable", "TEXT")
    stop_token_ids: tuple[int, ...] = _option((), _token_ids, "end with this token id; repeatable", "ID")
    ignore_eos: bool = _option(False, values.flag, "go on after the model's own end of text")
    seed: int | None = _option(
        None, _whole(-(2**63), 2**63 - 1, "a whole number of 64 bits"), "the same seed gives the same text", "N"
    )
    logprobs: int | None = _option(
        None, _whole(0, 100, "0 to 100"), "report this many of the most likely tokens beside each sampled one", "N"
    )
    min_tokens: int | None = _option(
        None, _whole(0, _LENGTH, "0 or more"), "tokens to generate before the answer may end", "N"
    )
    # Left out of the hash: a dict has none.
    logit_bias: Mapping[int, float] | None = _option(
        None, _logit_bias, "add a number to the score of a token", "ID=X", hash=False
    )
    bad_words: tuple[str, ...] | None = _option(
        None, values.texts, "a text that the answer must not hold; repeatable", "TEXT"
    )
    no_repeat_ngram_size: int | None = _option(
        None, _whole(0, _LENGTH, "0 (off) or more"), "no sequence of N tokens comes twice; 0 allows it", "N"
    )
    include_stop_str_in_output: bool = _option(False, values.flag, "keep the stop text that ended the answer")
    skip_special_tokens: bool = _option(True, values.flag, "show special tokens in the text")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            checked = option.default if value is None else option.metadata["check"](value, option.name)
            object.__setattr__(self, option.name, checked)
        if self.max_new_tokens is not None and (self.min_tokens or 0) > self.max_new_tokens:
            raise Qwen3Error(
                f"min_tokens is {self.min_tokens}, max_new_tokens {self.max_new_tokens}: lower one or raise the other"
            )

    def resolve(self, defaults: GenerationDefaults, bad_words: tuple[tuple[int, ...], ...] = ()) -> Sampling:
        """Fills in what was not said from the model's defaults. bad_words: the token ids of the field's texts."""

        def said(name: str) -> Any:
            value = getattr(self, name)
            return getattr(defaults, name) if value is None else value

        return Sampling(
            temperature=said("temperature"),
            top_k=said("top_k"),
            top_p=said("top_p"),
            min_p=said("min_p"),
            repetition_penalty=said("repetition_penalty"),
            presence_penalty=said("presence_penalty"),
            frequency_penalty=said("frequency_penalty"),
            seed=secrets.randbits(62) if self.seed is None else self.seed,
            min_tokens=said("min_tokens"),
            logit_bias=defaults.logit_bias if self.logit_bias is None else tuple(self.logit_bias.items()),
            bad_words=defaults.bad_words_ids if self.bad_words is None else bad_words,
            no_repeat_ngram_size=said("no_repeat_ngram_size"),
        )
