"""sort_by_expert by what its tables promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels.moe import sort as module
from qwen3_kernels.moe.sort import sort_by_expert
from qwen3_kernels.testing.contract import poisoned_outputs

from .parameters import examples, slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_sort(expert_ids: torch.Tensor, experts: int, block_m: int) -> None:
    with poisoned_outputs(module):
        sort = sort_by_expert(expert_ids, experts, block_m)
    assert all(t.dtype == torch.int32 for t in sort)
    flat = expert_ids.flatten()
    pairs = flat.numel()
    counts = flat.bincount(minlength=experts)
    assert torch.equal(sort.offsets.diff().long(), counts)
    assert sort.offsets[0] == 0 and sort.offsets[-1] == pairs

    order = sort.order.long()
    inverse = order.argsort()
    assert torch.equal(order[inverse], torch.arange(pairs, device=flat.device))
    assert torch.equal(order, flat.argsort(stable=True))

    # Walking the tiles gives each row exactly once, under its own expert.
    assert len(sort.tile_experts) == pairs // block_m + experts
    seen = []
    for tile, expert in enumerate(sort.tile_experts.tolist()):
        if expert < 0:
            assert expert == -1, "a tile without rows is not marked: it holds what was in memory"
            continue
        start, end = sort.offsets[expert : expert + 2].tolist()
        first = start + (tile - start // block_m - expert) * block_m
        assert start <= first < end
        seen += range(first, min(first + block_m, end))
    assert seen == list(range(pairs))


def choices(tokens: int, experts: int, top_k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(top_k, dim=-1).indices.to(DEVICE)


@pytest.mark.parametrize("tokens", [1, 2, *slow(3, 7, 15, 16), 17, *slow(31, 33, 63, 64, 65, 127), 129, *slow(1023)])
def test_sort_tokens(tokens: int) -> None:
    check_sort(choices(tokens, 6, 3), 6, 16)  # 129 tokens are two blocks of pairs, 1,023 are two of the largest


@pytest.mark.parametrize(
    ("experts", "top_k"),
    [
        (4, 1),  # fewest of both
        (7, 7),  # every token at every expert
        (128, 8),  # most experts empty
    ],
)
def test_sort_experts(experts: int, top_k: int) -> None:
    check_sort(choices(5, experts, top_k), experts, 16)


@pytest.mark.parametrize("block_m", [16, 32, 64, 128])
@pytest.mark.parametrize("extra", [*slow(-1, 0), 1])
def test_sort_around_a_full_tile(block_m: int, extra: int) -> None:
    """One row fewer and more than a tile, behind an expert that leaves the tiles' starts uneven; two are empty."""
    ids = torch.tensor([2] * (block_m + extra) + [0] * 5 + [3] * (block_m - 5))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    check_sort(ids[order][:, None].to(DEVICE), 5, block_m)


@pytest.mark.parametrize("expert", [0, 2, 4])
def test_sort_all_to_one_expert(expert: int) -> None:
    """The first, a middle and the last: 70 tiles for one expert are written in three steps."""
    check_sort(torch.full((1120, 1), expert, device=DEVICE), 5, 16)


def test_sort_takes_the_same_expert_twice() -> None:
    check_sort(torch.tensor([[1, 1], [3, 1], [1, 0]], device=DEVICE), 4, 16)


@examples(15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=150), st.sampled_from([16, 32, 64, 128]))
def test_sort_anything(ids: list[int], block_m: int) -> None:
    check_sort(torch.tensor(ids, device=DEVICE)[:, None], 6, block_m)


@pytest.mark.parametrize(
    ("expert_ids", "says"),
    [
        (torch.zeros(4, 2, dtype=torch.int32), "int32"),
        (torch.zeros(2, 4, dtype=torch.int64).t(), "strides"),
        (torch.zeros(4, dtype=torch.int64), r"expert_ids must be int64 \[T, k\] .*, got int64 \[4\]"),
    ],
)
def test_sort_refuses(expert_ids: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sort_by_expert(expert_ids, 4, 16)


def test_more_pairs_than_32_bits_count_are_refused() -> None:
    for pairs in (2**30, 2**30 + 2):
        with pytest.raises(ValueError, match="fewer than 2\\^30 elements"):
            sort_by_expert(torch.empty(pairs // 2, 2, dtype=torch.int64, device="meta"), 4, 16)
