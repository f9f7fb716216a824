"""Lines of batches: any bytes are read or refused, what comes out is one line each."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vmm_server.batch_lines import MAX_LINES, AskedLine, LineError, TokenUsage, answered, check_lines, unanswered

URL = "/v1/completions"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def line(name: str, **body: object) -> bytes:
    asked = {"custom_id": name, "method": "POST", "url": URL, "body": {"model": "m"} | body}
    return json.dumps(asked).encode() + b"\n"


@given(st.lists(st.binary() | st.builds(lambda value: json.dumps(value).encode(), JSON)))
def test_any_bytes_are_refused_by_line_and_break_nothing(lines: list[bytes]) -> None:
    for found in check_lines(lines, URL):
        assert isinstance(found, LineError)
        assert found.line is not None
        assert 1 <= found.line <= len(lines)


@given(st.dictionaries(st.text(), JSON))
def test_a_body_is_kept_as_it_was_written(fields: dict[str, object]) -> None:
    body = fields | {"model": "m", "stream": False}
    (found,) = check_lines([line("a", **body)], URL)
    assert isinstance(found, AskedLine)
    assert (found.number, found.custom_id, found.model, json.loads(found.body)) == (1, "a", "m", body)


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_harm() -> None:
    lines = [b"\xef\xbb\xbf" + line("a"), b"\r\n", line("b").replace(b"\n", b"\r\n"), line("c").strip()]
    found = list(check_lines(lines, URL))
    assert [(one.number, one.custom_id) for one in found if isinstance(one, AskedLine)] == [
        (1, "a"),
        (3, "b"),
        (4, "c"),
    ]


def test_json_that_is_too_deep_is_an_error() -> None:
    deep = line("a", x="HERE").replace(b'"HERE"', b"[" * 100_000 + b"]" * 100_000)
    (found,) = check_lines([deep], URL)
    assert isinstance(found, LineError)
    assert found.code == "invalid_json_line"


def test_reading_ends_after_too_many_lines() -> None:
    found = list(check_lines((line(str(index)) for index in range(MAX_LINES + 5)), URL))
    assert len(found) == MAX_LINES + 1
    assert isinstance(found[-1], LineError)
    assert (found[-1].code, found[-1].line) == ("too_many_tasks", MAX_LINES + 1)


@given(st.text(), st.dictionaries(st.text(), JSON))
def test_what_comes_out_is_one_line_for_everybody(custom_id: str, body: dict[str, object]) -> None:
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    for result in (answered("r", custom_id, 200, "q", raw), unanswered("r", custom_id, "code", custom_id)):
        text = result.text.decode()
        assert len(text.splitlines()) == 1
        assert json.loads(text)["custom_id"] == custom_id
    assert json.loads(answered("r", "a", 200, "q", raw).text)["response"]["body"] == json.loads(raw)


def test_every_routes_usage_is_understood() -> None:
    for usage, expected in [
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            TokenUsage(5, 2, 3, 1),
        ),
        (
            {
                "input_tokens": 5,
                "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            TokenUsage(5, 2, 3, 1),
        ),
        ({"input_tokens": 3, "output_tokens": 3, "cache_read_input_tokens": 2}, TokenUsage(5, 2, 3, 0)),
        ({"prompt_tokens": 5, "total_tokens": 5}, TokenUsage(5, 0, 0, 0)),
        ("strange", TokenUsage()),
        (None, TokenUsage()),
    ]:
        assert answered("r", "a", 200, "q", json.dumps({"usage": usage}).encode()).usage == expected
    assert answered("r", "a", 400, "q", b"[]").is_error
