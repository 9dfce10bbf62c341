"""The numbers contract itself: what passes, what does not, and what is said about it."""

import pytest
import torch

from qwen3_kernels.testing.contract import assert_contract, compare

EXACT = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor, within", [(0.0, True), (0.5, True), (1.9, True), (2.5, False), (4.0, False)])
def test_an_error_of_twice_the_reference_s_own_is_the_limit(factor, within):
    exact = EXACT.float().double() / 2**6  # the ulp of the largest value is small beside the errors
    exact[0] = 2.0**-6
    own = (exact + 2.0**-12 * torch.randn(200, generator=torch.Generator().manual_seed(1)).double()).float()
    actual = (exact + factor * (own.double() - exact)).float()
    broken, ratio = compare(actual, exact, own)
    assert (not broken) == within and ratio == pytest.approx(factor, abs=1e-2)
    if within:
        assert assert_contract(actual, exact, own) == ratio
    else:
        with pytest.raises(AssertionError, match="root of squares error"):
            assert_contract(actual, exact, own)


def test_one_element_may_be_off_by_an_ulp_of_the_largest_value():
    own = EXACT.bfloat16()
    exact = own.double()
    ulp = torch.finfo(torch.bfloat16).eps * 2.0 ** exact.abs().max().log2().floor()
    actual = own.clone()
    actual[exact.abs().argmax()] += ulp
    assert compare(actual, exact, own) == ("", 2.0)
    actual[exact.abs().argmax()] += ulp
    assert compare(actual, exact, own)[0].startswith("max error")


def test_nan_never_passes():
    broken, ratio = compare(torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.float64), torch.ones(2))
    assert broken == "1 of 2 values not finite" and ratio == float("inf")


def test_nothing_keeps_the_contract():
    assert compare(torch.ones(0), torch.ones(0, dtype=torch.float64), torch.ones(0)) == ("", 1.0)
