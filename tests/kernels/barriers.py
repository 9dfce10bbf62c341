"""Says where a program reads from memory what it has written, without a barrier between.

The interpreter runs a program as one thread. On a GPU another thread of it reads, and only tl.debug_barrier() makes it
wait for the one that writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder


@contextmanager
def barriers_checked() -> Iterator[None]:
    """Makes every such read an IndexError while it is entered."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    program: Any = None
    written: list[np.ndarray] = []

    def addresses(builder: Any, pointers: Any, mask: Any) -> np.ndarray:
        nonlocal program
        if builder.grid_idx is not program:
            program = builder.grid_idx
            written.clear()
        # A descriptor's mask is a bare array on 3.6.
        return pointers.data[np.broadcast_to(np.asarray(mask.data), pointers.data.shape)]

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        read = addresses(self, pointers, mask)
        if written and np.isin(read, np.concatenate(written)).any():
            raise IndexError(f"program {self.grid_idx} reads what it has written without a barrier between")
        return load(self, pointers, mask, *rest, **named)

    def recording_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        written.append(addresses(self, pointers, mask).ravel())
        return store(self, pointers, value, mask, *rest, **named)

    replacements = {
        "create_masked_load": checked_load,
        "create_masked_store": recording_store,
        "create_barrier": lambda self: written.clear(),
    }
    with patch.multiple(InterpreterBuilder, **replacements):
        yield
