"""What a user can mend."""


class Qwen3Error(ValueError):
    """One line that says what is wrong, where, and what to do; the command line prints it and exits with 2."""
