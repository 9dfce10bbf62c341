"""What every kernel's output is held to: the numbers contract, and memory around it that stays untouched."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor

GUARD = 64  # elements before and behind a guarded tensor; keeps it aligned for 128-bit loads


def compare(actual: Tensor, exact64: Tensor, own_dtype_reference: Tensor, summed: float = 0.0) -> tuple[str, float]:
    """What breaks the contract, "" where nothing does, and the ratio of the two RMS errors, 1 when both are exact.

    The contract: the error of `actual` is at most twice that of the reference in the same dtype, plus one ulp; NaN
    never passes. Held for the largest error and for the root of the sum of squares. The ulp is of the largest value. In
    the second norm a single element may be off by it; in float32, where the kernel is no wider than the reference and
    one rounding of a scale moves a whole row, every element. summed: where few sums may cancel, the largest sum of the
    magnitudes of their terms; rounding is relative to that, and so is the ulp.
    """
    assert exact64.dtype == torch.float64 and actual.dtype == own_dtype_reference.dtype
    assert actual.shape == exact64.shape == own_dtype_reference.shape
    assert bool(exact64.isfinite().all()), "the exact values must be finite"
    if not bool(actual.isfinite().all()):
        return f"{int((~actual.isfinite()).sum())} of {actual.numel()} values not finite", math.inf
    if not actual.numel():
        return "", 1.0
    error, reference_error = actual.double() - exact64, own_dtype_reference.double() - exact64
    largest = max(float(exact64.abs().max()), summed)
    ulp = torch.finfo(actual.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
    off_by_one = actual.numel() if actual.dtype == torch.float32 else 1
    broken = []
    for name, order, slack in (("max", math.inf, ulp), ("root of squares", 2, ulp * math.sqrt(off_by_one))):
        norm, reference_norm = (float(torch.linalg.vector_norm(e, order)) for e in (error, reference_error))
        bound = 2 * reference_norm + slack
        if not norm <= bound:
            broken.append(f"{name} error {norm:.3g} > {bound:.3g} = 2 * {reference_norm:.3g} + {slack:.3g}")
    return "; ".join(broken), norm / reference_norm if reference_norm else float(norm > 0) + 1.0


def assert_contract(actual: Tensor, exact64: Tensor, own_dtype_reference: Tensor, summed: float = 0.0) -> float:
    """Fails with what breaks the contract of `compare`; returns the ratio of the two RMS errors."""
    broken, ratio = compare(actual, exact64, own_dtype_reference, summed)
    assert not broken, broken
    return ratio


def _poison(dtype: torch.dtype) -> float | int:
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min


def guarded(tensor: Tensor) -> Tensor:
    """A contiguous copy with GUARD poisoned elements on either side of it, which `assert_guards` looks at."""
    n = tensor.numel()
    buffer = torch.full((n + 2 * GUARD,), _poison(tensor.dtype), dtype=tensor.dtype, device=tensor.device)
    buffer[GUARD : GUARD + n] = tensor.flatten()
    return buffer[GUARD : GUARD + n].view(tensor.shape)


def assert_guards(tensor: Tensor) -> None:
    """Nothing was written beside a tensor from `guarded`."""
    buffer = tensor.new_empty(0).set_(tensor.untyped_storage())
    edges = torch.cat((buffer[:GUARD], buffer[GUARD + tensor.numel() :]))
    untouched = edges.isnan() if edges.dtype.is_floating_point else edges == _poison(edges.dtype)
    assert len(edges) == 2 * GUARD and bool(untouched.all()), "written outside the tensor"


class _PoisonedTorch:
    """`torch` for a kernel module, whose new tensors hold NaN (the least integer) between guards."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def empty(self, *size, **options) -> Tensor:
        return self.empty_like(torch.empty(*size, **options))

    def empty_like(self, like: Tensor, **options) -> Tensor:
        new = torch.empty_like(like, **options)
        self.made.append(guarded(new.fill_(_poison(new.dtype))))
        return self.made[-1]


@contextmanager
def poisoned_outputs(*modules: ModuleType) -> Iterator[None]:
    """Within, what these modules get from torch.empty and empty_like is poisoned; on leaving, guards must hold."""
    poisoned = _PoisonedTorch()
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "torch", poisoned))
        yield
    for tensor in poisoned.made:
        assert_guards(tensor)
