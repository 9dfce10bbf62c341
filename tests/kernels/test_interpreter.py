"""The interpreter is strict about addresses and overflow, runs what the stock one cannot, and is installed once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as stock
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor

from qwen3_kernels.philox import philox
from qwen3_kernels.testing import interpreter

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")


@triton.jit
def copy_kernel(x, out, n, N: tl.constexpr):
    """out[i] = x[i] for i < n, in out's dtype through the store's implicit cast."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def gated_copy_kernel(x, out, n, gate, N: tl.constexpr):
    """out[i] = x[i] for i < n, if the number at `gate` is not negative."""
    i = tl.arange(0, N)
    mask = (i < n) & (tl.load(gate) >= 0)
    tl.store(out + i, tl.load(x + i, mask=mask), mask=mask)


@triton.jit
def offset_kernel(x, row, STRIDE: tl.constexpr, WIDE: tl.constexpr):
    """Computes a far offset and does nothing with it."""
    if WIDE:
        row = row.to(tl.int64)
    offset = row * STRIDE + tl.arange(0, 4)
    tl.store(x + tl.arange(0, 4), (offset >> 20).to(tl.int32))


def test_int32_offsets_that_overflow_raise():
    x = torch.zeros(4, dtype=torch.int32)
    offset_kernel[(1,)](x, 2**20 - 1, STRIDE=2048, WIDE=False)
    with pytest.raises(InterpreterError, match="int32 overflow"):
        offset_kernel[(1,)](x, 2**20, STRIDE=2048, WIDE=False)
    offset_kernel[(1,)](x, 2**20, STRIDE=2048, WIDE=True)
    assert x.tolist() == [2048] * 4


@triton.jit
def wrapping_kernel(x, out):
    tl.store(out, tl.mul(tl.load(x), 3, sanitize_overflow=False))
    tl.store(out + 1, tl.randint(tl.load(x), tl.program_id(0)).to(tl.int32, bitcast=True))


def test_wrapping_on_purpose_passes():
    seed, zero, out = torch.tensor([2**30]), torch.tensor([0]), torch.zeros(2, dtype=torch.int32)
    wrapping_kernel[(1,)](seed.int(), out)
    random = philox((zero, zero, zero, zero), (seed, zero))[0]
    assert torch.equal(out, torch.cat((seed * 3, random)).int())


@triton.jit
def access_kernel(x, out, offset, n, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    p = x + offset + i
    if OP == "load":
        tl.store(out + i, tl.load(p, mask=i < n, other=0), mask=i < n)
    elif OP == "store":
        tl.store(p, i, mask=i < n)
    elif OP == "atomic":
        tl.atomic_add(p, 1, mask=i < n)
    else:
        tl.atomic_cas(p, i, i)


@pytest.mark.parametrize("op", ["load", "store", "atomic", "atomic_cas"])
def test_lanes_out_of_bounds_raise(op):
    buffer = torch.zeros(128, dtype=torch.int32)
    x, out = buffer[32:96], torch.zeros(64, dtype=torch.int32)
    access_kernel[(1,)](x, out, 0, 64, op, N=64)
    buffer.zero_()
    for offset, lanes in ((1, 1), (-1, 1), (5, 5), (10**9, 64), (-(10**9), 64)):
        with pytest.raises(InterpreterError, match=rf"{op} in program \(0, 0, 0\): {lanes} of 64 active lanes"):
            access_kernel[(1,)](x, out, offset, 64, op, N=64)
    assert not buffer.any()


@pytest.mark.parametrize("op", ["load", "store", "atomic"])
def test_masked_lanes_may_lie_anywhere(op):
    x, out = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    access_kernel[(1,)](x, out, 3, 61, op, N=64)
    access_kernel[(1,)](x, out, 10**9, 0, op, N=64)
    with pytest.raises(InterpreterError, match="1 of 62 active lanes"):
        access_kernel[(1,)](x, out, 3, 62, op, N=64)


@pytest.mark.parametrize("gate", [-1, 0])
def test_a_scalar_comparison_may_be_part_of_a_mask(gate):
    x, out = torch.arange(1, 9), torch.zeros(8, dtype=torch.int64)
    gated_copy_kernel[(1,)](x, out, 5, torch.tensor([gate]), N=8)
    assert out.tolist() == ([0] * 8 if gate < 0 else [1, 2, 3, 4, 5, 0, 0, 0])


@pytest.mark.parametrize("shape", [(0,), (5, 0)])
def test_empty_tensors_have_no_element(shape):
    empty, out = torch.empty(shape, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    for offset in (0, -1):
        with pytest.raises(InterpreterError, match="1 of 1 active lanes"):
            access_kernel[(1,)](empty, out, offset, 1, "load", N=64)


def test_writing_past_a_view_into_its_guard_raises():
    buffer = torch.full((96,), 7.0)
    with pytest.raises(InterpreterError, match="store .* 3 of 35 active lanes"):
        copy_kernel[(1,)](torch.ones(64), buffer[32:64], 35, N=64)
    assert (buffer == 7).all()
    copy_kernel[(1,)](torch.ones(64), buffer[32:64], 32, N=64)
    assert (buffer[32:64] == 1).all() and (buffer[:32] == 7).all() and (buffer[64:] == 7).all()


@triton.jit
def rows_kernel(x, out, stride, extra, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    tl.store(out + m * N + n, tl.load(x + m * stride + n + extra))


def test_strided_and_interleaved_views_are_in_bounds():
    pairs = torch.arange(4 * 2 * 8.0).view(4, 2, 8)
    for x in (pairs[:, 0], pairs[:, 1]):
        out = torch.empty(4, 8)
        rows_kernel[(1,)](x, out, x.stride(0), 0, M=4, N=8)
        assert torch.equal(out, x)
        with pytest.raises(InterpreterError, match="1 of 32 active lanes"):
            rows_kernel[(1,)](x, out, x.stride(0), 1, M=4, N=8)
    # A small view between the rows of a large one, here at 8 to 16 of 0 to 56, takes nothing from it.
    rows_kernel[(1,)](pairs[:, 0], pairs[0, 1], 0, 12, M=1, N=8)
    assert torch.equal(pairs[0, 1], torch.arange(12.0, 20.0))
    rows_kernel[(1,)](pairs[0, 1], pairs[:, 0], 0, 0, M=4, N=8)
    assert torch.equal(pairs.flatten()[:32], torch.arange(12.0, 20.0).repeat(4))


@triton.jit
def tuple_kernel(tensors, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(tensors[0] + i, mask=i < n) + tl.load(tensors[1] + i), mask=i < n)


def test_tensors_in_tuples_count():
    x, y, out = torch.arange(8.0), torch.ones(16), torch.empty(16)
    tuple_kernel[(1,)]((x, y), out, 8, N=16)
    assert torch.equal(out[:8], x + 1)
    with pytest.raises(InterpreterError, match="1 of 9 active lanes"):
        tuple_kernel[(1,)]((x, y), out, 9, N=16)


@triton.jit
def descriptor_kernel(source, out, rows, M: tl.constexpr, N: tl.constexpr):
    target = tl.make_tensor_descriptor(out, shape=[rows, N], strides=[N, 1], block_shape=[M, N])
    target.store([0, 0], source.load([0, 0]))


def test_tensor_descriptors_are_checked():
    x, buffer = torch.arange(8.0).view(2, 4), torch.zeros(4, 4)
    source = TensorDescriptor(x, shape=[2, 4], strides=[4, 1], block_shape=[4, 4])
    descriptor_kernel[(1,)](source, buffer[:3], 3, M=4, N=4)
    assert torch.equal(buffer[:2], x) and not buffer[2:].any()
    with pytest.raises(InterpreterError, match="store .* 4 of 16 active lanes"):
        descriptor_kernel[(1,)](source, buffer[:3], 4, M=4, N=4)


def test_a_kernel_after_a_failed_one_has_its_own_bounds():
    first, second = torch.zeros(64), torch.zeros(64)
    with pytest.raises(InterpreterError, match="32 of 64"):
        copy_kernel[(1,)](second, first[:32], 64, N=64)
    copy_kernel[(1,)](first + 1, second, 64, N=64)
    assert second.sum() == 64


@triton.jit
def loop_kernel(bound, out, step, STRIDE: tl.constexpr, KIND: tl.constexpr):
    n = tl.load(bound)
    total = tl.zeros((), tl.int64)
    if KIND == "range":
        for i in range(n):
            total += i.to(tl.int64) * STRIDE
    elif KIND == "tl.range":
        for i in tl.range(0, n, step, num_stages=2):
            total += tl.sum(i * STRIDE + tl.arange(0, 2), 0)
    else:
        trips = 3  # a tensor in the interpreter, a constant to the compiler
        for i in tl.static_range(trips):
            total += i * STRIDE
    tl.store(out, total)


def test_loops_over_tensor_bounds():
    out = torch.zeros(1, dtype=torch.int64)
    for bound in (torch.tensor([5], dtype=torch.int32), torch.tensor([5])):
        loop_kernel[(1,)](bound, out, 2, STRIDE=2**30, KIND="range")
        assert out.item() == 10 * 2**30
        loop_kernel[(1,)](bound, out, 2, STRIDE=3, KIND="tl.range")
        assert out.item() == 6 * 6 + 3
        loop_kernel[(1,)](bound, out, 2, STRIDE=3, KIND="static_range")
        assert out.item() == 9


def test_loop_variables_overflow_like_tensors():
    out = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InterpreterError, match="int32 overflow"):
        loop_kernel[(1,)](torch.tensor([5], dtype=torch.int32), out, 2, STRIDE=2**30, KIND="tl.range")
    loop_kernel[(1,)](torch.tensor([5]), out, 2, STRIDE=2**30, KIND="tl.range")
    assert out.item() == 12 * 2**30 + 3


@triton.jit
def argmax_kernel(x, high, low, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + m[:, None] * N + n[None, :])
    tl.store(high + m, tl.argmax(v, 1, tie_break_left=False))
    tl.store(low + m, tl.argmin(v, 1, tie_break_left=False))


def test_argmax_without_tie_break_is_vectorised(monkeypatch):
    def slow(self, inputs):
        raise AssertionError("element by element")

    monkeypatch.setattr(stock.ReduceOps, "generic_reduce", slow)
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    high, low = torch.empty(4, dtype=torch.int32), torch.empty(4, dtype=torch.int32)
    argmax_kernel[(1,)](x, high, low, M=4, N=128)
    assert torch.equal(high.long(), x.argmax(1)) and torch.equal(low.long(), x.argmin(1))


def _without_smallest(configs, named_args, **kwargs):
    return configs[1:]


@triton.autotune([triton.Config({"N": 4}, num_warps=1), triton.Config({"N": 8}, num_warps=2)], key=[])
@triton.jit
def tuned_kernel(out, N: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, N), 1)


@triton.autotune(
    [triton.Config({"N": n}) for n in (2, 4, 8)], key=[], prune_configs_by={"early_config_prune": _without_smallest}
)
@triton.jit
def pruned_kernel(out, N: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, N), 1)


def test_autotune_runs_the_first_configuration_once():
    for kernel, n in ((tuned_kernel, 4), (pruned_kernel, 4)):
        out = torch.zeros(8, dtype=torch.int32)
        kernel[(1,)](out)
        assert out.tolist() == [1] * n + [0] * (8 - n)


@triton.jit
def dependent_kernel(out):
    tl.extra.cuda.gdc_wait()
    tl.store(out, 1)
    tl.extra.cuda.gdc_launch_dependents()


def test_launch_hints_and_dependent_launch_do_no_harm():
    out = torch.zeros(1, dtype=torch.int32)
    dependent_kernel[(1,)](out, num_warps=8, num_stages=3, launch_pdl=True)
    assert out.item() == 1


def test_install_twice_changes_nothing():
    before = dict(vars(stock.InterpreterBuilder))
    interpreter.install()
    assert dict(vars(stock.InterpreterBuilder)) == before


def test_install_refuses_an_interpreter_without_what_it_replaces(monkeypatch):
    monkeypatch.delattr(stock.InterpreterBuilder, "extents")
    monkeypatch.delattr(stock.InterpreterBuilder, "create_dot")
    cast = stock.InterpreterBuilder.cast_impl
    with pytest.raises(RuntimeError, match="create_dot"):
        interpreter.install()
    assert stock.InterpreterBuilder.cast_impl is cast


@pytest.mark.slow
def test_install_needs_the_interpreter():
    code = (
        "from qwen3_kernels.testing import interpreter\n"
        "try: interpreter.install()\n"
        "except RuntimeError as error: print(error)"
    )
    path = {"PYTHONPATH": str(Path(interpreter.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "TRITON_INTERPRET=1" in done.stdout and done.stdout.count("\n") == 1
