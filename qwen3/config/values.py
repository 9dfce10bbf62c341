"""Checks of single values from JSON files, the command line and callers: each returns the value or raises Qwen3Error.

name: what the message calls the value, with its file where it has one.
"""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

from ..errors import Qwen3Error, brief

_MOST_IDS = 10**7


def refuse(value: Any, name: str, wanted: str) -> NoReturn:
    raise Qwen3Error(f"{name} is {brief(value)}: it must be {wanted}")


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        refuse(value, name, "true or false")
    return value


def whole(value: Any, name: str, low: int, high: int = 2**31 - 1, wanted: str = "") -> int:
    """A whole number of low to high; integers of NumPy and PyTorch are taken, true and false are not."""
    wanted = wanted or f"a whole number from {low} to {high}"
    # An array of one number is a list of it.
    is_flag = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        index = None if is_flag or getattr(value, "ndim", None) else operator.index(value)
    except Exception:  # a tensor of several values raises ValueError
        index = None
    if index is None or not low <= index <= high:
        refuse(value, name, wanted)
    return index


def number(value: Any, name: str, low: float, high: float, wanted: str = "", above: bool = False) -> float:
    """A finite number of low to high, NumPy's too; above: `low` itself is refused."""
    wanted = wanted or f"a number {'above' if above else 'from'} {low:g} {'up ' * above}to {high:g}"
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        refuse(value, name, wanted)
    # Compared before it is converted: a whole number may be too large for a float.
    if not low <= value <= high or (above and value == low) or not math.isfinite(value):
        refuse(value, name, wanted)
    return float(value)


def text(value: Any, name: str, empty: bool = False) -> str:
    """Text that is valid Unicode and, unless `empty`, has at least one character."""
    wanted = "text" if empty else "text that is not empty"
    if not isinstance(value, str) or not (value or empty):
        refuse(value, name, wanted)
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(value, name, "text without lone surrogates")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A text, or a list of texts, none of them empty."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        refuse(value, name, "text or a list of texts")
    return tuple(text(item, f"{name}[{i}]") for i, item in enumerate(value))


def listed(value: Any) -> Any:
    """The list in a NumPy array or a tensor; any other value as it is."""
    if not hasattr(value, "tolist") or isinstance(value, type):
        return value
    try:
        return value.tolist()
    except Exception:  # a tensor without data
        return value


def token_ids(value: Any, name: str, vocab_size: int = 2**31) -> list[int]:
    """A list, NumPy array or tensor of token ids, copied."""
    items = listed(value)
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(items, Sequence):
        refuse(value, name, "a list of token ids")
    try:
        too_many = len(items) > _MOST_IDS
    except OverflowError:  # a range of more than 2^63
        too_many = True
    if too_many:
        raise Qwen3Error(f"{name} has more than {_MOST_IDS} token ids")
    items = list(items)
    if all(type(item) is int and 0 <= item < vocab_size for item in items):
        return items
    return [whole(item, f"{name}[{i}]", 0, vocab_size - 1) for i, item in enumerate(items)]
