"""The tensors of one step, by hand: two decodes, then chunks of two prompts."""

import pytest

from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence


def work(tokens, start, count, samples, blocks):
    return Work(Sequence(tokens, Sampling(), frozenset(), 99, blocks=blocks), start, count, samples)


@pytest.fixture
def step():
    """In blocks of 4; the second decode and the first prompt end with a block."""
    return Scheduled((
        work([10, 11, 12, 13, 14], 4, 1, True, [3, 5]),
        work([20, 21, 22, 23], 3, 1, True, [7, 8]),
        work(list(range(30, 38)), 2, 6, False, [1, 2]),
        work([40, 41, 42], 0, 3, True, [9]),
    ))  # fmt: skip


def test_tokens_places_and_tables(step):
    batch = forward_batch(step, 4, "cpu")
    assert batch.token_ids.tolist() == [14, 23, 32, 33, 34, 35, 36, 37, 40, 41, 42]
    assert batch.positions.tolist() == [4, 3, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert batch.slot_mapping.tolist() == [20, 31, 6, 7, 8, 9, 10, 11, 36, 37, 38]
    assert batch.seq_lens.tolist() == [5, 4, 8, 3] and batch.num_decodes == 2 and not batch.is_decode
    # As wide as the longest needs, no block more where a context ends with one.
    assert batch.block_tables.tolist() == [[3, 5], [7, 0], [1, 2], [9, 0]]
    # Rows of the prompts, counted from the first of them.
    assert batch.query_start_loc.tolist() == [0, 6, 9]


def test_rows_whose_logits_are_wanted(step):
    rows, tables, lengths = forward_batch(step, 4, "cpu").logit_rows
    assert rows.tolist() == [0, 1, 10] and lengths.tolist() == [5, 4, 3]
    assert tables.tolist() == [[3, 5], [7, 0], [9, 0]]
    assert forward_batch(step, 4, "cpu", all_logits=True).logit_rows is None


def test_a_step_that_only_decodes_wants_all_rows(step):
    batch = forward_batch(Scheduled(step.work[:2]), 4, "cpu")
    assert batch.logit_rows is None and batch.is_decode and batch.query_start_loc.tolist() == [0]
