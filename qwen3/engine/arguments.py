"""Checks the prompts and parameters of a call, and pairs them."""

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any, TypeAlias

from torch import Tensor

from ..config import values
from ..errors import Qwen3Error
from .params import SamplingParams

# Token ids may stand in a NumPy array or a tensor, too.
Prompt: TypeAlias = str | Sequence[int]
Prompts: TypeAlias = Prompt | Sequence[str] | Sequence[Sequence[int]]
Params: TypeAlias = SamplingParams | Sequence[SamplingParams | None] | None

_MOST_PROMPTS = 10**7  # of an iterator, which may be endless
_NO_LISTS = (bytes, bytearray, memoryview, Mapping, Set, type)


def prompt_list(prompts: Any) -> list[Any]:
    """Returns the unchecked prompts of one call: given as one text, the token ids of one prompt, or a list of these."""
    if isinstance(prompts, str):
        return [prompts]
    listed = None if isinstance(prompts, _NO_LISTS) or _is_nested(prompts) else values.listed(prompts)
    _refuse_tokenized(prompts, "prompts")
    if not isinstance(listed, Iterable):
        values.refuse(prompts, "prompts", "a text, a list of texts, or lists of token ids; LLM.chat takes messages")
    if not isinstance(listed, Sequence):
        listed = list(islice(listed, _MOST_PROMPTS + 1))
        if len(listed) > _MOST_PROMPTS:
            raise Qwen3Error(f"prompts has more than {_MOST_PROMPTS} items: give them in parts")
    return [listed] if listed and _is_token_id(listed[0]) else list(listed)


def params_list(params: Any, count: int) -> list[SamplingParams]:
    """Returns checked parameters for each of `count` prompts, given once for all or in a list."""
    listed = params if isinstance(params, (list, tuple)) else [params] * count
    checked = [check_params(item, f"params[{i}]" if listed is params else "params") for i, item in enumerate(listed)]
    if len(listed) != count:
        raise Qwen3Error(f"{len(listed)} SamplingParams for {count} prompts: give one for all or one for each")
    return checked


def check_params(params: Any, name: str = "params") -> SamplingParams:
    """Checks the parameters of one prompt; None leaves every field unset."""
    if params is not None and not isinstance(params, SamplingParams):
        values.refuse(params, name, "SamplingParams, one for all prompts or a list with one for each")
    return params or SamplingParams()


def prompt_ids(prompt: Any, name: str, vocab_size: int, longest: int) -> list[int]:
    """Checks and copies the token ids of one prompt."""
    _refuse_tokenized(prompt, name)
    if isinstance(prompt, (*_NO_LISTS, str)) or _is_nested(prompt):
        values.refuse(prompt, name, "a list of token ids; LLM.generate takes texts, LLM.chat messages")
    try:
        length = len(prompt)
    except Exception:  # a range of more than 2^63, a nested tensor
        values.refuse(prompt, name, "a text or a list of token ids")
    # Before the ids are read: a range may be huge.
    if length > longest:
        raise Qwen3Error(
            f"{name} has {length} tokens, the context has room for {longest}: shorten it or raise max_model_len"
        )
    return values.token_ids(prompt, name, vocab_size)


def _refuse_tokenized(value: Any, name: str) -> None:
    """Refuses what transformers' tokenizers return: it may hold padding, and more than ids."""
    if isinstance(value, Mapping) and "input_ids" in value:
        raise Qwen3Error(f"{name}: token ids are needed, not what a tokenizer returns: give its input_ids")


def _is_token_id(value: Any) -> bool:
    if isinstance(value, (bool, type)) or _is_nested(value):
        return False
    return hasattr(value, "__index__") and not getattr(value, "ndim", 0)


def _is_nested(value: Any) -> bool:
    """Whether a value is a nested tensor, which has no length."""
    return isinstance(value, Tensor) and value.is_nested
