"""KV blocks: who holds them, what is in them, and which is given away next. Pure bookkeeping.

A block is *held* (one or more sequences use it) or *free*. A full block gets a key, a digest of everything up
to its last token, and keeps key and content when it is freed, until it is given away again: a prompt that was
seen before is found by looking its keys up. Full blocks are never written, so any number of sequences may hold
the same one.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def block_key(parent: bytes, token_ids: Sequence[int], salt: bytes = b"") -> bytes:
    """Name a full block by its content: `parent` is the key of the block before it (empty for the first).

    16 bytes of BLAKE2b, so that two prompts never share a block by an accident, or a design, of hashing.
    Sequences with different salts never share blocks.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16, key=salt).digest()


class BlockPool:
    """`num_blocks` blocks of `block_size` positions."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, nothing worth keeping inside
        self._reusable: OrderedDict[int, None] = OrderedDict()  # free, content kept; least recently used first

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._blank) + len(self._reusable)

    @property
    def num_positions(self) -> int:
        """Positions in all blocks."""
        return self.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` positions take."""
        return -(-num_tokens // self.block_size)

    def num_holders(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._num_holders[block]

    def lookup(self, key: bytes) -> int | None:
        """The block with this content, held or free."""
        return self._cached.get(key)

    def allocate(self) -> int:
        """Take a free block, for writing: a blank one, else the one whose content was left alone longest.

        Raises `IndexError` when none is free; ask `num_free` first.
        """
        if self._blank:
            block = self._blank.pop()
        elif self._reusable:
            block, _ = self._reusable.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("no free KV block")
        self._num_holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that `lookup` found, for reading."""
        if self._num_holders[block] == 0:
            del self._reusable[block]
        self._num_holders[block] += 1

    def register(self, block: int, key: bytes) -> None:
        """Say that a held block is full now and what is in it. The first block with a key keeps it."""
        if key not in self._cached and self._keys[block] is None:
            self._cached[key] = block
            self._keys[block] = key

    def release(self, block_table: Sequence[int]) -> None:
        """Let go of a sequence's blocks, last one first: a chain's tail is useless without its head."""
        for block in reversed(block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                if self._keys[block] is None:
                    self._blank.append(block)
                else:
                    self._reusable[block] = None

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None
