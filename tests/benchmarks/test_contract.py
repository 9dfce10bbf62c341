"""The numbers contract on errors made by hand."""

import pytest
import torch

from benchmarks.contract import errors


def test_bfloat16_is_measured_by_the_error_of_transformers():
    own = torch.full((2, 3), 0.01)
    inside, outside = errors(1.99 * own, own, "bfloat16"), errors(-2.01 * own, own, "bfloat16")
    assert inside["within"] and not outside["within"]
    assert outside["rms_error"] == pytest.approx(0.0201) and outside["transformers_rms_error"] == pytest.approx(0.01)


def test_float32_is_measured_by_its_largest_error():
    difference = torch.tensor([1e-5, -1e-4, 0.0])
    assert errors(0.99 * difference, torch.zeros(3), "float32")["within"]
    assert not errors(1.01 * difference, torch.zeros(3), "float32")["within"]
    assert errors(2.99 * difference, torch.zeros(3), "float32", scale=3.0)["within"]
    assert not errors(3.01 * difference, torch.zeros(3), "float32", scale=3.0)["within"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_is_outside(dtype):
    assert not errors(torch.tensor([0.0, float("nan")]), torch.ones(2), dtype)["within"]
