"""`python -m qwen3` is the command `qwen3`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
