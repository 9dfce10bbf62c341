"""Errors that the user can fix, and text from outside made safe to show."""

from collections.abc import Iterable
from difflib import get_close_matches


class Qwen3Error(ValueError):
    """One line that says what is wrong, where, and what to do; the command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


def shown(text: str, limit: int = 2000) -> str:
    """Returns text in one line that cannot steer a terminal: escapes what is not printable, cuts what is too long."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}..."


def brief(value: object, limit: int = 80) -> str:
    """Returns a value as a message shows it: its repr, cut."""
    try:
        return shown(repr(value), limit)
    except Exception:  # a number of too many digits, a nesting too deep, an object whose repr raises
        return f"a {type(value).__name__} that is too large to show"


def one_line(error: BaseException) -> str:
    """Names another library's exception and its message in one line, cut: it may quote a whole file."""
    return shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


def closest(word: str, names: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Returns the name that a mistyped word is likely to mean, None if none is like it."""
    return next(iter(get_close_matches(word[:100], list(names), 1, cutoff)), None)


def counted(count: int, thing: str) -> str:
    """Returns a count with its noun: "1 step", "2,000 steps"."""
    return f"{count:,} {thing}{'s' * (count != 1)}"
