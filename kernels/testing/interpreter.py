"""Triton's CPU interpreter, made exact for bf16 and fp8 and strict about addresses: Triton tests without a GPU.

With `TRITON_INTERPRET=1` Triton runs kernels in NumPy, one program after another. NumPy has no bf16 and no fp8, so the
interpreter keeps their bits in unsigned integers, and as shipped (3.6 to 3.9) it often forgets that it does:

    in a kernel                               stock interpreter                  after install()
    float32 to bf16, also in tl.store         truncates, half the values differ  rounds to nearest, ties to even
    float32 to fp8                            loses carries: up to 2 times off   rounds alike, saturates as cvt does
    bf16 subnormals, fp8 nan to float32       wrong                              exact
    tl.dot of bf16                            multiplies the bits, silently      exact operands, float32 accumulation
    +, *, fma, tl.sum, scans of bf16 or fp8   computes with the bits, silently   raises: upcast first
    <, ==, ... of bf16 or fp8                 compares the bits, silently        compares the values
    int32 offset beyond 2^31                  wraps, silently                    raises
    address outside the tensors               reads, writes or segfaults         raises, with the number of lanes
    for i in range(...), tl.range(...)        i is a Python int: never wraps     i is an int32 or int64 scalar
    range, static_range with a tensor bound   fails on 3.6 with NumPy >= 2.4     works
    a Python number beside a bf16 tensor      fails before 3.9                   works
    mask & (scalar >= 0)                      fails: an integer, not a mask      works
    tl.argmax(..., tie_break_left=False)      element by element on 3.6          vectorised
    @triton.autotune, several configurations  fails: no driver                   runs the first one left by pruning
    tl.extra.cuda.gdc_wait()                  fails                              does nothing: there is no wait

How to use it:

    os.environ["TRITON_INTERPRET"] = "1"      # before triton is imported for the first time
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is
    from qwen3_kernels.testing import interpreter
    interpreter.install()                     # before the first launch; a second call does nothing

In a product as small as one tl.dot, OpenBLAS's threads only hinder each other. A mistake arrives as InterpreterError,
whose text holds the error raised here. Kernels need no flag: upcast after the load, compute in float32, narrow before
the dot or the store.

Rules. A launch may touch the tensors among its arguments (alone, in tuples, in tensor descriptors), each from its
view's first element to its last, not the storage around it: guard a tensor by slicing it out of a larger one. Gaps
between the rows of a strided view count as inside, and so does any other argument of the launch. Overflow is checked
in every integer +, - and *, also in lanes that a mask drops later; where wrapping is meant, say
`tl.mul(a, b, sanitize_overflow=False)`. tl.device_assert is on. Annotate named constants, as in
`half: tl.constexpr = D // 2`: the interpreter, unlike the compiler, makes tensors of others. Call gdc_wait through its
module: a name imported from there before install() stays the stock one.

Not shown: races and waits between programs or warps, shared memory, registers and spills, tf32 (float32 dots are better
here than by default on a GPU), the order of a GPU's sums, and whatever the compiler rejects. bf16 atomics, inline
assembly, libdevice and other fp8 types are as in the stock interpreter. install() replaces private names of Triton.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda
from triton.runtime import interpreter as stock
from triton.runtime.autotuner import Autotuner

# The types that NumPy lacks, by Triton's name for them.
_NARROW = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
_COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)


def install() -> None:
    """Correct the interpreter of this process, as the module's docstring says.

    Raises RuntimeError, and changes nothing, when TRITON_INTERPRET was not set before triton was imported or when this
    version of Triton lacks something that is replaced.
    """
    if not isinstance(tl.sum, stock.InterpretedFunction):
        raise RuntimeError("set TRITON_INTERPRET=1 in the environment before triton is imported for the first time")
    if hasattr(stock.InterpreterBuilder, "extents"):
        return
    try:
        replacements = [(owner, name, correct(getattr(owner, name))) for owner, name, correct in _corrections()]
        checked_options = dataclasses.replace(stock.interpreter_builder.options, debug=True)
    except (AttributeError, TypeError) as error:
        raise RuntimeError(f"cannot correct the interpreter of Triton {triton.__version__}: {error}") from error
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    # Triton checks integer overflow by device_assert, which the stock options turn off.
    stock.interpreter_builder.options = checked_options
    stock.InterpreterBuilder.extents = _merged([])
    # Missing before 3.9: a Python number beside a bf16 tensor.
    stock.InterpreterBuilder.get_bf16 = lambda self, value: _narrowed(np.array([value], np.float64), tl.bfloat16)
    stock.ASTTransformer.visit_For = _visit_for
    # Kernels see every global of the interpreter's module; those that ran before have the old loops.
    stock.tensor_range = _tensor_range
    stock.InterpretedFunction.rewritten_fn.clear()


def _corrections() -> list[tuple[Any, str, Callable]]:
    """What is replaced: owner, name, and the function that makes the replacement out of the stock one."""
    builder = stock.InterpreterBuilder
    return [
        (builder, "cast_impl", _exact_cast),
        (builder, "create_fp_to_fp", _exact_fp_to_fp),
        (builder, "create_dot", _exact_dot),
        (builder, "unary_op", _guarded),
        (builder, "binary_op", _guarded),
        (builder, "ternary_op", _guarded),
        (builder, "create_fma", _guarded),
        (stock.ReduceScanOpInterface, "check_tensor", _guarded_reduction),
        (builder, "create_splat", _boolean_splat),
        (builder, "create_masked_load", _bounded("load", pointers=0, mask=1)),
        (builder, "create_masked_store", _bounded("store", pointers=0, mask=2)),
        (builder, "create_atomic_rmw", _bounded("atomic", pointers=1, mask=3)),
        (builder, "create_atomic_cas", _bounded("atomic_cas", pointers=0, mask=None)),
        (stock.GridExecutor, "_init_args_hst", _recording_extents),
        (stock, "_patch_lang_tensor", _indexable),
        (stock.ReduceOps, "apply_impl", _vectorised_argmax),
        (Autotuner, "_bench", _untimed),
        (cuda, "gdc_wait", _nothing),
        (cuda, "gdc_launch_dependents", _nothing),
    ]


def _is_narrow(operand: Any) -> bool:
    return isinstance(operand, stock.TensorHandle) and operand.dtype.scalar.name in _NARROW


def _widened(handle: Any) -> Any:
    """The same values in float32 where the handle holds the bits of a narrow type, else the handle itself."""
    if not _is_narrow(handle):
        return handle
    # from_numpy wants memory it may write to, a broadcast is not.
    bits = torch.from_numpy(np.require(handle.data, requirements=("C", "W")))
    return stock.TensorHandle(bits.view(_NARROW[handle.dtype.scalar.name]).float().numpy(), tl.float32)


def _to_float32(data: np.ndarray) -> np.ndarray:
    """float32 that rounds to a narrow type as `data` itself does: wider types are rounded to odd on the way."""
    if data.dtype in (np.float16, np.float32):
        return data.astype(np.float32)
    exact = data.astype(np.float64)
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float32)
    toward_zero = nearest.view(np.uint32) - (np.abs(nearest) > np.abs(exact))
    return (toward_zero | (nearest != exact)).view(np.float32)


def _narrowed(data: np.ndarray, dtype: tl.dtype) -> Any:
    """A handle with `data` rounded to nearest, ties to even; fp8 saturates, even infinities, as cvt.rn.satfinite."""
    target = _NARROW[dtype.name]
    values = torch.from_numpy(np.require(_to_float32(data), requirements=("C", "W")))
    if target.itemsize == 1:
        limit = torch.finfo(target).max
        values = values.clamp(-limit, limit)
    bits = values.to(target).view(torch.uint8 if target.itemsize == 1 else torch.uint16)
    return stock.TensorHandle(bits.numpy(), dtype)


def _exact_cast(old: Callable) -> Callable:
    """Casts truncated float32 to bf16, misread bf16 subnormals, and took the bits of bf16 and fp8 for integers."""

    def cast_impl(self, src, dst_type):
        if dst_type.scalar.name in _NARROW:
            return _narrowed(_widened(src).data, dst_type.scalar)
        return old(self, _widened(src), dst_type)

    return cast_impl


def _exact_fp_to_fp(old: Callable) -> Callable:
    """Casts from and to fp8, for which Triton has an operation of its own, lost carries and NaN."""

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        narrows = dst_type.scalar.name in _NARROW
        if narrows and rounding_mode not in (None, stock._ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError(f"cast to {dst_type.scalar}: only rounding to nearest even is supported")
        if narrows or _is_narrow(src):
            return self.cast_impl(src, dst_type)
        return old(self, src, dst_type, rounding_mode)

    return create_fp_to_fp


def _exact_dot(old: Callable) -> Callable:
    """Dots multiplied the bits of bf16 as integers and read fp8 NaN as 480."""

    def create_dot(self, a, b, *rest):
        return old(self, _widened(a), _widened(b), *rest)

    return create_dot


def _refuse_narrow(what: str, operands: Iterable) -> None:
    for operand in filter(_is_narrow, operands):
        raise TypeError(f"{what} of {operand.dtype.scalar}: upcast to float32 first")


def _guarded(old: Callable) -> Callable:
    """Arithmetic on bf16 and fp8 used their bits as integers: it raises now, and comparisons use the values.

    What a GPU makes of narrow arithmetic depends on its generation, what it makes of a comparison does not.
    """

    def elementwise(self, *args):
        operation = args[-1]  # but the last operand of fma
        if operation in _COMPARISONS and any(map(_is_narrow, args)):
            left, right = map(_widened, args[:2])
            return stock.TensorHandle(operation(left.data, right.data), tl.int1)
        if operation is not np.where:
            _refuse_narrow(getattr(operation, "__name__", "fma"), args)
        return old(self, *args)

    return elementwise


def _guarded_reduction(old: Callable) -> Callable:
    """Reductions and scans combined bits; tl.max and tl.min upcast bf16 by themselves and never come here with it."""

    def check_tensor(self, inputs):
        _refuse_narrow("reduction or scan", (getattr(tensor, "handle", None) for tensor in inputs))
        return old(self, inputs)

    return check_tensor


def _tensors(argument: Any) -> Iterator[Tensor]:
    """Every tensor in a kernel argument."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _tensors(item)
    elif hasattr(argument, "base"):  # a tensor descriptor, or a tensor under another dtype
        yield from _tensors(argument.base)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address of a view's elements, and the first one after them."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _merged(extents: list[tuple[int, int]]) -> np.ndarray:
    """Row of starts and row of ends, disjoint and in order, after an empty extent that precedes every address."""
    merged = [[np.iinfo(np.int64).min] * 2]
    for start, end in sorted(extents):
        if start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged).T


def _recording_extents(old: Callable) -> Callable:
    """A launch did not know which memory is its own."""

    def _init_args_hst(self, args, kwargs):
        host_args, host_kwargs = old(self, args, kwargs)
        tensors = _tensors((*host_args, *host_kwargs.values()))
        stock.interpreter_builder.extents = _merged([_extent(tensor) for tensor in tensors if tensor.numel()])
        return host_args, host_kwargs

    return _init_args_hst


def _check_bounds(builder: Any, what: str, pointers: Any, mask: np.ndarray) -> None:
    # Signed, so that a null pointer's lane -1 lies below every tensor.
    addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)].view(np.int64)
    if not addresses.size:
        return
    size = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
    starts, ends = builder.extents
    # The usual case costs two reductions: lowest and highest address lie in one extent.
    if addresses.max() + size <= ends[np.searchsorted(starts, addresses.min(), side="right") - 1]:
        return
    outside = addresses + size > ends[np.searchsorted(starts, addresses, side="right") - 1]
    if outside.any():
        lanes = f"{int(outside.sum())} of {addresses.size} active lanes"
        raise IndexError(f"{what} in program {builder.grid_idx}: {lanes} outside the tensors of this launch")


def _bounded(what: str, pointers: int, mask: int | None) -> Callable:
    """Memory operations used any address, to the point of a segmentation fault. The numbers are argument positions."""

    def correct(old: Callable) -> Callable:
        def access(self, *args, **kwargs):
            # A descriptor's mask is a bare array on 3.6, and its .data a buffer.
            active = np.asarray(True if mask is None else args[mask].data)
            _check_bounds(self, what, args[pointers], active)
            return old(self, *args, **kwargs)

        return access

    return correct


def _boolean_splat(old: Callable) -> Callable:
    """A comparison of scalars, spread over a block, became an integer of its operands' type, which no mask may be."""

    def create_splat(self, ret_ty, arg):
        block = old(self, ret_ty, arg)
        return stock.TensorHandle(block.data.astype(bool), tl.int1) if arg.data.dtype == bool else block

    return create_splat


def _indexable(old: Callable) -> Callable:
    """A scalar is an array of one element, which NumPy 2.4 no longer turns into an index; 3.6 relied on that."""

    def _patch_lang_tensor(tensor, scope):
        old(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return _patch_lang_tensor


def _tensor_range(arg1: Any, arg2: Any = None, step: Any = None, **hints: Any) -> Iterator[tl.tensor]:
    """The loop variable as the compiler types it: it has .to(tl.int64), and its products can overflow."""
    first, last = (0, arg1) if arg2 is None else (arg1, arg2)
    semantic = stock.interpreter_semantic
    bounds = [semantic.to_tensor(bound) for bound in (first, last, 1 if step is None else step)]
    dtype = functools.reduce(semantic.integer_promote_impl, (bound.dtype for bound in bounds))
    for value in range(*(bound.handle.data.item() for bound in bounds)):
        yield tl.tensor(stock.TensorHandle(np.array([value], stock._get_np_dtype(dtype)), dtype), dtype)


def _visit_for(self: ast.NodeTransformer, node: ast.For) -> ast.AST:
    """Loops over range and tl.range, not tl.static_range, run over tensors instead of Python integers."""
    if isinstance(node.iter, ast.Call) and ast.unparse(node.iter.func).split(".")[-1] == "range":
        node.iter.func = ast.Name("tensor_range", ast.Load())
    return self.generic_visit(node)


def _vectorised_argmax(old: Callable) -> Callable:
    """Without tie_break_left argmax and argmin went element by element on 3.6; the leftmost is as good as any."""

    def apply_impl(self, inputs):
        for name in ("_argmax_combine_tie_break", "_argmin_combine_tie_break"):
            if self.combine_fn is getattr(tl.standard, f"{name}_fast"):
                self.combine_fn = getattr(tl.standard, f"{name}_left")
        return old(self, inputs)

    return apply_impl


def _untimed(old: Callable) -> Callable:
    """Autotuning asked a GPU driver for a clock; when all configurations take equally long the first one wins."""
    return lambda self, *args, **kwargs: [0.0]


def _nothing(old: Callable) -> Callable:
    """Programmatic dependent launch is an instruction of the GPU; here a kernel ends before the next one starts."""
    return lambda *args, **kwargs: None
