"""Numbers of the interpreter: narrow types convert, multiply and compare as on a GPU, or are refused."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")

NARROW = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
FP8 = {torch.float8_e4m3fn: (3, 7, 448.0), torch.float8_e5m2: (2, 15, 57344.0)}  # mantissa bits, bias, largest


@triton.jit
def copy_kernel(x, out, n, N: tl.constexpr):
    """out[i] = x[i] for i < n, in out's dtype through the store's implicit cast."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def cast_kernel(x, out, n, DTYPE: tl.constexpr, N: tl.constexpr):
    """out[i] = x[i] through an explicit cast; out holds DTYPE's bits."""
    i = tl.arange(0, N)
    y = tl.load(x + i, mask=i < n).to(DTYPE)
    tl.store(out + i, y.to(out.dtype.element_ty, bitcast=True), mask=i < n)


def copied(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.numel(), dtype=dtype)
    copy_kernel[(1,)](x, out, x.numel(), N=triton.next_power_of_2(x.numel()))
    return out


def codes(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a narrow type."""
    bits = torch.uint16 if dtype.itemsize == 2 else torch.uint8
    return torch.arange(256**dtype.itemsize, dtype=torch.int32).to(bits).view(dtype)


def fp8_magnitudes(mantissa: int, bias: int, largest: float) -> np.ndarray:
    """The finite values >= 0 in order of their codes, from the definition of the format."""
    code = np.arange(128)
    exponent, fraction = code >> mantissa, (code & (2**mantissa - 1)) / 2**mantissa
    values = np.where(exponent, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    return values[values <= largest]


def float32_samples() -> torch.Tensor:
    """Each bf16 value, the ties above it, both neighbours of the ties (inf, nan, subnormals included); random bits."""
    high = np.arange(65536, dtype=np.uint32) << 16
    random = np.random.default_rng(0).integers(0, 2**32, 2**17, dtype=np.uint32)
    bits = np.concatenate([high, high | 0x7FFF, high | 0x8000, high | 0x8001, random])
    return torch.from_numpy(bits.view(np.float32))


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bit for bit, except that any nan matches any nan."""
    assert actual.dtype == expected.dtype
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[actual.dtype.itemsize]
    assert torch.equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize("dtype", NARROW)
def test_every_narrow_value_becomes_the_same_float32(dtype):
    values = codes(dtype)
    assert_same_bits(copied(values, torch.float32), values.float())
    if dtype in FP8:
        magnitudes = torch.from_numpy(fp8_magnitudes(*FP8[dtype])).float()
        assert_same_bits(copied(values, torch.float32)[: magnitudes.numel()], magnitudes)


def test_float32_to_bf16_rounds_to_nearest_even():
    x = float32_samples()
    bits = x.numpy().view(np.uint32).astype(np.uint64)
    rounded = torch.from_numpy(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)).view(torch.bfloat16)
    expected = torch.where(x.isnan(), torch.tensor(float("nan"), dtype=torch.bfloat16), rounded)
    assert_same_bits(copied(x, torch.bfloat16), expected)
    assert_same_bits(copied(x, torch.bfloat16), x.bfloat16())
    explicit = torch.empty(x.numel(), dtype=torch.int16)
    cast_kernel[(1,)](x, explicit, x.numel(), tl.bfloat16, N=triton.next_power_of_2(x.numel()))
    assert_same_bits(explicit.view(torch.bfloat16), expected)


@triton.jit
def truncating_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, (tl.load(x + i).to(tl.int32, bitcast=True) >> 16).to(tl.int16))


def test_a_truncating_kernel_differs_from_rounding():
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    out = torch.empty(4096, dtype=torch.int16)
    truncating_kernel[(1,)](x, out, N=4096)
    assert (out.view(torch.bfloat16) != copied(x, torch.bfloat16)).float().mean() > 0.4


@pytest.mark.parametrize("dtype", FP8)
def test_float32_to_fp8_rounds_to_nearest_even_and_saturates(dtype):
    magnitudes = fp8_magnitudes(*FP8[dtype])
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    random = np.abs(np.random.default_rng(0).standard_normal(4096)) * magnitudes.max() ** np.linspace(-1, 1, 4096)
    x = np.concatenate([magnitudes, middles, random, [magnitudes.max() * 1.07, 1e30, np.inf]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    # The code of a magnitude is its index; a tie goes to the even one.
    below = np.searchsorted(middles, x.astype(np.float64), side="left")
    tie = np.isin(x, middles.astype(np.float32))
    expected = np.where(tie & (below % 2 == 1), below + 1, below).astype(np.uint8)
    x, expected = np.concatenate([x, -x]), np.concatenate([expected, expected | 0x80])
    assert_same_bits(copied(torch.from_numpy(x), dtype), torch.from_numpy(expected).view(dtype))
    assert copied(torch.tensor([float("nan")]), dtype).isnan().all()


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_from_and_to_16_bits(dtype):
    limit = FP8[dtype][2]
    for source in (torch.bfloat16, torch.float16):
        values = codes(source)
        assert_same_bits(copied(values, dtype), values.float().clamp(-limit, limit).to(dtype))
        assert_same_bits(copied(codes(dtype), source), codes(dtype).to(source))


def test_wide_sources_are_rounded_once():
    # Rounded to float32 first, both would be ties and round down to even.
    for value, dtype in ((1 + 2.0**-8 + 2.0**-40, torch.float64), (2**30 + 2**22 + 1, torch.int32)):
        low = 1.0 if dtype == torch.float64 else 2.0**30
        x = torch.tensor([value, -value], dtype=dtype)
        assert copied(x, torch.bfloat16).tolist() == [low * (1 + 2.0**-7), -low * (1 + 2.0**-7)]
    x = torch.tensor([0.0, -0.0, 1e300, -1e300, 1e-300, float("inf"), float("nan")], dtype=torch.float64)
    assert_same_bits(copied(x, torch.bfloat16), x.bfloat16())


def test_bool_int_and_bf16_convert():
    x = torch.tensor([-3, -1, 0, 2, 257], dtype=torch.int32)
    assert copied(x, torch.bfloat16).tolist() == [-3, -1, 0, 2, 256]
    assert copied(x.bfloat16(), torch.int32).tolist() == [-3, -1, 0, 2, 256]
    assert copied(torch.tensor([True, False]), torch.bfloat16).tolist() == [1, 0]


@triton.jit
def toward_zero_kernel(x, out):
    tl.store(out, tl.load(x).to(tl.bfloat16, fp_downcast_rounding="rtz"))


def test_other_rounding_modes_are_refused():
    with pytest.raises(InterpreterError, match="rounding"):
        toward_zero_kernel[(1,)](torch.ones(1), torch.empty(1, dtype=torch.bfloat16))


@triton.jit
def dot_kernel(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(out + m[:, None] * N + n[None, :], tl.dot(x, y, tl.full((M, N), 0.5, tl.float32)))


@pytest.mark.parametrize("dtype", [*NARROW, torch.float16, torch.float32])
def test_dot_is_exact_up_to_float32_accumulation(dtype):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(16, 64, generator=generator).to(dtype)
    b = torch.randn(64, 32, generator=generator).to(dtype)
    out = torch.empty(16, 32)
    dot_kernel[(1,)](a, b, out, M=16, N=32, K=64)
    error = (out - (a.double() @ b.double() + 0.5)).abs()
    assert (error <= 64 * 2.0**-24 * (a.double().abs() @ b.double().abs() + 0.5)).all()


def test_dot_propagates_nan():
    a, b, out = torch.ones(16, 16).bfloat16(), torch.ones(16, 16).bfloat16(), torch.empty(16, 16)
    a[3, 5] = float("nan")
    dot_kernel[(1,)](a, b, out, M=16, N=16, K=16)
    assert out[3].isnan().all() and out.isnan().sum() == 16


@triton.jit
def add_pair(a, b):
    return a + b


@triton.jit
def arithmetic_kernel(x, out, OP: tl.constexpr, UPCAST: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    if UPCAST:
        v = v.to(tl.float32)
    if OP == "add":
        r = v + v
    elif OP == "subtract":
        r = v - v
    elif OP == "multiply":
        r = v * v
    elif OP == "negate":
        r = -v
    elif OP == "fma":
        r = tl.fma(v, v, v)
    elif OP == "sum":
        r = tl.sum(v, 0) + tl.zeros((N,), tl.float32)
    else:
        r = tl.associative_scan(v, 0, add_pair)
    tl.store(out + i, r)


ARITHMETIC = {
    "add": lambda x: x + x,
    "subtract": lambda x: x - x,
    "multiply": lambda x: x * x,
    "negate": lambda x: -x,
    "fma": lambda x: x * x + x,
    "sum": lambda x: x.sum().expand(16),
    "scan": lambda x: x.cumsum(0),
}


@pytest.mark.parametrize("op", ARITHMETIC)
def test_narrow_arithmetic_needs_an_upcast(op):
    for dtype in (torch.bfloat16, torch.float8_e5m2):
        x = torch.arange(1, 17).to(dtype)
        out = torch.zeros(16)
        arithmetic_kernel[(1,)](x, out, op, UPCAST=True, N=16)
        torch.testing.assert_close(out.double(), ARITHMETIC[op](x.double()), rtol=1e-6, atol=0)
        out.zero_()
        with pytest.raises(InterpreterError, match="upcast"):
            arithmetic_kernel[(1,)](x, out, op, UPCAST=False, N=16)
        assert not out.any()


@triton.jit
def cumsum_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.cumsum(tl.load(x + i), 0))


def test_cumsum_of_narrow_values_raises_or_upcasts():
    x, out = torch.arange(1, 17).to(torch.float8_e5m2), torch.empty(16)
    with pytest.raises(InterpreterError, match="upcast"):
        cumsum_kernel[(1,)](x, out, N=16)
    if triton.__version__ >= "3.9":
        with pytest.raises(InterpreterError, match="upcast"):
            cumsum_kernel[(1,)](x.bfloat16(), out, N=16)
    else:  # tl.cumsum upcasts bf16 by itself
        cumsum_kernel[(1,)](x.bfloat16(), out, N=16)
        assert torch.equal(out, x.float().cumsum(0))


@triton.jit
def compare_kernel(x, y, out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a, b = tl.load(x + i), tl.load(y + j)
    code = (a < b) * 1 + (a <= b) * 2 + (a > b) * 4 + (a >= b) * 8 + (a == b) * 16 + (a != b) * 32
    tl.store(out + i * N + j, code)


@pytest.mark.parametrize("dtype", NARROW)
def test_comparisons_use_the_values(dtype):
    x = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, float("nan")]).to(dtype)
    out = torch.zeros(8, 8, dtype=torch.int32)
    compare_kernel[(1,)](x, x, out, N=8)
    a, b = x.float()[:, None], x.float()[None, :]
    results = (a < b, a <= b, a > b, a >= b, a == b, a != b)
    assert torch.equal(out, sum(r.int() << bit for bit, r in enumerate(results)))


@triton.jit
def select_kernel(x, out, largest, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i, mask=i < N - 1, other=-1.0)
    tl.store(out + i, tl.where(v > 0, v, 0.25))
    tl.store(largest, tl.max(v, 0))


def test_selection_and_max_of_bf16_pass():
    x, out, largest = torch.arange(-8, 8).bfloat16(), torch.empty(16).bfloat16(), torch.empty(1)
    select_kernel[(1,)](x, out, largest, N=16)
    assert out.tolist() == [0.25] * 9 + [1, 2, 3, 4, 5, 6, 0.25] and largest.item() == 6
