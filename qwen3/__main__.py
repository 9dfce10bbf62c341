"""`python -m qwen3` is the command `qwen3`."""

from .cli.main import entry

if __name__ == "__main__":
    entry()
