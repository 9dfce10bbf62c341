"""The check of barriers reports a missing one, and nothing else."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterError

from .barriers import barriers_checked

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs the interpreter")


@triton.jit
def reversed_kernel(out_ptr, scratch_ptr, x_ptr, BARRIER: tl.constexpr, SHIFT: tl.constexpr):
    """out = x in reverse order within each block of 8, through scratch memory, read SHIFT elements further."""
    lane = tl.arange(0, 8)
    begin = tl.program_id(0) * 8
    tl.store(scratch_ptr + begin + lane, tl.load(x_ptr + begin + lane), mask=lane < 7)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out_ptr + begin + lane, tl.load(scratch_ptr + begin + 7 - lane + SHIFT))


def launch(barrier: bool, shift: int = 0) -> list[float]:
    x = torch.arange(16.0)
    out, scratch = torch.zeros(16), torch.full((32,), -1.0)
    reversed_kernel[(2,)](out, scratch, x, barrier, shift)
    return out.tolist()


def test_a_missing_barrier_is_reported() -> None:
    with barriers_checked(), pytest.raises(InterpreterError, match="reads what it has written without a barrier"):
        launch(False)


def test_a_barrier_and_other_places_are_not() -> None:
    assert launch(True)[:8] == [-1.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    launch(False, shift=16)  # nothing that this program has written
    launch(False, shift=8)  # what another one writes is not of this program
