"""moe_experts against the reference: the small path of up to 16 tokens and the grouped path of more."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qwen3_kernels import moe, reference
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.moe import grouped, moe_experts, small, sort
from qwen3_kernels.moe.grouped import FLOAT32_TILES, TILES, Tile, tile_for
from qwen3_kernels.testing.contract import assert_contract, poisoned_outputs
from qwen3_kernels.weights import Dense

from .parameters import EVERY_DTYPE, examples, slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Inputs(NamedTuple):
    x: Tensor
    gate_up: Tensor
    down: Tensor
    weights: Tensor
    expert_ids: Tensor

    def run(self, op: Callable[..., Tensor] = moe_experts, dtype: torch.dtype | None = None) -> Tensor:
        """The op on these values, in another dtype if one is given."""
        x, gate_up, down, weights = (t if dtype is None else t.to(dtype) for t in self[:4])
        return op(x, Dense(gate_up), Dense(down), weights, self.expert_ids)


def inputs(
    tokens: int,
    experts: int = 4,
    top_k: int = 2,
    hidden: int = 40,
    intermediate: int = 24,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    expert_ids: Tensor | None = None,
) -> Inputs:
    """Values of the sizes that a trained layer has; the experts at random unless given."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up = torch.randn(experts, 2 * intermediate, hidden, generator=generator) * hidden**-0.5
    down = torch.randn(experts, hidden, intermediate, generator=generator) * intermediate**-0.5
    if expert_ids is None:
        expert_ids = torch.rand(tokens, experts, generator=generator).topk(top_k, dim=-1).indices
    weights = torch.rand(expert_ids.shape, generator=generator) + 0.05
    floats = (x, gate_up, down, weights / weights.sum(-1, keepdim=True))
    return Inputs(*(t.to(dtype).to(DEVICE) for t in floats), expert_ids.to(DEVICE))


def reference_of_path(args: Inputs) -> Tensor:
    """The reference with the roundings of the kernels alone.

    The small path keeps hidden values, times their weights, in float32. The grouped path rounds them once, and the
    results of the pairs.
    """
    x, gate_up, down, weights = (t.float() for t in args[:4])
    out, dtype = torch.zeros_like(x), args.x.dtype
    for expert in args.expert_ids.unique().tolist():
        token, choice = (args.expert_ids == expert).nonzero(as_tuple=True)
        hidden, weight = reference.swiglu(F.linear(x[token], gate_up[expert])), weights[token, choice, None]
        if len(x) <= small.MAX_TOKENS:
            result = F.linear(hidden * weight, down[expert])
        else:
            result = (F.linear(hidden.to(dtype).float(), down[expert]) * weight).to(dtype).float()
        out.index_add_(0, token, result)
    return out.to(dtype)


def check(args: Inputs) -> Tensor:
    before = [t.clone() for t in args]
    with poisoned_outputs(moe, sort, small, grouped):
        out = args.run()
    assert all(torch.equal(t, b) for t, b in zip(args, before))
    assert_contract(out, args.run(reference.moe_experts, torch.float64), reference_of_path(args))
    return out


@pytest.fixture(params=[*TILES, *FLOAT32_TILES], ids=lambda tile: f"{tile.block_m}-rows")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tile:
    """Each row of the tile tables, made the only one."""
    for name in ("TILES", "FLOAT32_TILES"):
        monkeypatch.setattr(grouped, name, (request.param._replace(max_rows=float("inf")),))
    return request.param


# Small path.


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
# 16 rows are one tile: one row, some, all but one, all.
@pytest.mark.parametrize("tokens", [1, *slow(2, 3, 7, 15), 16])
def test_few_tokens(tokens: int, dtype: torch.dtype) -> None:
    check(inputs(tokens, experts=5, dtype=dtype))


@pytest.mark.parametrize(
    ("experts", "top_k"),
    [
        (4, 1),  # no sum over choices
        (6, 3),  # not a power of two: a choice is masked
        (5, 5),  # every token at every expert
        *slow((16, 16)),  # most choices: two output columns of a program
        (128, 8),  # Qwen3-30B-A3B: hardly any expert is hit twice
        (512, 10),  # most experts
    ],
)
def test_few_tokens_experts_and_choices(experts: int, top_k: int) -> None:
    check(inputs(2, experts, top_k, hidden=32, intermediate=16, dtype=torch.float32))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    ("hidden", "intermediate"),
    [
        (32, 16),  # one step of each loop, one column block of gate_up
        (33, 17),  # one more than a block in each, and rows that start anywhere
        *slow((128, 128)),  # exactly one step of two-byte elements, two of four: nothing is masked
        (136, 136),  # a second step, nearly empty
    ],
)
def test_experts_few_tokens_sizes(hidden: int, intermediate: int, dtype: torch.dtype) -> None:
    check(inputs(2, 4, 2, hidden, intermediate, dtype))


# Both paths.


@pytest.mark.parametrize("tokens", [5, 20])
def test_all_tokens_at_the_same_experts(tokens: int) -> None:
    check(inputs(tokens, experts=6, expert_ids=torch.tensor([[4, 1]] * tokens)))


@pytest.mark.parametrize("tokens", [5, 20])
def test_one_expert_twice_for_a_token(tokens: int) -> None:
    ids = torch.randint(0, 3, (tokens, 3), generator=torch.Generator().manual_seed(0))
    ids[0] = 2
    check(inputs(tokens, experts=3, expert_ids=ids, dtype=torch.float32))


@pytest.mark.parametrize("tokens", [3, 18])
def test_experts_that_are_not_hit_are_not_read(tokens: int) -> None:
    """Of 20 experts three are hit, the last among them; the others hold NaN."""
    ids = torch.tensor([[19, 3], [3, 7], [7, 19]]).repeat(tokens // 3, 1)
    args = inputs(tokens, experts=20, expert_ids=ids)
    idle = [e for e in range(20) if e not in (3, 7, 19)]
    clean = check(args)
    args.gate_up[idle] = args.down[idle] = float("nan")
    assert torch.equal(args.run(), clean)


@pytest.mark.parametrize("tokens", [4, 19])
def test_a_token_of_nan_stays_alone(tokens: int) -> None:
    args = inputs(tokens, experts=4)
    clean = args.run()
    args.x[2] = float("nan")
    out = args.run()
    assert out[2].isnan().all()
    others = [t for t in range(tokens) if t != 2]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("tokens", [3, 18])
def test_rows_that_lie_apart(tokens: int) -> None:
    """Views with room between the rows, of x, of the weights' rows and of the experts."""
    args = inputs(tokens, experts=6, hidden=32, intermediate=16)
    wide = inputs(tokens, experts=8, hidden=48, intermediate=24)
    x, gate_up, down = wide.x[:, 8:40], wide.gate_up[2:, :32, 8:40], wide.down[::2, 8:40, :16]
    check(args._replace(x=x, gate_up=gate_up[:4], down=down, expert_ids=args.expert_ids % 4))


@pytest.mark.parametrize("tokens", [7, 40])
def test_experts_repeats_bit_by_bit(tokens: int) -> None:
    args = inputs(tokens, dtype=torch.float32)
    assert torch.equal(args.run(), args.run())


@pytest.mark.parametrize(("tokens", "launches"), [(1, 2), (16, 2), (17, 4)])
def test_experts_launches(tokens: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Counted:
        def __init__(self, kernel) -> None:
            self.kernel = kernel

        def __getitem__(self, grid):
            launched.append(grid)
            return self.kernel[grid]

    for module in (sort, small, grouped):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Counted(getattr(module, name)))
    inputs(tokens, top_k=1, hidden=32, intermediate=16).run()
    assert len(launched) == launches


def test_experts_no_tokens() -> None:
    assert inputs(0).run().shape == (0, 40)


@pytest.mark.slow
@examples(10)
@given(st.data())
def test_experts_any_shape(data: st.DataObject) -> None:
    """Not in float32: the reference's own error, rounding alone, can be almost nothing on so few values."""
    experts = data.draw(st.integers(1, 8))
    check(
        inputs(
            data.draw(st.one_of(st.integers(1, 6), st.integers(17, 40))),
            experts,
            data.draw(st.integers(1, min(experts, 3))),
            data.draw(st.integers(16, 80)),
            data.draw(st.integers(8, 40)),
            data.draw(st.sampled_from(DTYPES[1:])),
            data.draw(st.integers(0, 99)),
        )
    )


# Grouped path.


# Around one, two, four and eight tiles of rows.
@pytest.mark.parametrize("tokens", [17, *slow(31, 33, 63, 64), 65, *slow(127, 129)])
def test_many_tokens(tokens: int) -> None:
    check(inputs(tokens, experts=8))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    ("hidden", "intermediate"),
    [
        *slow((32, 16)),  # less than a block in every direction
        (264, 136),  # more than one block and one step of each row of the table, none of them full
        *slow(
            (256, 128),  # full blocks and steps: nothing is masked
            (71, 37),  # rows that start anywhere
        ),
    ],
)
def test_experts_tile_sizes(tile: Tile, hidden: int, intermediate: int, dtype: torch.dtype) -> None:
    check(inputs(20, 3, 2, hidden, intermediate, dtype))


@pytest.mark.parametrize("extra", [*slow(-1, 0), 1])
def test_around_a_full_tile(tile: Tile, extra: int) -> None:
    """One expert with a row fewer and a row more than a tile, between one with 5 rows and an empty one."""
    ids = torch.tensor([1] * (tile.block_m + extra) + [0] * 5)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    check(inputs(len(ids), experts=3, expert_ids=ids[order][:, None], hidden=32, intermediate=16))


@pytest.mark.parametrize("dtype", [*slow(torch.float16), torch.bfloat16])
@pytest.mark.parametrize("top_k", [8, 10])
def test_many_choices_of_many_tokens(top_k: int, dtype: torch.dtype) -> None:
    """Rounded after every choice the sum would have more than twice the error."""
    check(inputs(20, 12, top_k, hidden=128, dtype=dtype))


@pytest.mark.parametrize(
    ("tokens", "hidden", "intermediate"),
    [(20, 2048, 192), *slow((2, 4096, 1536), (20, 4096, 1536))],  # 30B with a part of its columns, 235B
)
def test_experts_at_the_depth_of_real_models(tokens: int, hidden: int, intermediate: int) -> None:
    """So many outputs of so many columns that one rounding more would show."""
    check(inputs(tokens, 2, 1, hidden, intermediate))


def test_most_experts_are_empty() -> None:
    check(inputs(17, experts=128, top_k=1, hidden=32, intermediate=16))


def test_every_row_of_the_table_is_chosen() -> None:
    pairs = (1, 8 * 128, 8 * 128 + 1, 16 * 128 + 1, 64 * 128, 10**9)
    assert [tile_for(n, 128, 2) for n in pairs] == [TILES[i] for i in (0, 0, 1, 2, 2, 3)]
    assert {tile_for(n, 128, 4) for n in pairs} == {*FLOAT32_TILES}


# What is refused.


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda a: a._replace(x=a.x.double()), "float64"),
        (lambda a: a._replace(weights=a.weights.float()), "weights must be bfloat16 .*, got float32"),
        (lambda a: a._replace(expert_ids=a.expert_ids.int()), "expert_ids must be int64 .*, got int32"),
        (lambda a: a._replace(x=a.x.t().contiguous().t()), "x must be .* contiguous rows, got"),
        (lambda a: a._replace(down=a.down.mT.contiguous().mT), "down must be .* contiguous rows, got"),
        (lambda a: a._replace(weights=a.weights.t().contiguous().t()), "weights must be .* contiguous memory, got"),
        (
            lambda a: a._replace(expert_ids=a.expert_ids.t().contiguous().t()),
            "expert_ids .* contiguous memory, got",
        ),
        (lambda a: a._replace(x=a.x[:, :-1]), r"down must be bfloat16 \[E, 39, I\] .*, got bfloat16 \[4, 40, 24\]"),
        (
            lambda a: a._replace(gate_up=a.gate_up[:, 1:]),
            r"gate_up .* \[4, 48, 40\] .*, got .* \[4, 47, 40\]",
        ),
        (
            lambda a: a._replace(down=a.down[1:]),
            r"gate_up .* \[3, 48, 40\] .*, got .* \[4, 48, 40\]",
        ),
        (lambda a: a._replace(weights=a.weights[:2]), r"weights must be bfloat16 \[3, 2\] .*, got bfloat16 \[2, 2\]"),
        (
            lambda a: a._replace(expert_ids=a.expert_ids[:2]),
            r"expert_ids .* int64 \[3, k\] .*, got int64 \[2, 2\]",
        ),
        (lambda a: a._replace(x=a.x[0]), r"x must be .* \[T, H\] .*, got bfloat16 \[40\]"),
        (lambda a: inputs(3, experts=17, top_k=17), "1 to 16 experts per token"),
        (lambda a: inputs(3, experts=513, hidden=8, intermediate=8), "of 1 to 512, got 2 of 513"),
        (lambda a: a._replace(x=a.x.to("meta")), "down must be .* on meta .*, got .* on"),
    ],
)
def test_experts_refuses(changed, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        changed(inputs(3)).run()
