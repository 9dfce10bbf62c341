"""Errors that the user can fix."""


class Qwen3Error(ValueError):
    """One line that says what is wrong, where, and what to do; the command line prints it and exits with 2."""


def one_line(error: Exception) -> str:
    """Names another library's exception and its message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
