"""The arguments of a tool call on the wire."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.api.arguments import begun_object, whole_object


@pytest.mark.parametrize("text", ['{"b": 1.0, "a": 123456789012345678901234567890}', "{}", ' {"a":"\\u00e4"} '])
def test_a_whole_object_is_kept_to_the_letter(text: str) -> None:
    whole = whole_object(text)
    assert whole is not None
    assert bytes(whole) == bytes(begun_object(text)) == text.encode()


def test_they_stay_on_one_line() -> None:
    whole = whole_object('{\r\n  "a": "x\\ny",\n  "b": [\n]\n}\n')
    assert whole is not None
    assert b"\n" not in bytes(whole)
    assert b"\r" not in bytes(whole)
    assert json.loads(bytes(whole)) == {"a": "x\ny", "b": []}


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('{"a": 1, "b": ["x", "y', {"a": 1, "b": ["x"]}),
        ('{"a": "x", "b": "cut o', {"a": "x"}),
        ('{"a": 123456789012345678901234567890, "b', {"a": 123456789012345678901234567890}),
        ("{", {}),
        ("", {}),
        ("[1]", {}),
        ('{"a": NaN}', {}),
        ("no JSON", {}),
    ],
)
def test_of_what_is_cut_off_the_beginning_is_left(text: str, rest: object) -> None:
    assert whole_object(text) is None
    assert json.loads(bytes(begun_object(text))) == rest


@given(st.text())
def test_it_is_always_an_object(text: str) -> None:
    assert isinstance(json.loads(bytes(begun_object(text))), dict)
