import io
import sys

import click
import pytest

from vmm_server.cli.run import parse_options, prompt_text


def test_options_are_numbers_flags_or_text_and_stop_is_a_list() -> None:
    given = ("temperature=0", "top_p=0.5", "stop=a", "stop=1", "use_mmap=true", "x=a=b")
    assert parse_options(given) == {
        "temperature": 0,
        "top_p": 0.5,
        "stop": ["a", "1"],
        "use_mmap": True,
        "x": "a=b",
    }


@pytest.mark.parametrize("option", ["temperature", "=1"])
def test_an_option_without_name_or_value_is_wrong_usage(option: str) -> None:
    with pytest.raises(click.UsageError, match="NAME=VALUE"):
        parse_options((option,))


@pytest.mark.parametrize(
    ("piped", "words", "text"),
    [
        ("", ("why", "so?"), "why so?"),
        ("notes\n", (), "notes"),
        ("notes\n", ("Summarise",), "notes\n\nSummarise"),
        ("", (), ""),
    ],
)
def test_piped_text_comes_before_the_words(
    piped: str, words: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert prompt_text(words) == text
