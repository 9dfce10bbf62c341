"""What every kernel's output is held to: the numbers contract, and memory around it that stays untouched."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor

GUARD = 64  # elements before and behind a guarded tensor; keeps it aligned for 128-bit loads


def allowed_ratio(dtype: torch.dtype) -> float:
    """How many times the reference's own error a kernel may have.

    A kernel sums 16-bit values in float32, as the reference does, and rounds where the reference rounds: the errors are
    equal but for values that fall on the other side of a rounding. In float32 the order of the sums is the error.
    """
    return 2.0 if dtype == torch.float32 else 1.1


def ulps(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of each value to the next larger one of `dtype`."""
    magnitudes = values.abs().clamp(min=torch.finfo(dtype).tiny)
    return torch.finfo(dtype).eps * magnitudes.log2().floor().exp2()


def compare(
    actual: Tensor, exact64: Tensor, own_dtype_reference: Tensor, summed: float = 0.0, ratio: float | None = None
) -> tuple[str, float]:
    """What breaks the contract, "" where nothing does, and the ratio of the two RMS errors, 1 when both are exact.

    The contract: the error of `actual` is at most `ratio` (None: `allowed_ratio`) times that of the reference in the
    same dtype; NaN never passes. The largest error may be an ulp of the largest value more. In the root of the sum of
    squares a 16-bit kernel may round one value otherwise, so the square of that ulp comes to the sum. In float32 one
    rounding of a scale moves a whole row, so each value may be an ulp of its own further off. summed: where few sums
    may cancel, the largest sum of the magnitudes of their terms; rounding is relative to that, and so are the ulps.
    """
    assert exact64.dtype == torch.float64 and actual.dtype == own_dtype_reference.dtype
    assert actual.shape == exact64.shape == own_dtype_reference.shape
    assert bool(exact64.isfinite().all()), "the exact values must be finite"
    if not bool(actual.isfinite().all()):
        return f"{int((~actual.isfinite()).sum())} of {actual.numel()} values not finite", math.inf
    if not actual.numel():
        return "", 1.0
    error, reference_error = actual.double() - exact64, own_dtype_reference.double() - exact64
    own_ulps = ulps(exact64.abs().clamp(min=summed), actual.dtype)
    ulp, factor, broken = float(own_ulps.max()), ratio or allowed_ratio(actual.dtype), []
    for name, order in (("max", math.inf), ("root of squares", 2)):
        norm, reference_norm = (float(torch.linalg.vector_norm(e, order)) for e in (error, reference_error))
        if order == math.inf:
            bound, sum_ = factor * reference_norm + ulp, f"+ {ulp:.3g}"
        elif actual.dtype == torch.float32:
            slack = float(own_ulps.norm())
            bound, sum_ = factor * reference_norm + slack, f"+ {slack:.3g}"
        else:
            bound, sum_ = math.hypot(factor * reference_norm, ulp), f"and {ulp:.3g} in squares"
        if not norm <= bound:
            broken.append(f"{name} error {norm:.3g} > {bound:.3g} = {factor:g} * {reference_norm:.3g} {sum_}")
    return "; ".join(broken), norm / reference_norm if reference_norm else float(norm > 0) + 1.0


def assert_contract(
    actual: Tensor, exact64: Tensor, own_dtype_reference: Tensor, summed: float = 0.0, ratio: float | None = None
) -> float:
    """Fails with what breaks the contract of `compare`; returns the ratio of the two RMS errors."""
    broken, found = compare(actual, exact64, own_dtype_reference, summed, ratio)
    assert not broken, broken
    return found


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
