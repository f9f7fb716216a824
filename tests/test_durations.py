import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.durations import format_duration, parse_duration, parse_keep_alive
from vmm_server.requests import KeepAlive


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("-1m", -60), (".5h", 1800), ("0", 0)],
)
def test_go_durations_and_bare_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 m", "5x", "1h-2m", "five", "5m3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_parts_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == pytest.approx(3600 * hours + 60 * minutes + seconds)


def test_negative_keep_alive_is_for_ever() -> None:
    assert parse_keep_alive(-1) == parse_keep_alive("-1m") == parse_keep_alive(math.inf) == KeepAlive(None)
    assert parse_keep_alive(0) == parse_keep_alive("0s") == KeepAlive(0.0)
    assert parse_keep_alive("10m") == KeepAlive(600.0)


def test_not_a_number_is_no_keep_alive() -> None:
    with pytest.raises(ValueError, match="not a number"):
        parse_keep_alive(math.nan)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9999, "1s"), (1.5, "1.5s"), (59.9991, "1m0s")),
        *((360, "6m0s"), (3600, "1h0m0s"), (90061.5, "25h1m1.5s")),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e6))
def test_what_is_written_is_what_is_read_to_the_next_millisecond(seconds: float) -> None:
    assert seconds - 1e-6 <= parse_duration(format_duration(seconds)) <= seconds + 1e-3 + 1e-6
