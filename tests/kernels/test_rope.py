"""rope and qk_norm_rope_cache against the reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import reference, rope
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.testing.contract import assert_contract, assert_guards, guarded, poisoned_outputs

from .parameters import EVERY_DTYPE, examples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
MAX_POSITIONS = 512


def rope_table(head_dim: int, max_positions: int = MAX_POSITIONS) -> torch.Tensor:
    angles = torch.arange(max_positions)[:, None] / 1e4 ** (torch.arange(0, head_dim, 2) / head_dim)
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(DEVICE)


def positions_of(tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Any, in any order; among them the first and, from two tokens on, the last."""
    positions = torch.randint(0, MAX_POSITIONS, (tokens,), generator=generator)
    positions[-1:], positions[:1] = MAX_POSITIONS - 1, 0
    return positions.to(DEVICE)


def check_rope(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(tokens, heads, head_dim, generator=generator) * 2).to(dtype).to(DEVICE)
    positions, table = positions_of(tokens, generator), rope_table(head_dim)
    with poisoned_outputs(rope):
        out = rope.rope(x, positions, table)
    assert_contract(out, reference.rope(x.double(), positions, table), reference.rope(x, positions, table))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    "heads, head_dim",
    [
        (1, 2),  # one pair to turn
        (3, 6),  # halves of three columns: masked
        (5, 64),  # fewer heads than the tile's 16
        (32, 128),  # Qwen3-30B-A3B: four full tiles of 8 heads
        (9, 128),  # one head more than a tile
        (4, 80),  # halves of 40 in tiles of 64
        (3, 256),  # tiles of 4 heads
        (2, 512),  # largest, tiles of 2 heads
    ],
)
def test_rope(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    check_rope(3, heads, head_dim, dtype)


@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 65])
def test_rope_tokens(tokens: int) -> None:
    check_rope(tokens, 2, 16, torch.bfloat16)


class Fused:
    """Inputs of qk_norm_rope_cache: slots in shuffled order, caches full of NaN."""

    def __init__(
        self,
        tokens: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        columns = (q_heads + 2 * kv_heads) * head_dim
        self.qkv = (torch.randn(tokens, columns, generator=generator) * 2).to(dtype).to(DEVICE)
        weights = (1 + torch.randn(head_dim, generator=generator) / 4 for _ in ("q", "k"))
        self.weights = [weight.to(dtype).to(DEVICE) for weight in weights]
        self.positions, self.table = positions_of(tokens, generator), rope_table(head_dim)
        num_blocks = -(-tokens // block_size) + 2
        self.slots = torch.randperm(num_blocks * block_size, generator=generator)[:tokens].to(DEVICE)
        self.cache_shape = (num_blocks, kv_heads, block_size, head_dim)

    def cache(self, dtype: torch.dtype) -> PagedCache:
        empty = torch.full(self.cache_shape, math.nan, dtype=dtype, device=DEVICE)
        return PagedCache(guarded(empty), guarded(empty))

    def run(self, op, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, keys and values as `op` leaves them."""
        cache = self.cache(dtype)
        q_weight, k_weight = (weight.to(dtype) for weight in self.weights)
        q = op(self.qkv.to(dtype), q_weight, k_weight, EPS, self.positions, self.table, self.slots, cache)
        return q, *cache

    def check(self) -> None:
        dtype = self.qkv.dtype
        before = self.qkv.clone()
        with poisoned_outputs(rope):
            q, keys, values = self.run(rope.qk_norm_rope_cache, dtype)
        own_q, own_keys, own_values = self.run(reference.qk_norm_rope_cache, dtype)
        exact_q, exact_keys, _ = self.run(reference.qk_norm_rope_cache, torch.float64)
        assert torch.equal(self.qkv, before)
        assert_contract(q, exact_q, own_q)
        assert_guards(keys)
        assert_guards(values)
        # Values are copied bit for bit, and nothing but the tokens' slots is written.
        assert torch.equal(values.nan_to_num(), own_values.nan_to_num())
        assert torch.equal(values.isnan(), own_values.isnan())
        written = ~exact_keys.isnan()
        assert torch.equal(keys.isnan(), ~written)
        assert_contract(keys[written], exact_keys[written], own_keys[written])


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    "q_heads, kv_heads, head_dim, block_size",
    [
        (32, 4, 128, 16),  # Qwen3-30B-A3B: four tiles of q, one of k and v
        (64, 4, 128, 256),  # Qwen3-235B-A22B, largest blocks
        (4, 2, 64, 32),  # q, k and v share one tile
        (5, 3, 128, 64),  # both borders fall inside a tile
        (8, 1, 256, 128),  # tiles of 4 heads, the last one half empty
        (2, 2, 80, 16),  # halves of 40 in tiles of 64
        (3, 1, 2, 16),  # one pair to turn
        (2, 1, 512, 16),  # largest heads
    ],
)
def test_qk_norm_rope_cache(q_heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    Fused(3, q_heads, kv_heads, head_dim, block_size, dtype).check()


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 65])
def test_qk_norm_rope_cache_tokens(tokens: int) -> None:
    Fused(tokens, 4, 2, 16, 16, torch.bfloat16).check()


def test_qk_norm_rope_cache_without_tokens() -> None:
    case = Fused(0, 4, 2, 16, 16, torch.float32)
    q, keys, _ = case.run(rope.qk_norm_rope_cache, torch.float32)
    assert q.shape == (0, 4, 16) and bool(keys.isnan().all())


@pytest.mark.parametrize("skipped", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_slot_of_minus_one_writes_nothing(skipped: list[int]) -> None:
    """Its q is there all the same; the last slot of the last block, where -1 leads in Python, stays as it is."""
    case = Fused(5, 4, 2, 64, 16, torch.bfloat16)
    case.slots[case.slots == math.prod(case.cache_shape[::2]) - 1] = 0
    case.slots[skipped] = -1
    case.check()


def test_repeats_bit_for_bit_and_a_token_is_the_same_alone() -> None:
    case = Fused(4, 6, 2, 64, 16, torch.bfloat16)
    q, keys, values = case.run(rope.qk_norm_rope_cache, torch.bfloat16)
    q_again, keys_again, values_again = case.run(rope.qk_norm_rope_cache, torch.bfloat16)
    assert torch.equal(q, q_again)
    assert torch.equal(keys.nan_to_num(), keys_again.nan_to_num())
    assert torch.equal(values.nan_to_num(), values_again.nan_to_num())
    slot = int(case.slots[2])
    case.qkv, case.positions, case.slots = case.qkv[2:3], case.positions[2:3], case.slots[2:3]
    q_alone, keys_alone, _ = case.run(rope.qk_norm_rope_cache, torch.bfloat16)
    assert torch.equal(q[2:3], q_alone)
    assert torch.equal(keys[slot // 16, :, slot % 16], keys_alone[slot // 16, :, slot % 16])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rope_rounds_where_hugging_face_does(dtype: torch.dtype) -> None:
    """After the norm, after the weight and after the rotation: one rounding less changes many values."""
    case = Fused(6, 16, 2, 128, 16, dtype)
    q, own = case.run(rope.qk_norm_rope_cache, dtype)[0], case.run(reference.qk_norm_rope_cache, dtype)[0]
    assert (q == own).double().mean() > 0.99


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # v goes the way of k, but is not read there
def test_values_keep_their_bits() -> None:
    """Infinities and numbers beyond the range of a norm pass through v; the heads beside it do not notice."""
    case = Fused(2, 2, 1, 32, 16, torch.float16)
    case.qkv[:, -32:-28] = torch.tensor([math.inf, -math.inf, 6e4, -0.0], dtype=torch.float16)
    q, keys, values = case.run(rope.qk_norm_rope_cache, torch.float16)
    block, offset = case.slots // 16, case.slots % 16
    stored = values[block, 0, offset]
    assert torch.equal(stored.view(torch.int16), case.qkv[:, -32:].contiguous().view(torch.int16))
    assert bool(q.isfinite().all()) and bool(keys[block, 0, offset].isfinite().all())


@pytest.mark.slow
@examples(20)
@given(
    tokens=st.integers(1, 3),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 5),
    half=st.integers(1, 70),
    block_size=st.sampled_from([16, 32, 256]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_rope_any_shape(
    tokens: int, kv_heads: int, group: int, half: int, block_size: int, dtype: torch.dtype, seed: int
) -> None:
    Fused(tokens, kv_heads * group, kv_heads, 2 * half, block_size, dtype, seed).check()
    check_rope(tokens, kv_heads * group, 2 * half, dtype, seed)


def test_rope_refusals_say_what_they_got() -> None:
    x, table = torch.zeros(2, 3, 16, device=DEVICE), rope_table(16)
    positions = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for message, arguments in (
        (r"x must be .* \[T, heads, D\] .*, got float32 \[2, 48\]", (x.view(2, 48), positions, table)),
        ("x must be float32, .*, got float64", (x.double(), positions, table)),
        (r"x must be .* contiguous memory, got .* strides \[48, 32, 1\]", (x[:, ::2], positions, table)),
        ("head_dim must be even, 2 to 512, got 15", (x[..., :15].contiguous(), positions, table)),
        (r"positions must be int64 \[2\] .*, got int64 \[1\]", (x, positions[:1], table)),
        ("positions must be int64 .*, got int32", (x, positions.int(), table)),
        (r"positions must be .* contiguous memory, got .* strides \[2\]", (x, positions.repeat(2)[::2], table)),
        (
            r"rope_table must be .* \[max_positions, 16\] .*, got .* \[512, 8\]",
            (x, positions, table[:, :8]),
        ),
        ("rope_table must be float32 .*, got float16", (x, positions, table.half())),
        (
            r"rope_table .* contiguous memory, .* strides \[32, 1\]",
            (x, positions, table.repeat(1, 2)[:, :16]),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            rope.rope(*arguments)


def test_qk_norm_rope_cache_refusals_say_what_they_got() -> None:
    case = Fused(2, 4, 2, 16, 16, torch.float32)
    keys, values = cache = case.cache(torch.float32)
    good = {
        "qkv": case.qkv,
        "q_weight": case.weights[0],
        "k_weight": case.weights[1],
        "eps": EPS,
        "positions": case.positions,
        "rope_table": case.table,
        "slot_mapping": case.slots,
        "cache": cache,
    }
    for message, name, wrong in (
        (r"qkv must be .* \[T, \(Hq .*, got float32 \[2, 8, 16\]", "qkv", case.qkv.view(2, 8, 16)),
        ("qkv must be float32, .*, got float64", "qkv", case.qkv.double()),
        (r"qkv must be .* contiguous memory, got .* strides \[256, 2\]", "qkv", case.qkv.repeat(1, 2)[:, ::2]),
        (r"qkv must be \[T, \(Hq \+ 2 \* 2\) \* 16\], got \[2, 127\]", "qkv", case.qkv[:, :127].contiguous()),
        (r"qkv must be .*, got \[2, 64\]", "qkv", case.qkv[:, :64].contiguous()),  # k and v, but no q
        ("cache.keys must be float32 .*, got float16", "cache", cache._replace(keys=keys.half())),
        (
            r"cache.keys must be .* \[num_blocks, .* \[3, 2, 256\]",
            "cache",
            cache._replace(keys=keys.flatten(2)),
        ),
        (
            r"cache.values .* \[3, 2, 16, 16\] .*, got .* \[2, 2, 16, 16\]",
            "cache",
            cache._replace(values=values[:2]),
        ),
        ("cache.keys must be .* contiguous memory", "cache", cache._replace(keys=keys.transpose(2, 3))),
        (r"q_weight must be float32 \[16\] .*, got float32 \[8\]", "q_weight", case.weights[0][:8]),
        ("k_weight must be float32 .*, got bfloat16", "k_weight", case.weights[1].bfloat16()),
        ("slot_mapping must be int64 .*, got int32", "slot_mapping", case.slots.int()),
        (r"slot_mapping must be int64 \[2\] .*, got int64 \[1\]", "slot_mapping", case.slots[:1]),
        (r"positions must be int64 \[2\]", "positions", case.positions[:1]),
        (r"rope_table must be float32 \[max_positions, 16\]", "rope_table", case.table[:, :8].contiguous()),
    ):
        with pytest.raises(ValueError, match=message):
            rope.qk_norm_rope_cache(**good | {name: wrong})
    assert keys.isnan().all() and values.isnan().all()
