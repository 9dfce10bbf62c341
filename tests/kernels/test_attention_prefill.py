"""prefill_attention against the reference in float64: any mix of sequences, prefixes and chunks, to the bit."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import reference
from qwen3_kernels.attention import decode, prefill
from qwen3_kernels.attention.prefill import TILES, prefill_attention, sequence_of
from qwen3_kernels.attention.tile import BLOCK_SIZES
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.testing.contract import assert_contract, poisoned_outputs

from .attention_case import DEVICE, AttentionCase, attention_case, few_sums
from .parameters import EVERY_DTYPE, examples, slow


def run(case: AttentionCase) -> torch.Tensor:
    with poisoned_outputs(prefill):
        return prefill_attention(*case.prefill_arguments())


def check(case: AttentionCase, summed: float = 0.0) -> torch.Tensor:
    out = run(case)
    exact = reference.prefill_attention(*case.plain(torch.float64).prefill_arguments())
    own = reference.prefill_attention(*case.plain(case.q.dtype).prefill_arguments())
    assert_contract(out, exact, own, summed or few_sums(out))
    return out


def test_prefill_every_tile_is_a_dtype_tested_here():
    assert set(TILES) == {dtype.itemsize for dtype in DTYPES}


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("group", [2, 8])
def test_prefill_number_of_queries_at_the_borders_of_a_tile(group, dtype):
    tile = TILES[dtype.itemsize]
    n = tile.block_m // group  # query tokens in a tile
    queries = [1, n - 1, n, 0, n + 1, 2 * n + 1]  # the 0: a sequence that has nothing to do in this step
    check(attention_case(queries, queries, kv_heads=1, group=group, dtype=dtype))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("block_size", [16, *slow(32, 64, 128), 256])
def test_prefill_cached_prefix_at_the_borders_of_block_and_tile(block_size, dtype):
    n = TILES[dtype.itemsize].block_n
    prefixes = [0, 1, block_size - 1, block_size, block_size + 1]  # the last block almost full, full, just begun
    prefixes += [n - 2, n - 1, n]  # the first query does not yet, just, and more than see a whole tile
    queries = [5, 1, 2, 1, 7, 3, 2, 1]
    lengths = [prefix + count for prefix, count in zip(prefixes, queries)]
    check(attention_case(lengths, queries, kv_heads=1, block_size=block_size, dtype=dtype))


def test_prefill_at_the_depth_of_real_models():
    check(attention_case([2000], [16], kv_heads=1, head_dim=128))


@pytest.mark.parametrize(
    "group", [1, *slow(3), 5, *slow(16)]
)  # alone; rows left over in the tile, two of Qwen3's; the largest
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefill_group(group, dtype):
    check(attention_case([30, 75], [30, 11], kv_heads=2, group=group, head_dim=32, dtype=dtype))


@pytest.mark.parametrize(
    "head_dim", [8, *slow(16, 80), 128]
)  # less than a dot takes, the least, no power of two, Qwen3's
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_prefill_head_dim(head_dim, dtype):
    check(attention_case([20, 75], [20, 9], head_dim=head_dim, dtype=dtype))


def test_prefill_scores_far_apart():
    """Rounding of a score is relative to the score, and so is that of its weight."""
    check(attention_case([20, 150], [20, 9], dtype=torch.float32, sharpness=50), summed=128)


@pytest.mark.slow
@examples(8)
@given(
    prefixes_and_queries=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 16),
    head_dim=st.integers(1, 128),
    block_size=st.sampled_from(BLOCK_SIZES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_prefill_any_shape(prefixes_and_queries, **shape):
    check(attention_case([sum(pair) for pair in prefixes_and_queries], [n for _, n in prefixes_and_queries], **shape))


@pytest.mark.parametrize("dtype", [*slow(torch.float32), torch.bfloat16])
def test_batch_and_chunks_do_not_change_a_bit(dtype):
    queries = [3, 80, 17]
    case = attention_case([90, 80, 17], queries, kv_heads=1, dtype=dtype)
    together = run(case)
    assert torch.equal(together, run(case)), "the same call twice"
    outs = together.split(queries)
    for sequence in range(3):
        assert torch.equal(run(case.chunk(sequence, 0, queries[sequence])), outs[sequence]), "alone"
    borders = [0, 1, 33, 65, 80]
    chunks = [run(case.chunk(1, start, stop)) for start, stop in pairwise(borders)]
    assert torch.equal(torch.cat(chunks), outs[1]), "in chunks"


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_prefill_last_row_equals_decode(dtype):
    queries = [60, 2, 1]
    case = attention_case([150, 64, 1], queries, kv_heads=1, dtype=dtype)
    with poisoned_outputs(decode):
        decoded = decode.decode_attention(case.q[case.query_start_loc[1:] - 1], *case.decode_arguments()[1:])
    prefilled = run(case)[case.query_start_loc[1:] - 1]
    # Sums in another order, then one rounding more where the weights are rounded against another maximum.
    torch.testing.assert_close(decoded, prefilled, rtol=0, atol=4 * torch.finfo(dtype).eps)


@triton.jit
def sequence_of_kernel(out_ptr, query_start_loc_ptr, sequences, TOKENS: tl.constexpr):
    tile = tl.program_id(0)
    tl.store(out_ptr + tile, sequence_of(tile, query_start_loc_ptr, sequences, TOKENS))


@examples(20)
@given(queries=st.lists(st.integers(0, 20), min_size=1, max_size=30), tokens=st.integers(1, 16))
def test_tiles_cover_every_query_once(queries, tokens):
    starts = torch.tensor([0, *queries]).cumsum(0)
    tiles = sum(queries) // tokens + len(queries)
    found = torch.full((tiles,), -1, device=DEVICE)
    sequence_of_kernel[(tiles,)](found, starts.to(DEVICE), len(queries), tokens)
    covered = []
    for tile, sequence in enumerate(found.tolist()):
        first = (tile - int(starts[sequence]) // tokens - sequence) * tokens
        assert first >= 0
        covered += [(sequence, query) for query in range(first, min(first + tokens, queries[sequence]))]
    assert covered == [(sequence, query) for sequence, count in enumerate(queries) for query in range(count)]


@pytest.mark.slow
def test_more_sequences_than_one_step_of_the_search():
    lengths = [1 + s % 3 for s in range(260)]
    check(attention_case(lengths, kv_heads=1, group=1, head_dim=16, dtype=torch.float32))


def test_prefill_int32_ids_and_tables_cut_from_wider_ones():
    case = attention_case([20, 33], [20, 4])
    table, starts, lengths = case.block_tables[:, :-1], case.query_start_loc, case.seq_lens
    assert not table.is_contiguous()
    expected = run(case)
    assert torch.equal(run(replace(case, block_tables=table)), expected)
    ints = replace(case, block_tables=table.int(), query_start_loc=starts.int(), seq_lens=lengths.int())
    assert torch.equal(run(ints), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [16, 48, 80, 96])
def test_prefill_reads_no_entry_beyond_a_table_of_exact_width(length, dtype):
    """The context ends with a block, and that of 16, 48 and 80 tokens not with a tile."""
    check(attention_case([length], [3], spare_blocks=0, kv_heads=1, head_dim=16, dtype=dtype))


def test_prefill_reading_too_much_is_reported():
    """The control of `attention_case`: a slot that was never written is not a number, and a missing block no memory."""
    case = attention_case([20], [3], kv_heads=1, head_dim=16)
    assert run(case).isfinite().all()
    assert run(replace(case, seq_lens=case.seq_lens + 1)).isnan().all(-1).any()
    if DEVICE == "cpu":  # a GPU would end the process
        with pytest.raises(triton.runtime.errors.InterpreterError, match="outside the tensors"):
            run(replace(case, seq_lens=case.seq_lens + 13))


def test_prefill_nothing_to_do():
    case = attention_case([0, 20], [0, 0])
    assert run(case).shape == (0, 16, 64)
    none = replace(case, block_tables=case.block_tables[:0], seq_lens=case.seq_lens[:0])
    assert run(replace(none, query_start_loc=case.query_start_loc[:1])).shape == (0, 16, 64)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_prefill_blocks_beyond_2_to_the_31_elements(ids):
    case = attention_case([70], [3], kv_heads=4, group=1, head_dim=128)
    far = 2**31 // case.key_cache[0].numel() + 7
    # On a CPU untouched memory costs nothing: of this pool only the last blocks ever exist.
    pool = torch.empty((far + len(case.key_cache), *case.key_cache.shape[1:]), dtype=case.q.dtype, device=DEVICE)
    pool[far:] = case.key_cache
    moved = replace(case, block_tables=(case.block_tables + far).to(ids), key_cache=pool, value_cache=pool)
    assert torch.equal(run(moved), run(replace(case, value_cache=case.key_cache)))


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("q", lambda c: c.q.double(), "q must be .*, got float64"),
        ("q", lambda c: c.q.transpose(0, 1).contiguous().transpose(0, 1), "strides"),
        ("key_cache", lambda c: c.key_cache.half(), "cache.keys must be bfloat16"),
        ("query_start_loc", lambda c: c.query_start_loc[:-1], "query_start_loc must be int32 or int64"),
        ("query_start_loc", lambda c: c.query_start_loc.float(), "query_start_loc must be int32 or int64"),
        (
            "query_start_loc",
            lambda c: c.query_start_loc.repeat_interleave(2)[::2],
            "query_start_loc .* contiguous rows",
        ),
    ],
)
def test_prefill_refuses(field, wrong, message):
    case = attention_case([20, 40], [20, 3])
    with pytest.raises(ValueError, match=message):
        prefill_attention(*replace(case, **{field: wrong(case)}).prefill_arguments())
