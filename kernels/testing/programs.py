"""Chosen programs of a launch in the interpreter, so that a grid of a large GPU costs nothing.

Tensors of more than 2^31 elements cost nothing either: memory that no program touches is never there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from triton.runtime import interpreter as stock

Program = tuple[int, int, int]


@contextmanager
def only(choose: Callable[[Program], list[Program]]) -> Iterator[None]:
    """Within, a launch runs the programs that `choose` picks from its grid, which a kernel sees whole.

    Outside of the interpreter every program runs.
    """
    builder, call = stock.InterpreterBuilder, stock.GridExecutor.__call__
    set_grid_dim, set_grid_idx = builder.set_grid_dim, builder.set_grid_idx

    def run(self, *args, **kwargs) -> None:
        grid = (*self.grid, 1, 1)[:3]
        programs = choose(grid)
        self.grid = (len(programs),)

        def whole(self, *shortened: int) -> None:
            set_grid_dim(self, *grid)

        def chosen(self, index: int, *rest: int) -> None:
            set_grid_idx(self, *programs[index])

        with patch.object(builder, "set_grid_dim", whole), patch.object(builder, "set_grid_idx", chosen):
            call(self, *args, **kwargs)

    with patch.object(stock.GridExecutor, "__call__", run):
        yield
