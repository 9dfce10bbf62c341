"""decode_attention against the reference in float64, at every border, and independent of the batch to the bit."""

from dataclasses import replace

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import reference
from qwen3_kernels.attention import decode
from qwen3_kernels.attention.decode import MAX_SPLITS, MIN_SPLIT, TILES, decode_attention
from qwen3_kernels.attention.tile import BLOCK_SIZES
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.testing.contract import assert_contract, poisoned_outputs

from .attention_case import DEVICE, AttentionCase, attention_case, few_sums
from .parameters import EVERY_DTYPE, examples, slow


def run(case: AttentionCase) -> torch.Tensor:
    with poisoned_outputs(decode):
        return decode_attention(*case.decode_arguments())


def check(case: AttentionCase, summed: float = 0.0) -> torch.Tensor:
    out = run(case)
    exact = reference.decode_attention(*case.plain(torch.float64).decode_arguments())
    own = reference.decode_attention(*case.plain(case.q.dtype).decode_arguments())
    assert_contract(out, exact, own, summed or few_sums(out))
    return out


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("block_size", [16, *slow(32, 64, 128), 256])
def test_decode_seq_len_at_every_border_of_block_and_split(block_size, dtype):
    lengths = [0, 1]  # nothing to attend to; the query's own token alone
    lengths += [block_size - 1, block_size, block_size + 1]  # the last block almost full, full, just begun
    lengths += [MIN_SPLIT - 1, MIN_SPLIT, MIN_SPLIT + 1]  # one split, and one with a single token in the second
    lengths += [2 * MIN_SPLIT + 1]  # three splits
    out = check(attention_case(lengths, kv_heads=1, block_size=block_size, dtype=dtype))
    assert not out[0].any()


@pytest.mark.parametrize("dtype", [*slow(torch.float32), torch.bfloat16])
def test_decode_seq_len_where_splits_start_to_grow(dtype):
    step = MAX_SPLITS * TILES[dtype.itemsize].block_n
    border = MAX_SPLITS * MIN_SPLIT  # every split is in use, all of the smallest size; one token more and all grow
    lengths = [border, border + 1, border + step + 1]
    check(attention_case(lengths, kv_heads=1, group=2, head_dim=16, block_size=256, dtype=dtype))


def test_decode_at_the_depth_of_real_models():
    check(attention_case([3000], kv_heads=1, head_dim=128))


@pytest.mark.parametrize(
    "group", [1, *slow(2, 3), 5, 8, *slow(16)]
)  # alone, powers of two, odd as in Qwen3-14B, a full tile
def test_decode_group(group):
    check(attention_case([37, 130], group=group))


@pytest.mark.parametrize(
    "head_dim", [8, *slow(16, 80), 128]
)  # less than a dot takes, the least, no power of two, Qwen3's
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_decode_head_dim(head_dim, dtype):
    check(attention_case([37, 130], head_dim=head_dim, dtype=dtype))


def test_decode_every_tile_is_a_dtype_tested_here():
    assert set(TILES) == {dtype.itemsize for dtype in DTYPES}


def test_decode_scores_far_apart():
    """Rounding of a score is relative to the score, and so is that of its weight."""
    check(attention_case([65, 200], dtype=torch.float32, sharpness=50), summed=128)


def test_one_key_outweighs_all_others_in_a_later_split():
    case = attention_case([3 * MIN_SPLIT], kv_heads=1, group=1, dtype=torch.float32, block_size=256)
    block, slot = case.block_tables[0, 1], MIN_SPLIT // 2
    case.key_cache[block, 0, slot] = 100 * case.q[0, 0]
    torch.testing.assert_close(run(case)[0, 0], case.value_cache[block, 0, slot], rtol=0, atol=0)


@pytest.mark.parametrize("more", [*slow(0), 1])
def test_the_last_token_is_seen_where_splits_start_to_grow(more):
    """It outweighs all others: missed, it would be one of thousands."""
    case = attention_case([MAX_SPLITS * MIN_SPLIT + more], kv_heads=1, group=1, head_dim=16, block_size=256)
    last = int(case.seq_lens[0]) - 1
    block = case.block_tables[0, last // 256]
    case.key_cache[block, 0, last % 256] = 100 * case.q[0, 0]
    torch.testing.assert_close(run(case)[0, 0], case.value_cache[block, 0, last % 256], rtol=0, atol=0)


@pytest.mark.slow
@examples(6)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 16),
    head_dim=st.integers(1, 128),
    block_size=st.sampled_from(BLOCK_SIZES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_decode_any_shape(lengths, **shape):
    check(attention_case(lengths, **shape))


@pytest.mark.slow
def test_batch_and_table_width_do_not_change_a_bit():
    lengths = [5, 129, 0, 700, 256]
    case = attention_case(lengths, dtype=torch.bfloat16, spare_blocks=300)
    together = run(case)
    assert torch.equal(together, run(case)), "the same call twice"
    for s, length in enumerate(lengths):
        alone = replace(
            case,
            q=case.q[s : s + 1].contiguous(),
            block_tables=case.block_tables[s : s + 1, : -(-length // 16)],
            seq_lens=case.seq_lens[s : s + 1],
        )
        assert torch.equal(run(alone)[0], together[s]), length


def test_decode_int32_ids_and_tables_cut_from_wider_ones():
    case = attention_case([0, 33, 140])
    table, lengths = case.block_tables[:, :-1], case.seq_lens
    assert not table.is_contiguous()
    expected = run(case)
    assert torch.equal(run(replace(case, block_tables=table)), expected)
    assert torch.equal(run(replace(case, block_tables=table.int(), seq_lens=lengths.int())), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [16, 48, 80, 96])
def test_decode_reads_no_entry_beyond_a_table_of_exact_width(length, dtype):
    """The context ends with a block, and that of 16, 48 and 80 tokens not with a tile."""
    check(attention_case([length], spare_blocks=0, kv_heads=1, head_dim=16, dtype=dtype))


def test_decode_reading_too_much_is_reported():
    """The control of `attention_case`: a slot that was never written is not a number, and a missing block no memory."""
    case = attention_case([20], kv_heads=1, head_dim=16)
    assert run(case).isfinite().all()
    assert run(replace(case, seq_lens=case.seq_lens + 1)).isnan().all(-1).any()
    if DEVICE == "cpu":  # a GPU would end the process
        with pytest.raises(triton.runtime.errors.InterpreterError, match="outside the tensors"):
            run(replace(case, seq_lens=case.seq_lens + 13))


def test_decode_nothing_to_do():
    case = attention_case([0, 0])
    assert not run(replace(case, block_tables=case.block_tables[:, :0])).any()
    empty = replace(case, q=case.q[:0], block_tables=case.block_tables[:0], seq_lens=case.seq_lens[:0])
    assert run(empty).shape == (0, *case.q.shape[1:])


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_decode_blocks_beyond_2_to_the_31_elements(ids):
    case = attention_case([40], kv_heads=4, group=1, head_dim=128)
    far = 2**31 // case.key_cache[0].numel() + 7
    # On a CPU untouched memory costs nothing: of this pool only three blocks ever exist.
    pool = torch.empty((far + len(case.key_cache), *case.key_cache.shape[1:]), dtype=case.q.dtype, device=DEVICE)
    pool[far:] = case.key_cache
    moved = replace(case, block_tables=(case.block_tables + far).to(ids), key_cache=pool, value_cache=pool)
    assert torch.equal(run(moved), run(replace(case, value_cache=case.key_cache)))


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("q", lambda c: c.q[0], "q must be .* \\[T, Hq, D\\] .*, got bfloat16 \\[16, 64\\]"),
        ("q", lambda c: c.q.double(), "q must be float32, float16 or bfloat16 .*, got float64"),
        ("q", lambda c: c.q.transpose(0, 1).contiguous().transpose(0, 1), "strides"),
        ("q", lambda c: c.q[:, :3].contiguous(), "got 3 and 2 heads"),
        ("q", lambda c: c.q.repeat(1, 3, 1), "got 48 and 2 heads"),
        ("q", lambda c: c.q[:, :, :32].contiguous(), "cache.keys must be .* \\[num_blocks, Hkv, block_size, 32\\]"),
        ("q", lambda c: c.q[:1], "got 1 rows and 2 tables"),
        ("q", lambda c: c.q.to("meta"), "cache.keys must be"),
        ("key_cache", lambda c: c.key_cache[0], "cache.keys must be"),
        ("key_cache", lambda c: c.key_cache.half(), "cache.keys must be bfloat16 .*, got float16"),
        ("value_cache", lambda c: c.value_cache[1:], "cache.values must be"),
        (
            "value_cache",
            lambda c: c.value_cache.transpose(1, 2).contiguous().transpose(1, 2),
            "values .* contiguous memory",
        ),
        ("block_tables", lambda c: c.block_tables.float(), "block_tables must be int32 or int64"),
        ("block_tables", lambda c: c.block_tables[0], "block_tables must be"),
        ("block_tables", lambda c: c.block_tables.t().contiguous().t(), "block_tables must be .* contiguous rows"),
        ("seq_lens", lambda c: c.seq_lens[:1], "seq_lens must be"),
        ("scale", lambda c: 0.0, "scale must be positive"),
    ],
)
def test_decode_refuses(field, wrong, message):
    case = attention_case([20, 40])
    with pytest.raises(ValueError, match=message):
        decode_attention(*replace(case, **{field: wrong(case)}).decode_arguments())


@pytest.mark.parametrize(("shape", "message"), [((2, 2, 48, 64), "got 48"), ((2, 2, 16, 192), "got 192")])
def test_decode_refuses_cache(shape, message):
    cache, ids = torch.zeros(shape, device=DEVICE), torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    q = torch.zeros(1, 4, shape[-1], device=DEVICE)
    with pytest.raises(ValueError, match=message):
        decode_attention(q, PagedCache(cache, cache), ids, ids[0], 1.0)
