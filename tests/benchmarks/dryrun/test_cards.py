"""The allocator: PyTorch's rules, each with the numbers that they give."""

import gc

import pytest
import torch

from benchmarks.dryrun.cards import CARDS, CONTEXT_BYTES, MIB, Allocator

GRAPH = ("pool", 1)


class Storage:
    """What an allocator asks of a tensor's storage."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    def nbytes(self) -> int:
        return self._nbytes


def allocator(free: int = 1000 * MIB) -> Allocator:
    return Allocator(free + CONTEXT_BYTES)


def take(memory: Allocator, nbytes: int, stream: str = "s", private: object = None, capturing: bool = False) -> Storage:
    storage = Storage(nbytes)
    memory.own(storage, 0, stream, private, capturing)
    return storage


@pytest.mark.parametrize(
    "nbytes, allocated, reserved",
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # what is left would be too small to be split off
        (19 * MIB + 5, 20 * MIB, 20 * MIB),
    ],
)
def test_what_a_request_takes(nbytes, allocated, reserved):
    memory = allocator()
    kept = take(memory, nbytes)
    assert (memory.allocated, memory.reserved) == (allocated, reserved)
    assert memory.held == reserved + CONTEXT_BYTES and kept.nbytes() == nbytes


def test_the_smallest_block_that_fits_is_split_and_merged_again():
    memory = allocator()
    first, second, third = take(memory, 2 * MIB), take(memory, 4 * MIB), take(memory, 3 * MIB)
    addresses = {block.address for segment in memory.segments for block in segment.blocks if not block.free}
    assert memory.reserved == 20 * MIB and len(addresses) == 3
    del second
    memory.collect()
    assert memory.malloc(2 * MIB, "s", None, False).start == 2 * MIB, "the hole of 4 MiB fits better than the rest"
    del first, third
    memory.collect()
    assert memory.allocated == 2 * MIB and [b.free for b in memory.segments[0].blocks] == [True, False, True]


def test_streams_and_graphs_have_pools_of_their_own():
    memory, alive = allocator(), {GRAPH}
    memory.pools = lambda: alive
    kept = [take(memory, 512), take(memory, 512, "other"), take(memory, 512, private=GRAPH, capturing=True)]
    assert memory.reserved == 6 * MIB and memory.graph_bytes() == (2 * MIB, 512)
    kept.clear()
    gc.collect()
    memory.empty_cache()
    assert memory.reserved == 2 * MIB and memory.graph_bytes() == (2 * MIB, 0), "a graph keeps its pool"
    take(memory, 512, private=GRAPH)
    assert memory.reserved == 2 * MIB and (memory.peak_reserved, memory.peak) == (6 * MIB, 3 * 512)
    alive.clear()
    memory.empty_cache()
    assert memory.reserved == 0, "until it is gone"
    kept.append(take(memory, 512))
    assert (memory.reserved, memory.peak_reserved) == (2 * MIB, 6 * MIB)


def test_cached_memory_is_given_back_when_there_is_no_more_but_not_in_a_capture():
    memory = allocator(30 * MIB)
    take(memory, 20 * MIB)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory in a capture: 21 MB wanted, 10 MB free"):
        take(memory, 20 * MIB, "other", GRAPH, True)
    take(memory, 20 * MIB, "other")
    assert memory.reserved == 20 * MIB
    with pytest.raises(torch.OutOfMemoryError, match="out of memory: 42 MB wanted, 31 MB free"):
        take(memory, 40 * MIB)


@pytest.mark.parametrize("arch, mib", [(80, 8.125), (89, 8.125), (90, 32), (100, 32), (120, 8.125)])
def test_workspace_of_cublas(arch, mib):
    assert CARDS[arch].cublas_workspace == mib * MIB
