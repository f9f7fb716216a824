"""Vectors that were made before."""

import numpy as np

from vmm_server.vision.remembered import Remembered


def row(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array([value], np.float32)


def test_what_was_used_last_is_kept() -> None:
    remembered: Remembered[str] = Remembered(2)
    remembered.keep({"a": row(1), "b": row(2)})
    assert [*remembered.find(["a", "x"])] == ["a"]
    remembered.keep({"c": row(3)})
    assert {key: float(each[0]) for key, each in remembered.find("abc").items()} == {"a": 1, "c": 3}


def test_more_than_there_is_room_for_is_not_kept() -> None:
    remembered: Remembered[str] = Remembered(1)
    remembered.keep({"a": row(1), "b": row(2)})
    assert [*remembered.find("ab")] == ["b"]
