"""Ctrl-C while modules are imported."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process silently, with exit code 130.

    For imports alone, where nothing can be lost: a KeyboardInterrupt in half an import is swallowed, or comes out as
    another error. A process that ignores Ctrl-C goes on ignoring it.
    """
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
