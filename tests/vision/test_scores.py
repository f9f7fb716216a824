"""Which classes a request wants."""

import pytest

from vmm_server.errors import InvalidRequest
from vmm_server.vision.scores import class_ids


def test_classes_are_wanted_by_name_or_number() -> None:
    labels = ("cat", "dog", "cat", "7")
    assert class_ids(labels, None) is None
    assert class_ids(labels, ["Cat "]) == frozenset({0, 2})
    assert class_ids(labels, ["dog", 3, "3"]) == frozenset({1, 3})
    assert class_ids(labels, ["7"]) == frozenset({3})


def test_of_thousands_of_classes_the_first_ones_are_told() -> None:
    labels = tuple(f"class {number}" for number in range(20_000))
    with pytest.raises(InvalidRequest) as caught:
        class_ids(labels, ["cow"])
    hint = str(caught.value.hint)
    assert hint.startswith("its 20000 classes are class 0, class 1, ")
    assert hint.endswith("class 99, …")
    with pytest.raises(InvalidRequest) as caught:
        class_ids(labels[:100], ["cow"])
    assert str(caught.value.hint).endswith("class 99")
