"""`python -m qwen3` and the command `qwen3`: the process around `cli.main.main`."""

import os
import signal
import sys
from typing import NoReturn

from .cli.interrupt import ends_at_once


def entry() -> NoReturn:
    """Runs the command line; Ctrl-C while modules are imported ends the process without a traceback."""
    with ends_at_once():
        _open_closed_streams()
        from .cli.main import main
    try:
        try:
            code = main(then_exits=True)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # a second Ctrl-C while the first ended the command
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Points closed standard streams at /dev/null, so that the next opened file does not take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    entry()
