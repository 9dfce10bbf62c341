"""The cards that a dry run can believe in, and PyTorch's caching allocator on one of them."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import torch

MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    """What an engine asks of a card. memory: 1e9 bytes. shared: the most that one program may have, bytes."""

    arch: int
    name: str
    memory: float
    multiprocessors: int
    shared: int

    @property
    def cublas_workspace(self) -> int:
        """PyTorch's default for each stream that multiplies, bytes."""
        return 32 * MIB if self.arch >= 90 and self.arch < 120 else 4096 * 2 * 1024 + 16 * 8 * 1024


CARDS = {
    card.arch: card
    for card in (
        Card(80, "A100 80 GB", 80.0, 108, 163 << 10),
        Card(89, "RTX 4090", 25.2, 128, 99 << 10),
        Card(90, "H100 80 GB", 80.0, 132, 227 << 10),
        Card(100, "B200", 192.0, 148, 227 << 10),
        Card(120, "RTX 5090", 32.0, 170, 99 << 10),
    )
}
# What the driver keeps for itself, for each process.
CONTEXT_BYTES = 600 * MIB


@dataclass(eq=False)
class Block:
    segment: "Segment"
    start: int
    size: int
    free: bool = True

    @property
    def address(self) -> int:
        return self.segment.base + self.start


@dataclass(eq=False)
class Segment:
    """Memory that the driver gave at once. pool: stream, small or not, and the graphs that share it or None."""

    pool: tuple
    size: int
    base: int
    blocks: list[Block] = field(default_factory=list)


@dataclass(eq=False)
class Owned:
    """The memory of one storage."""

    device: int
    block: Block
    alive: bool = True


class Allocator:
    """The memory of one device by the rules of PyTorch's caching allocator, in bytes.

    Requests are rounded to 512 bytes and served best fit from segments of their stream and pool: of 2 MiB up to 1 MiB,
    of 20 MiB below 10 MiB, else of their own size. Blocks are split and merged. Cached segments go back to the driver
    when it has no more, but not during a capture. So `reserved` is what the card would show.
    pools: those of graphs that are still there, which keep their segments.
    """

    def __init__(self, total: int, pools: Callable[[], Container] = frozenset) -> None:
        self.total, self.pools = total, pools
        self.segments: list[Segment] = []
        self.reserved = self.allocated = self.peak = self.peak_reserved = 0
        self._next_base = 0x7F0000000000
        # Storages die in any thread, also while memory is given out: they are freed before the next look.
        self._dead: deque[Owned] = deque()
        self._lock = threading.RLock()

    @property
    def held(self) -> int:
        """All that the process takes of the card."""
        return self.reserved + CONTEXT_BYTES

    @property
    def peak_held(self) -> int:
        return self.peak_reserved + CONTEXT_BYTES

    def own(self, storage: Any, device: int, stream: str, private: Any, capturing: bool) -> Owned:
        """Memory for a storage, until that storage is gone."""
        owned = Owned(device, self.malloc(storage.nbytes(), stream, private, capturing))
        weakref.finalize(storage, self._dead.append, owned)
        return owned

    def malloc(self, nbytes: int, stream: str, private: Any, capturing: bool) -> Block:
        """Raises torch.OutOfMemoryError."""
        with self._lock:
            self.collect()
            size = max(512, -(-nbytes // 512) * 512)
            small = size <= MIB
            pool = (stream, small, private)
            blocks = (b for s in self.segments if s.pool == pool for b in s.blocks if b.free and b.size >= size)
            block = min(blocks, key=lambda b: (b.size, b.address), default=None)
            if block is None:
                block = self._segment(pool, size, small, capturing)
            rest = block.size - size
            if rest >= 512 if small else rest > MIB:
                at = block.segment.blocks.index(block)
                block.segment.blocks.insert(at + 1, Block(block.segment, block.start + size, rest))
                block.size = size
            block.free = False
            self.allocated += block.size
            self.peak = max(self.peak, self.allocated)
            return block

    def _segment(self, pool: tuple, size: int, small: bool, capturing: bool) -> Block:
        wanted = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if wanted > self.available() and not capturing:
            self.empty_cache()
        if wanted > self.available():
            free = f"{wanted / 1e6:,.0f} MB wanted, {self.available() / 1e6:,.0f} MB free"
            raise torch.OutOfMemoryError(f"out of memory{' in a capture' * capturing}: {free}")
        segment = Segment(pool, wanted, self._next_base)
        self._next_base += wanted + 2 * MIB
        segment.blocks.append(Block(segment, 0, wanted))
        self.segments.append(segment)
        self.reserved += wanted
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return segment.blocks[0]

    def collect(self) -> None:
        """Frees what dead storages held."""
        with self._lock:
            while self._dead:
                owned = self._dead.popleft()
                owned.alive = False
                self._free(owned.block)

    def _free(self, block: Block) -> None:
        block.free = True
        self.allocated -= block.size
        blocks = block.segment.blocks
        at = blocks.index(block)
        for i in (at, at - 1):
            if 0 <= i < len(blocks) - 1 and blocks[i].free and blocks[i + 1].free:
                blocks[i].size += blocks[i + 1].size
                del blocks[i + 1]

    def available(self) -> int:
        return self.total - self.held

    def empty_cache(self) -> None:
        """Gives back segments that hold nothing, but for those of graphs that are still there."""
        with self._lock:
            self.collect()
            kept = self.pools()
            for segment in list(self.segments):
                if segment.pool[2] not in kept and len(segment.blocks) == 1 and segment.blocks[0].free:
                    self.segments.remove(segment)
                    self.reserved -= segment.size

    def graph_bytes(self) -> tuple[int, int]:
        """Reserved bytes of all pools of graphs, and what of them results still hold."""
        self.collect()
        mine = [segment for segment in self.segments if segment.pool[2] is not None]
        return sum(s.size for s in mine), sum(b.size for s in mine for b in s.blocks if not b.free)
