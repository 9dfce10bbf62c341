"""Every kernel where its offsets pass 2^31: programs at the far end of large grids, over memory that is never touched.

The interpreter raises where 32 bits overflow. With a GPU every program runs, in up to 20 GB.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwen3_kernels import reference, triton_ops
from qwen3_kernels.moe import grouped
from qwen3_kernels.moe.sort import ExpertSort
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.testing.programs import only
from qwen3_kernels.weights import Dense

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAR = 2**31
EPS = 1e-6


def untouched(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that takes no memory on a CPU but where it is written. Skips the test where the system refuses."""
    try:
        return torch.empty(shape, dtype=dtype, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"needs {torch.Size(shape).numel() * dtype.itemsize / 1e9:.0f} GB of address space: {error}")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def far_rows(last: Tensor) -> Tensor:
    """A tensor whose last rows are these, the first of them from element 2^31 on."""
    columns = last[0].numel()
    rows = untouched(-(-FAR // columns) + len(last), *last.shape[1:], dtype=last.dtype)
    rows[-len(last) :] = last
    return rows


def far_experts(last: Tensor) -> Tensor:
    """Three experts so far apart that the third begins beyond element 2^31; it alone has values."""
    stride = 2**30 + 64
    experts = untouched(2 * stride + last.numel(), dtype=last.dtype).as_strided(
        (3, *last.shape), (stride, last.shape[1], 1)
    )
    experts[2] = last
    return experts


def ids(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def last_programs(count: int = 1) -> Callable:
    """Picks the last programs of the first axis with all of the second."""
    return lambda grid: [(x, y, 0) for x in range(grid[0] - count, grid[0]) for y in range(grid[1])]


def rms_norm() -> None:
    x, weight = normal(2, 8192), normal(8192, seed=1)
    with only(last_programs(2)):
        out = triton_ops.rms_norm(far_rows(x), weight, EPS)
    assert torch.equal(out[-2:], triton_ops.rms_norm(x, weight, EPS))


def add_rms_norm() -> None:
    x, weight = normal(2, 8192), normal(8192, seed=1)
    far = far_rows(x)
    with only(last_programs(2)):
        out, total = triton_ops.add_rms_norm(far, far, weight, EPS)
    assert torch.equal(total[-2:], x + x)
    assert torch.equal(out[-2:], triton_ops.rms_norm(x + x, weight, EPS))


def swiglu() -> None:
    gate_up = normal(1, 2 * 8192)
    far = far_rows(gate_up)
    with only(last_programs()):
        out = triton_ops.swiglu(far)
    assert torch.equal(out[-1:], triton_ops.swiglu(gate_up))


def swiglu_output() -> None:
    """The output is half as wide: its rows pass 2^31 later than those of the input."""
    gate_up = normal(1, 2 * 8192)
    far = untouched(FAR // 8192 + 1, 2 * 8192)
    far[-1:] = gate_up
    with only(last_programs()):
        out = triton_ops.swiglu(far)
    assert torch.equal(out[-1:], triton_ops.swiglu(gate_up))


def rope() -> None:
    """Tokens and positions."""
    x, table = normal(1, 4, 512), far_rows(normal(1, 512, dtype=torch.float32, seed=1))
    far = far_rows(x)
    positions = untouched(len(far), dtype=torch.int64).zero_()
    positions[-1] = len(table) - 1
    with only(last_programs()):
        out = triton_ops.rope(far, positions, table)
    assert torch.equal(out[-1:], triton_ops.rope(x, ids(0), table[-1:].clone()))


def qk_norm_rope_cache() -> None:
    """Tokens, positions and slots."""
    q_heads, kv_heads, head_dim, block_size = 12, 2, 128, 16
    qkv, weights = normal(1, (q_heads + 2 * kv_heads) * head_dim), (normal(head_dim, seed=1), normal(head_dim, seed=2))
    table = far_rows(normal(1, head_dim, dtype=torch.float32, seed=3))
    last = torch.zeros(1, kv_heads, block_size, head_dim, dtype=qkv.dtype, device=DEVICE)
    cache, small = PagedCache(far_rows(last), far_rows(last)), PagedCache(last.clone(), last.clone())
    far = far_rows(qkv)
    positions, slots = (untouched(len(far), dtype=torch.int64).fill_(value) for value in (0, -1))
    positions[-1], slots[-1] = len(table) - 1, len(cache.keys) * block_size - 3
    with only(last_programs()):
        q = triton_ops.qk_norm_rope_cache(far, *weights, EPS, positions, table, slots, cache)
    near = table[-1:].clone(), ids(block_size - 3), small
    assert torch.equal(q[-1:], triton_ops.qk_norm_rope_cache(qkv, *weights, EPS, ids(0), *near))
    assert torch.equal(cache.keys[-1:], small.keys) and torch.equal(cache.values[-1:], small.values)
    assert small.keys.any() and small.values.any()


def linear(tokens: int) -> None:
    """Rows of the weight."""
    x, last = normal(tokens, 8192), normal(64, 8192, seed=1) / 90
    weight = far_rows(last)
    # The vector kernel has outputs on its second axis, the matrix kernel on its first.
    axis = 1 if tokens == 1 else 0
    with only(lambda grid: [tuple(grid[a] - 1 if a == axis else 0 for a in range(3))]):
        out = triton_ops.linear(x, Dense(weight))[:, -1:]
    exact = reference.linear(x.double(), Dense(last[-1:].double()))
    torch.testing.assert_close(out, exact.to(out.dtype), rtol=1e-2, atol=1e-2)


def decode_attention() -> None:
    """Query rows and partial results of many sequences, and block tables that lie far apart."""
    heads, head_dim = 16, 128
    q, keys, values = normal(1, heads, head_dim), normal(2, 1, 16, head_dim, seed=1), normal(2, 1, 16, head_dim, seed=2)
    far = far_rows(q)
    tables = untouched(len(far), 2, dtype=torch.int64).zero_()
    tables[-1] = ids(1, 0)
    lengths = untouched(len(far), dtype=torch.int64).fill_(1)
    lengths[-1] = 20
    # Sequences are the last axis of the grid that splits the context, and the second of the one that adds them up.
    with only(
        lambda g: [(x, 0, g[2] - 1) for x in range(g[0])] if g[1] == 1 else [(x, g[1] - 1, 0) for x in range(g[0])]
    ):
        out = triton_ops.decode_attention(far, PagedCache(keys, values), tables, lengths, 0.1)
    expected = triton_ops.decode_attention(q, PagedCache(keys, values), ids(1, 0)[None], ids(20), 0.1)
    assert torch.equal(out[-1:], expected)


def prefill_attention() -> None:
    """Query rows of the last of two sequences."""
    heads, head_dim = 16, 128
    q, keys, values = normal(3, heads, head_dim), normal(2, 1, 16, head_dim, seed=1), normal(2, 1, 16, head_dim, seed=2)
    far = far_rows(q)
    tables, starts = torch.tensor([[0, 0], [1, 0]], device=DEVICE), ids(0, len(far) - 3, len(far))
    # The last tiles come first.
    with only(lambda grid: [(0, 0, 0)]):
        out = triton_ops.prefill_attention(far, PagedCache(keys, values), tables, starts, ids(len(far), 20), 0.1)
    near = tables[1:], ids(0, 3), ids(20), 0.1
    assert torch.equal(out[-3:], triton_ops.prefill_attention(q, PagedCache(keys, values), *near))


def block_tables(op: str) -> None:
    """Rows of the table so far apart that the third begins beyond element 2^31."""
    stride = 2**30 + 2
    tables = untouched(2 * stride + 2, dtype=torch.int32).as_strided((3, 2), (stride, 1))
    tables[:] = torch.tensor([[0, 1], [1, 0], [1, 0]], dtype=torch.int32)
    q, keys, values = normal(3, 2, 64), normal(2, 1, 16, 64, seed=1), normal(2, 1, 16, 64, seed=2)
    starts = (ids(0, 1, 2, 3),) if op == "prefill_attention" else ()
    out, near = (
        getattr(triton_ops, op)(q, PagedCache(keys, values), t, *starts, ids(20, 20, 20), 0.1)
        for t in (tables, tables.clone())
    )
    assert torch.equal(out, near)


def route() -> None:
    """Rows of logits that lie apart."""
    stride = 2**30 + 8
    logits = untouched(2 * stride + 8).as_strided((3, 8), (stride, 1))
    logits[:] = normal(3, 8)
    for far, near in zip(triton_ops.route(logits, 2, True), triton_ops.route(logits.contiguous(), 2, True)):
        assert torch.equal(far, near)


def experts(tokens: int) -> None:
    """Experts that lie far apart; the third alone is hit."""
    hidden, intermediate = 64, 32
    x, weights = normal(tokens, hidden), normal(tokens, 1, seed=1)
    gate_up, down = normal(2 * intermediate, hidden, seed=2), normal(hidden, intermediate, seed=3)
    chosen = torch.full((tokens, 1), 2, device=DEVICE)
    far = triton_ops.moe_experts(x, Dense(far_experts(gate_up)), Dense(far_experts(down)), weights, chosen)
    near = triton_ops.moe_experts(x, Dense(gate_up[None]), Dense(down[None]), weights, chosen - 2)
    torch.testing.assert_close(far, near)


def token_rows_of_experts(tokens: int) -> None:
    """Rows of x that lie apart."""
    stride = 2**31 // (tokens - 1) + 8
    x = untouched((tokens - 1) * stride + 64).as_strided((tokens, 64), (stride, 1))
    x[:] = normal(tokens, 64)
    weights, chosen = normal(tokens, 1, seed=1), torch.zeros(tokens, 1, dtype=torch.int64, device=DEVICE)
    experts = Dense(normal(1, 64, 64, seed=2)), Dense(normal(1, 64, 32, seed=3))
    far, near = (triton_ops.moe_experts(values, *experts, weights, chosen) for values in (x, x.contiguous()))
    assert torch.equal(far, near)


def pairs_of_experts(hidden: int, intermediate: int, top_k: int = 1) -> None:
    """Pairs whose hidden values, or whose results, pass 2^31: those of the last token."""
    width = max(hidden, intermediate)
    tokens = (FAR // width // 128 * 128 + 128) // top_k + 1  # the last tile has the last token's pairs alone
    pairs = tokens * top_k
    x, weights = untouched(tokens, hidden), untouched(tokens, top_k)
    x[-1:], weights[-1] = normal(1, hidden), normal(top_k, seed=1)
    # Of many hidden columns and results the last alone are there, and one program in each launch sees to them.
    gate_up = torch.zeros(1, 2, intermediate, hidden, dtype=x.dtype, device=DEVICE)
    gate_up[:, :, -64:] = normal(1, 2, 64, hidden, seed=2) / hidden**0.5
    down = normal(1, hidden, intermediate, seed=3) / 8
    chosen = torch.zeros(tokens, top_k, dtype=torch.int64, device=DEVICE)

    def sorted_already(expert_ids: Tensor, experts: int, block_m: int) -> ExpertSort:
        """All pairs are of one expert: sorting so many would take seconds."""
        tiles = torch.zeros(pairs // block_m + 1, dtype=torch.int32, device=DEVICE)
        order = torch.arange(pairs, dtype=torch.int32, device=DEVICE)
        return ExpertSort(ids(0, pairs).int(), order, tiles)

    with pytest.MonkeyPatch.context() as patched, only(lambda grid: [tuple(size - 1 for size in grid)]):
        patched.setattr(grouped, "sort_by_expert", sorted_already)
        far = triton_ops.moe_experts(x, Dense(gate_up.flatten(1, 2)), Dense(down), weights, chosen)[-1:]
    last = x[-1:], Dense(gate_up.flatten(1, 2)), Dense(down), weights[-1:], chosen[-1:]
    near = reference.moe_experts(*last)
    torch.testing.assert_close(far[:, -64:], near[:, -64:], rtol=0.05, atol=0.05)
    assert near[:, -64:].abs().max() > 0.5


def sample() -> None:
    last = normal(1, 2**14, dtype=torch.float32)
    last[:, 1234] = 50.0
    far = far_rows(last)
    numbers = [torch.full((len(far),), value, device=DEVICE) for value in (0.5, 0.9, 0.0)]
    k, seeds = torch.full((len(far),), 5, device=DEVICE), torch.arange(len(far), device=DEVICE)
    with only(last_programs()):
        tokens = triton_ops.sample(far, numbers[0], k, *numbers[1:], seeds, seeds)
    assert tokens[-1] == 1234


# What is tried, and the kernels whose offsets it takes beyond 2^31.
CASES = {
    "rms_norm": (rms_norm, "rms_norm"),
    "add_rms_norm": (add_rms_norm, "add_rms_norm"),
    "swiglu": (swiglu, "swiglu"),
    "swiglu's output": (swiglu_output, "swiglu"),
    "rope": (rope, "rope"),
    "qk_norm_rope_cache": (qk_norm_rope_cache, "qk_norm_rope_cache"),
    "one token": (lambda: linear(1), "linear_vector"),
    "two tokens": (lambda: linear(2), "linear_matrix"),
    "decode": (decode_attention, "decode_split decode_combine"),
    "prefill": (prefill_attention, "prefill"),
    "tables of decode": (lambda: block_tables("decode_attention"), "decode_split"),
    "tables of prefill": (lambda: block_tables("prefill_attention"), "prefill"),
    "route": (route, "route"),
    "experts of few tokens": (lambda: experts(2), "small_gate_up small_down"),
    "experts of many tokens": (lambda: experts(20), "gate_up down"),
    "rows of few tokens": (lambda: token_rows_of_experts(3), "small_gate_up"),
    "rows of many tokens": (lambda: token_rows_of_experts(20), "gate_up"),
    "hidden values": (lambda: pairs_of_experts(64, 8192), "gate_up down"),
    "results": (lambda: pairs_of_experts(8192, 64), "down combine"),
    "results of two experts": (lambda: pairs_of_experts(8192, 64, top_k=2), "combine"),
    "sample": (sample, "sample"),
}
ELSEWHERE = {
    "sort_by_expert_kernel": "takes fewer than 2^30 pairs, test_moe_sort",
}


def kernels() -> list[str]:
    """Every kernel of the package by name."""
    names = set()
    for module in pkgutil.walk_packages([str(Path(triton_ops.__file__).parent)], "qwen3_kernels."):
        if not module.name.endswith(("__main__", "interpreter")):
            names |= {name for name in vars(importlib.import_module(module.name)) if name.endswith("_kernel")}
    return sorted(names)


def test_every_kernel_has_a_case_or_a_reason() -> None:
    covered = {f"{name}_kernel" for _, names in CASES.values() for name in names.split()}
    assert covered | {*ELSEWHERE} == {*kernels()} and not covered & {*ELSEWHERE}


@pytest.mark.parametrize("name", CASES)
def test_offsets_beyond_2_to_the_31(name: str) -> None:
    CASES[name][0]()


@pytest.mark.skipif(DEVICE != "cpu", reason="in the interpreter")
def test_chosen_programs_see_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others do not run, and the next launch is whole again."""
    x, weight = normal(5, 8), normal(8, seed=1)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    seen = []
    with only(lambda grid: seen.append(grid) or [(1, 0, 0), (4, 0, 0)]):
        out = triton_ops.rms_norm(x, weight, EPS)
    assert seen == [(5, 1, 1)] and out.any(1).tolist() == [False, True, False, False, True]
    assert triton_ops.rms_norm(x, weight, EPS).any(1).all()
