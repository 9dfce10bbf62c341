"""The paged KV cache: a pool of blocks, each holding the K and V of `block_size` tokens in every layer."""

from array import array
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .config.model import ModelConfig

if TYPE_CHECKING:
    from .sequence import Sequence


class LayerCache(NamedTuple):
    """One layer's keys and values, each [num_blocks, num_kv_heads, block_size, head_dim]."""

    keys: Tensor
    values: Tensor


class KVCache:
    """The memory of all layers' blocks, not initialised; which belong to which sequence is the BlockPool's business."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device="cpu"):
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.block_size, self.num_blocks = block_size, num_blocks
        self.layers = [
            LayerCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]


class BlockPool:
    """Who holds each block, what it contains, and which one goes first when room is needed.

    A full block is published under the digest of all tokens up to its end, so that a sequence that begins with the same
    tokens holds it too instead of computing it. Nobody writes into a published block. A block that nobody holds keeps
    its content until it is taken: those without content first, then the least recently used.
    model: what the digests begin with. reuse=False publishes nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, model: str = "", reuse: bool = True):
        self.num_blocks, self.block_size, self.reuse = num_blocks, block_size, reuse
        self.holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))
        self._root = blake2b(model.encode(), digest_size=16).digest()
        self._digests: dict[int, bytes] = {}
        self._published: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def match(self, sequence: "Sequence") -> list[int]:
        """The published blocks that hold the start of `sequence`; its last token is never among them."""
        found = []
        for i in range((len(sequence.token_ids) - 1) // self.block_size if self.reuse else 0):
            block = self._published.get(self._digest(sequence, i))
            if block is None:
                break
            found.append(block)
        return found

    def room_after(self, shared: list[int]) -> int:
        """How many blocks would be left if somebody held `shared`."""
        return len(self._free) - sum(self.holders[block] == 0 for block in shared)

    def share(self, sequence: "Sequence", shared: list[int]) -> None:
        """Lets `sequence`, which has no blocks, begin with published ones."""
        for block in shared:
            self._free.pop(block, None)
            self.holders[block] += 1
        sequence.blocks = list(shared)
        sequence.published = len(shared)

    def grow(self, sequence: "Sequence", tokens: int) -> bool:
        """Gives `sequence` what it lacks to hold `tokens` tokens; False, and nothing, when there is not enough."""
        missing = self.blocks_for(tokens) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self.holders[block] = 1
            sequence.blocks.append(block)
        return True

    def publish(self, sequence: "Sequence", tokens: int) -> None:
        """Offers the blocks that the first `tokens` tokens fill. The first to hold a content is the one to be shared."""
        while self.reuse and sequence.published < tokens // self.block_size:
            digest, block = self._digest(sequence, sequence.published), sequence.blocks[sequence.published]
            if self._published.setdefault(digest, block) == block:
                self._digests[block] = digest
            sequence.published += 1

    def release(self, sequence: "Sequence") -> None:
        """Takes all blocks from `sequence`; the end of a text is forgotten before its start."""
        for block in reversed(sequence.blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self._free[block] = None
                if block not in self._digests:
                    self._free.move_to_end(block, last=False)
        sequence.blocks, sequence.published = [], 0

    def forget_all(self) -> None:
        """Nothing that is in the blocks counts any more."""
        self._digests.clear()
        self._published.clear()

    def _forget(self, block: int) -> None:
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._published[digest]

    def _digest(self, sequence: "Sequence", i: int) -> bytes:
        """Names the tokens up to the end of block i; each digest is made from the one before it and kept."""
        digests = sequence.digests
        while len(digests) <= i:
            start = len(digests) * self.block_size
            tokens = array("q", sequence.token_ids[start : start + self.block_size])
            digests.append(
                blake2b((digests[-1] if digests else self._root) + tokens.tobytes(), digest_size=16).digest()
            )
        return digests[i]


def slots(blocks: list[int], block_size: int, start: int, stop: int) -> list[int]:
    """Slot ids of the tokens start to stop - 1 of a sequence that holds `blocks`."""
    first = start // block_size
    held = blocks[first : -(-stop // block_size)]
    found = [slot for block in held for slot in range(block * block_size, (block + 1) * block_size)]
    return found[start - first * block_size : stop - first * block_size]
