"""Paged KV cache: block pool and prefix reuse. A block holds K and V of `block_size` tokens in every layer."""

from array import array
from collections import OrderedDict
from hashlib import blake2b

from .sequence import Sequence


class BlockPool:
    """Allocates blocks to sequences, shares cached prefixes, and evicts the least recently used.

    A full block enters the prefix cache under the hash of all tokens up to its end, so that a sequence that begins with
    the same tokens shares it instead of computing it. A cached block is never written again. A block that is free keeps
    its content until it is allocated: blocks without content first, then the least recently used.
    model: the start of every hash, so that two models share nothing. prefix_caching=False caches nothing.
    Writes blocks, block_hashes and num_cached_blocks of a Sequence; only the scheduler calls it.
    """

    def __init__(self, num_blocks: int, block_size: int, model: str = "", prefix_caching: bool = True) -> None:
        self.num_blocks, self.block_size, self.prefix_caching = num_blocks, block_size, prefix_caching
        self._root = blake2b(model.encode(), digest_size=16).digest()
        self.renew()

    def renew(self) -> None:
        """Frees every block and empties the prefix cache; sequences must drop their blocks."""
        self.ref_counts = [0] * self.num_blocks
        self._free = OrderedDict.fromkeys(range(self.num_blocks))
        self._hashes: dict[int, bytes] = {}
        self._cached: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> list[int]:
        """The cached blocks that hold the start of `sequence`; its last token is never among them."""
        found: list[int] = []
        for i in range((len(sequence.token_ids) - 1) // self.block_size if self.prefix_caching else 0):
            block = self._cached.get(self._hash(sequence, i))
            if block is None:
                break
            found.append(block)
        return found

    def num_free_without(self, shared: list[int]) -> int:
        """How many blocks would be free if a sequence held `shared`."""
        return len(self._free) - sum(self.ref_counts[block] == 0 for block in shared)

    def share(self, sequence: Sequence, shared: list[int]) -> None:
        """Gives cached blocks to `sequence`, which has none yet."""
        for block in shared:
            self._free.pop(block, None)
            self.ref_counts[block] += 1
        sequence.blocks = list(shared)
        sequence.num_cached_blocks = len(shared)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives `sequence` the blocks that it lacks for `num_tokens` tokens; changes nothing if too few are free."""
        missing = self.blocks_for(num_tokens) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._evict(block)
            self.ref_counts[block] = 1
            sequence.blocks.append(block)
        return True

    def cache(self, sequence: Sequence, num_tokens: int) -> None:
        """Enters the blocks that the first `num_tokens` tokens fill into the prefix cache, if their content is new."""
        while self.prefix_caching and sequence.num_cached_blocks < num_tokens // self.block_size:
            i = sequence.num_cached_blocks
            block_hash, block = self._hash(sequence, i), sequence.blocks[i]
            if self._cached.setdefault(block_hash, block) == block:
                self._hashes[block] = block_hash
            sequence.num_cached_blocks += 1

    def free(self, sequence: Sequence) -> None:
        """Frees all blocks of `sequence`, last block first, so that LRU eviction drops suffixes before prefixes."""
        for block in reversed(sequence.blocks):
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._free[block] = None
                if block not in self._hashes:
                    self._free.move_to_end(block, last=False)
        sequence.blocks, sequence.num_cached_blocks = [], 0

    def uncache(self, sequence: Sequence) -> None:
        """Removes the blocks of `sequence` from the prefix cache; sequences that hold them keep them."""
        for block in sequence.blocks:
            self._evict(block)

    def reset_prefix_cache(self) -> None:
        """Invalidates the prefix cache; blocks in use stay allocated."""
        self._hashes.clear()
        self._cached.clear()

    def _evict(self, block: int) -> None:
        block_hash = self._hashes.pop(block, None)
        if block_hash is not None:
            del self._cached[block_hash]

    def _hash(self, sequence: Sequence, i: int) -> bytes:
        """The hash of the tokens up to the end of block i; each is made from the one before it and kept."""
        hashes = sequence.block_hashes
        while len(hashes) <= i:
            start = len(hashes) * self.block_size
            tokens = array("q", sequence.token_ids[start : start + self.block_size])
            hashes.append(blake2b((hashes[-1] if hashes else self._root) + tokens.tobytes(), digest_size=16).digest())
        return hashes[i]


def slots(blocks: list[int], block_size: int, start: int, stop: int) -> list[int]:
    """Slot ids of the tokens start to stop - 1 of a sequence that holds `blocks`."""
    first = start // block_size
    held = blocks[first : -(-stop // block_size)]
    found = [slot for block in held for slot in range(block * block_size, (block + 1) * block_size)]
    return found[start - first * block_size : stop - first * block_size]
