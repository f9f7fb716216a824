"""How weights, KV blocks and buffers lie in memory: what packs and allocates them and what is compiled both know.

Weights in blocks. A panel is 16 rows; its levels, uint8: for each block of 32 columns 8 groups of 4 columns; a group is
`[16 rows, 4 columns]`, 64 bytes. Of 4 bits two groups share bytes, the even one in the low halves. Factors and biases:
`[blocks, 16 rows]`, or `[blocks, 2, 16 rows]` where each half of a block has its own. Floats: panels of 32 rows,
`[columns, 32]`.

KV blocks. One of keys is `[heads, head size, 32 positions]`, one of values `[heads, 32 positions, head size in whole
32s]`: both are read along the lanes. They are float16, or uint8 with a scale and a lowest number for each position,
float32 `[heads, 2, 32]`, after all numbers.
"""

from enum import IntEnum
from typing import NamedTuple

PANEL = 16
"""Rows of a panel, and inputs of a tile."""
BLOCK = 32
"""Columns that share an input's scale."""
WIDTH = 32
"""Rows of a panel of floats."""
BLOCK_SIZE = WIDTH
"""Positions in a KV block."""
TILE = 8
"""Rows of a tile of attention at most."""
TILE_COLUMNS = 5
"""What is listed of a tile: the chunk, its first row and the number of them, the head, the first partial result."""
SPAN = 512
"""Positions that are summed up by themselves."""
FACTORS = 8 * WIDTH
"""Bytes of the scales and lowest numbers of a head's keys, or values, in a block."""
PHASES_A_LAYER = 16
"""Numbers that a layer's phases have; not all are used, and those before the layers and after them have as many."""
TAKE_PART, KERNEL = "take_part", "kernel_{}"
"""What functions are called in object files: the step's, and a kernel's with its place in the table."""
COMMON, STEPS, PICTURES = "common", "steps", "pictures"
"""What object files are called: of kernels for any form, of the step, and of resampling; the others by their form's
number."""
ROWS, COLUMNS = "resample_rows", "resample_columns"
"""What functions are called in the last of them."""
PIXEL_BYTES = 4
"""Of a picture in memory: red, green, blue, and one that is nothing."""
PIXELS = 4
"""Taken together by resampling."""
WEIGHT_BITS = 22
"""Binary places of its weights: 32 bits less 8 of a byte, and 2 for sums beyond it (Pillow's Resample.c)."""


class Form(NamedTuple):
    """How a matrix in blocks is packed."""

    bits: int
    has_wide_factors: bool
    """float32 instead of float16."""
    has_biases: bool
    has_halves: bool = False
    """Two factors a block, for 16 columns each."""

    @property
    def factor_bytes(self) -> int:
        """Of one factor or bias."""
        return 4 if self.has_wide_factors else 2

    @property
    def num_factors(self) -> int:
        """A block and row."""
        return 2 if self.has_halves else 1


FORMS = (
    Form(4, False, False),
    Form(4, False, True),
    Form(4, True, False),
    Form(4, True, True),
    Form(8, False, False),
    Form(8, True, False),
    Form(8, True, True),
    Form(4, True, True, True),
    Form(8, True, False, True),
    Form(8, True, True, True),
)
"""By the number that compiled code knows them by; others are packed as the next wider one."""


class Element(IntEnum):
    """What a matrix of floats, or a KV block, consists of."""

    F32 = 0
    F16 = 1
    BF16 = 2
    U8 = 3

    @property
    def num_bytes(self) -> int:
        """Of one."""
        return (4, 2, 2, 1)[self]


def block_bytes(num_heads: int, head: int, is_narrow: bool) -> int:
    """Of one block of keys, or of values with `head` in whole 32s: numbers, then the factors of uint8."""
    if is_narrow:
        return num_heads * (head * WIDTH + FACTORS)
    return num_heads * head * WIDTH * 2


def result_floats(padded_head: int) -> int:
    """Numbers of a span's result: sums `[8, padded head]`, peaks `[8]`, totals `[8]`."""
    return TILE * (padded_head + 2)


def work_floats(padded_head: int) -> int:
    """Numbers that a thread works with: a span's result and a fold's, queries, limits, and the kernel's scratch."""
    return 2 * result_floats(padded_head) + TILE * (padded_head + 2 + WIDTH + 3)
