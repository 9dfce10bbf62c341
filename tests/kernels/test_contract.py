"""The numbers contract itself: what passes, what does not, and what is said about it."""

import pytest
import torch

from qwen3_kernels.testing.contract import assert_contract, compare, ulps

GENERATOR = torch.Generator().manual_seed(0)
EXACT = torch.randn(1000, dtype=torch.float64, generator=GENERATOR)
NOISE = torch.rand(1000, dtype=torch.float64, generator=GENERATOR) - 0.5


@pytest.mark.parametrize(
    "dtype, factor, within",
    [
        (torch.float32, 0.0, True),
        (torch.float32, 1.9, True),
        (torch.float32, 2.15, False),
        (torch.bfloat16, 0.5, True),
        (torch.bfloat16, 1.05, True),
        (torch.bfloat16, 1.2, False),
        (torch.float16, 1.05, True),
        (torch.float16, 1.2, False),
    ],
)
def test_the_error_may_be_so_many_times_that_of_the_reference(dtype, factor, within):
    exact = EXACT.to(dtype).double()
    error = (64 * NOISE).round() * ulps(torch.tensor(4.0), dtype)  # of many ulps, so that the last one counts little
    actual, own = (exact + factor * error).to(dtype), (exact + error).to(dtype)
    broken, ratio = compare(actual, exact, own)
    assert (not broken) == within and ratio == pytest.approx(factor, abs=0.03)
    if within:
        assert assert_contract(actual, exact, own) == ratio
    else:
        with pytest.raises(AssertionError, match="root of squares error"):
            assert_contract(actual, exact, own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_of_few_values_may_round_otherwise(dtype):
    own = EXACT[:200].to(dtype)
    exact, largest = own.double(), int(own.abs().argmax())
    ulp = ulps(exact[largest], dtype)
    actual = own.clone()
    actual[largest] += ulp
    assert compare(actual, exact, own) == ("", 2.0)
    actual[largest - 1] += ulp
    assert compare(actual, exact, own)[0].startswith("root of squares error")
    actual[largest] += ulp
    assert compare(actual, exact, own)[0].startswith("max error")


def test_in_float32_each_value_may_be_off_by_its_own_ulp():
    """And not by that of the largest value, which a row of small ones would hide a mistake behind."""
    own = torch.cat((EXACT, 1000 * EXACT[:1])).float()
    exact = own.double()
    each = ulps(exact, torch.float32)
    assert not compare((exact + each).float(), exact, own)[0]
    assert compare((exact + 4 * each).float(), exact, own)[0].count("root of squares") == 1
    cancelled = (exact[:-1] + 4 * each[:-1]).float(), exact[:-1], own[:-1]
    assert compare(*cancelled)[0] and not compare(*cancelled, summed=16.0)[0], "relative to the terms of the sums"


def test_nan_never_passes():
    broken, ratio = compare(torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.float64), torch.ones(2))
    assert broken == "1 of 2 values not finite" and ratio == float("inf")


def test_nothing_keeps_the_contract():
    assert compare(torch.ones(0), torch.ones(0, dtype=torch.float64), torch.ones(0)) == ("", 1.0)


def test_another_ratio_can_be_asked_for():
    """As the benchmarks do, which hold other libraries to twice the reference's error."""
    exact = EXACT.bfloat16().double()
    error = (64 * NOISE).round() * ulps(torch.tensor(4.0), torch.bfloat16)
    tensors = (exact + 1.9 * error).bfloat16(), exact, (exact + error).bfloat16()
    assert compare(*tensors)[0] and not compare(*tensors, ratio=2.0)[0]
