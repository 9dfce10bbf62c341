"""The numbers contract itself: what passes, what does not, and what is said about it."""

from types import ModuleType

import pytest
import torch

from qwen3_kernels.testing.contract import (
    GUARD,
    assert_contract,
    assert_guards,
    compare,
    guarded,
    poisoned_outputs,
    ulps,
)

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


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """All of the storage that a tensor is a part of."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int32])
@pytest.mark.parametrize("beside", [-GUARD, -1, 0, GUARD - 1])
def test_a_write_beside_a_guarded_tensor_is_reported(dtype, beside):
    """The element just before and just behind it, and the first and last of the guards."""
    tensor = guarded(torch.ones(3, 5, dtype=dtype))
    assert_guards(tensor.fill_(7))
    memory(tensor)[GUARD + beside + (15 if beside >= 0 else 0)] = 7
    with pytest.raises(AssertionError, match="written outside the tensor"):
        assert_guards(tensor)


def module_with(op) -> ModuleType:
    """A module whose `run` is `op` on what its torch makes."""
    module = ModuleType("module")
    module.torch, module.run = torch, lambda: op(module.torch)
    return module


@pytest.mark.parametrize("make", ["empty", "empty_like"])
def test_outputs_are_poisoned(make):
    """What a kernel does not write is not a number; what it writes beside its output is reported on leaving."""
    like = {"empty": (4,), "empty_like": (torch.ones(4),)}[make]
    module = module_with(lambda torch: getattr(torch, make)(*like))
    with poisoned_outputs(module):
        out = module.run()
    assert out.isnan().all() and out.shape == (4,) and module.torch is torch
    with pytest.raises(AssertionError, match="written outside the tensor"), poisoned_outputs(module):
        memory(module.run())[GUARD + 4] = 0


def test_poisoned_ids_are_out_of_every_range():
    module = module_with(lambda torch: torch.empty(2, dtype=torch.int64))
    with poisoned_outputs(module):
        assert module.run().tolist() == [torch.iinfo(torch.int64).min] * 2
