"""Masks as COCO's run lengths, against a reading of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from tests.api.test_vision import decoded_mask

from vmm_server.api.vision.masks import compressed, run_lengths


@st.composite
def placed_masks(draw: st.DrawFn) -> tuple[Any, int, int, int, int]:
    """A mask, and where it lies in a picture of what size."""
    mask = draw(st_numpy.arrays(bool, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=12)))
    left, top = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    width = left + mask.shape[1] + draw(st.integers(0, 40))
    height = top + mask.shape[0] + draw(st.integers(0, 40))
    return mask, left, top, width, height


@given(placed_masks())
def test_a_mask_comes_back_where_it_was(placed: tuple[Any, int, int, int, int]) -> None:
    mask, left, top, width, height = placed
    whole = np.zeros((height, width), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    lengths = run_lengths(mask, left, top, width, height)
    assert all(length > 0 for length in lengths[1:])
    shown = {"size": [height, width], "counts": compressed(lengths)}
    assert (decoded_mask(shown) == whole).all()


def test_the_text_is_cocos() -> None:
    """By hand: 5 zeros, 3 ones, 70 zeros (two characters), 2 ones (a difference of -1)."""
    assert compressed([5, 3, 70, 2]) == "53V2O"
    assert decoded_mask({"size": [80, 1], "counts": "53V2O"})[:, 0].nonzero()[0].tolist() == [5, 6, 7, 78, 79]


@pytest.mark.parametrize(("left", "top"), [(4, 0), (0, 4), (4, 4), (3, 3)])
def test_what_lies_outside_is_left_out(left: int, top: int) -> None:
    lengths = run_lengths(np.ones((3, 3), bool), left, top, 4, 4)
    assert sum(lengths) == 16
