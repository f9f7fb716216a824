"""Mutations of bytes: what a damaged disk, a careless program or somebody with bad intentions makes of a file."""

import struct
from collections.abc import Sequence

from hypothesis import strategies as st

ODD_NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 64, 100, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**24, 10**6, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
_FORMS = ("<B", "<H", "<I", "<Q", ">I")


@st.composite
def damaged(draw: st.DrawFn, content: bytes, max_changes: int = 4) -> bytes:
    """`content` with numbers overwritten, bytes flipped, cut out, put in or said twice."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, max_changes))):
        at = draw(st.integers(0, len(changed)))
        how = draw(st.sampled_from(("number", "number", "byte", "cut", "insert", "repeat", "truncate")))
        if how == "number":
            form = draw(st.sampled_from(_FORMS))
            size = struct.calcsize(form)
            changed[at : at + size] = struct.pack(form, draw(st.sampled_from(ODD_NUMBERS)) % 256**size)
        elif how == "byte":
            changed[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "cut":
            del changed[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=64))
        elif how == "repeat":
            piece = changed[at : at + draw(st.integers(1, 256))]
            changed[at:at] = piece * draw(st.integers(1, 8))
        else:
            del changed[at:]
    return bytes(changed)


@st.composite
def shuffled(draw: st.DrawFn, pieces: Sequence[bytes], max_changes: int = 3) -> bytes:
    """Whole pieces left out, said twice, exchanged or damaged."""
    changed = list(pieces)
    for _ in range(draw(st.integers(0, max_changes))):
        if not changed:
            break
        at, other = (draw(st.integers(0, len(changed) - 1)) for _ in range(2))
        how = draw(st.sampled_from(("drop", "repeat", "exchange", "damage", "damage", "damage")))
        if how == "drop":
            del changed[at]
        elif how == "repeat":
            changed.insert(at, changed[at])
        elif how == "exchange":
            changed[at], changed[other] = changed[other], changed[at]
        else:
            changed[at] = draw(damaged(changed[at], 2))
    return b"".join(changed)
