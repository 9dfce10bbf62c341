"""The sampling defaults of a model, from generation_config.json.

A key that is null says nothing, as in transformers. Every other key is used, has no effect, or is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Qwen3Error, brief
from . import values
from .files import read_json_if_there

FILE = "generation_config.json"

# Keys that `generation_defaults` reads.
USED = {
    "bad_words_ids", "do_sample", "eos_token_id", "frequency_penalty", "max_length", "max_new_tokens", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "presence_penalty", "repetition_penalty", "sequence_bias", "stop_strings",
    "suppress_tokens", "temperature", "top_k", "top_p",
}  # fmt: skip

# Keys that change no token of an answer, whatever their value.
NO_EFFECT = {
    # What transformers returns beside the tokens, where its cache lies, and what it compiles.
    "cache_config", "cache_implementation", "compile_config", "continuous_batching_config", "disable_compile",
    "low_memory", "max_cache_len", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "prefill_chunk_size", "return_dict_in_generate", "return_legacy_cache", "use_cache",
    # Speculative decoding, which keeps the distribution of the answer.
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "is_assistant",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "prompt_lookup_num_tokens",
    "speculation_type", "target_lookbehind", "use_mtp",
    # Beam search alone reads these, and num_beams is 1.
    "diversity_penalty", "early_stopping", "length_penalty",
    # Padding and encoders; the scores change by a constant; what replaces scores that are not finite.
    "bos_token_id", "decoder_start_token_id", "pad_token_id", "remove_invalid_values", "renormalize_logits",
    # Where the file comes from.
    "_commit_hash", "_from_model_config", "_original_object_hash", "chat_format", "max_window_size",
    "transformers_version", "trust_remote_code",
}  # fmt: skip

# Keys that change the answer and are not implemented: only these values and null are accepted.
ONLY: dict[str, tuple] = {
    "assistant_ensemble_weight": (), "begin_suppress_tokens": ([],), "constraints": ([],), "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1.0,), "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,), "exponential_decay_length_penalty": (), "force_words_ids": ([],), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "guidance_scale": (1.0,), "max_time": (), "min_length": (0,), "num_beam_groups": (1,),
    "num_beams": (1,), "num_return_sequences": (1,), "penalty_alpha": (0.0,),
    "token_healing": (False,), "top_h": (), "typical_p": (1.0,), "watermarking_config": ({},),
}  # fmt: skip

# What an unknown key may hold: it is off.
_OFF: tuple = (False, [], {}, "")

# transformers' own max_length, which stands in files that write out every default.
_DEFAULT_MAX_LENGTH = 20


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json says about answers; a field that it leaves out changes nothing.

    temperature: 0 (greedy) unless do_sample is true, or left out where a temperature is named.
    top_k, top_p, min_p: as the file says, also where it is greedy: they filter once a request sets a temperature. The
        top_k of a file with do_sample true that names none is 50, transformers' default.
    max_new_tokens: the longest answer; a prompt that leaves less room shortens it.
    max_length: the most tokens of prompt and answer together, where no max_new_tokens is said by file or request;
        20, transformers' default in files that write out every key, says nothing.
    min_tokens: min_new_tokens of the file.
    bad_words_ids: sequences that the answer must not hold: bad_words_ids and suppress_tokens.
    logit_bias: (token id, what is added to its score): the sequence_bias of single tokens.
    stop: stop_strings of the file; a request with stop strings of its own has those alone.
    eos_token_ids: None where the file names none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] | None = None


def generation_defaults(folder: Path, vocab_size: int = 2**31) -> GenerationDefaults:
    """Reads generation_config.json of a folder, if it has one; vocab_size bounds the token ids.

    Raises Qwen3Error for a value of the wrong kind and for a key that would change the answer and is not supported.
    """
    path = Path(folder) / FILE
    return defaults_from(read_json_if_there(path), str(path), vocab_size)


def defaults_from(given: dict[str, Any], source: str = FILE, vocab_size: int = 2**31) -> GenerationDefaults:
    """Returns the defaults from the values of the file; messages name it `source`."""
    refuse_unsupported(given, source)

    def value(key: str, default: Any, check: Callable, *bounds: Any, **more: Any) -> Any:
        found = given.get(key)
        return default if found is None else check(found, f"{source}: {key}", *bounds, **more)

    temperature = value("temperature", None, values.number, 0, 100)
    sampled = value("do_sample", temperature is not None, values.flag)
    max_length = value("max_length", None, values.whole, 1)
    eos = value("eos_token_id", None, eos_ids, vocab_size)
    ends = [(i,) for i in eos or ()]
    bad_words = value("bad_words_ids", (), _sequences, vocab_size)
    suppressed = value("suppress_tokens", (), values.token_ids, vocab_size)
    return GenerationDefaults(
        temperature=(1.0 if temperature is None else temperature) if sampled else 0.0,
        top_k=max(value("top_k", 50 if given.get("do_sample") else 0, values.whole, -1), 0),
        # Where transformers takes 0, it keeps the most likely token.
        top_p=max(value("top_p", 1.0, values.number, 0, 1), 1e-6),
        min_p=value("min_p", 0.0, values.number, 0, 1),
        repetition_penalty=value("repetition_penalty", 1.0, values.number, 0, 100, above=True),
        presence_penalty=value("presence_penalty", 0.0, values.number, -100, 100),
        frequency_penalty=value("frequency_penalty", 0.0, values.number, -100, 100),
        max_new_tokens=value("max_new_tokens", None, values.whole, 1),
        max_length=None if max_length == _DEFAULT_MAX_LENGTH else max_length,
        min_tokens=value("min_new_tokens", 0, values.whole, 0),
        no_repeat_ngram_size=value("no_repeat_ngram_size", 0, values.whole, 0),
        # As transformers: end-of-text ids are not bad words, but may be suppressed.
        bad_words_ids=tuple(w for w in bad_words if w not in ends) + tuple((i,) for i in suppressed),
        logit_bias=value("sequence_bias", (), _biases, vocab_size),
        stop=value("stop_strings", (), values.texts),
        eos_token_ids=eos,
    )


def refuse_unsupported(given: dict[str, Any], source: str) -> None:
    """Raises Qwen3Error for a key that would change the answer and is not supported."""
    for key, value in given.items():
        # A name with an underscore before it is of the tool that wrote the file.
        if value is None or key in USED or key in NO_EFFECT or key.startswith("_"):
            continue
        allowed = ONLY.get(key, _OFF)
        if not any(same(value, v) for v in allowed):
            wanted = f", only {brief(allowed[0])}" if allowed and allowed is not _OFF else ""
            raise Qwen3Error(f"{source}: field {brief(key)} = {brief(value)} is not supported{wanted}: remove it")


def same(value: Any, neutral: Any) -> bool:
    """Whether two values of JSON are equal; true is not 1, and false is not 0."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def eos_ids(value: Any, name: str, vocab_size: int) -> tuple[int, ...]:
    """End-of-text ids: a token id or a list of them."""
    ids = value if isinstance(value, list) else [value]
    wanted = f"null, a token id from 0 to {vocab_size - 1}, or a list of them"
    return tuple(values.whole(i, name, 0, vocab_size - 1, wanted) for i in ids)


def _sequences(value: Any, name: str, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list):
        values.refuse(value, name, "a list of lists of token ids")
    found = tuple(tuple(values.token_ids(ids, f"{name}[{i}]", vocab_size)) for i, ids in enumerate(value))
    if () in found:
        values.refuse(value, name, "a list of lists of token ids, none of them empty")
    return found


def _biases(value: Any, name: str, vocab_size: int) -> tuple[tuple[int, float], ...]:
    wanted = "a list of [[token id], number]: sequences of more than one token are not supported"
    if not isinstance(value, list):
        values.refuse(value, name, wanted)
    found = {}
    for i, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], list) or len(pair[0]) != 1:
            values.refuse(pair, f"{name}[{i}]", wanted)
        token = values.whole(pair[0][0], f"{name}[{i}]", 0, vocab_size - 1)
        found[token] = values.number(pair[1], f"{name}[{i}]", -1e6, 1e6)
    return tuple(found.items())
