import io
import json
import sys

import click
import httpx
import pytest

from vmm_server.cli import main
from vmm_server.cli.client import Client
from vmm_server.cli.conversation import parse_option
from vmm_server.cli.run import RunCommand, embed, not_for_text, parse_options, prompt_text, run
from vmm_server.errors import InvalidRequest


def test_options_are_numbers_flags_or_text_and_stop_is_a_list() -> None:
    given = (
        "temperature=0",
        "top_p=0.5",
        "stop=a",
        "stop=1",
        "use_mmap=true",
        "x=a=b",
        "min_p=nan",
        "seed=1",
        "seed=2",
    )
    assert parse_options(given) == {
        "temperature": 0,
        "top_p": 0.5,
        "stop": ["a", "1"],
        "use_mmap": True,
        "x": "a=b",
        "min_p": "nan",
        "seed": 2,
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
        ("", ("",), ""),
    ],
)
def test_piped_text_comes_before_the_words(
    piped: str, words: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert prompt_text(words) == text


@pytest.mark.parametrize(
    ("arguments", "think", "prompt"),
    [
        (["m", "--think", "why"], "true", ("why",)),
        (["m", "--think=high", "why"], "high", ("why",)),
        (["m", "why", "--think"], "true", ("why",)),
        (["--think=false", "m"], "false", ()),
        (["m", "--", "--think"], None, ("--think",)),
        (["m", "why"], None, ("why",)),
    ],
)
def test_a_level_of_thinking_stands_after_an_equals_sign(
    arguments: list[str], think: str | None, prompt: tuple[str, ...]
) -> None:
    assert isinstance(run, RunCommand)
    parsed = run.make_context("run", arguments).params
    assert (parsed["think"], parsed["prompt"]) == (think, prompt)


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ([], {}),
        (["--truncate"], {"truncate": True}),
        (["--truncate=false", "--dimensions", "8"], {"truncate": False, "dimensions": 8}),
        (["--keepalive", "1h"], {"keep_alive": "1h"}),
    ],
)
def test_an_embedding_models_flags_are_sent(
    flags: list[str], fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json={"embeddings": [[1.0]]})

    parsed = run.make_context("run", ["m", *flags, "a text"]).params
    assert parsed["prompt"] == ("a text",)
    given = {name: parsed[name] for name in ("truncate", "dimensions", "keep_alive")}
    with Client("http://there", transport=httpx.MockTransport(answer)) as there:
        embed(there, "m", "a text", given)
    assert asked == [{"model": "m", "input": "a text", **fields}]
    assert json.loads(capsys.readouterr().out) == [1.0]


@pytest.mark.parametrize(
    ("capabilities", "hint"),
    [
        (["transcription"], "vmm transcribe FILE --model m"),
        (["detection"], "vmm detect IMAGE --model m"),
        (["vad"], None),
    ],
)
def test_a_model_that_reads_no_text_is_asked_elsewhere(capabilities: list[str], hint: str | None) -> None:
    refusal = not_for_text("m", capabilities)
    assert capabilities[0] in refusal.message
    assert refusal.hint == hint


@pytest.mark.parametrize("flag", ["--keepalive", "--keep-alive"])
def test_ollamas_spelling_of_keep_alive_is_read(flag: str) -> None:
    assert run.make_context("run", ["m", flag, "1h"]).params["keep_alive"] == "1h"


@pytest.mark.parametrize(
    "arguments", [["--think=deeply"], ["--format", "yaml"], ["-o", "temperature"], ["--dimensions", "0"]]
)
def test_wrong_flags_are_told_before_a_server_is_asked(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["run", "m", *arguments, "--host", "127.0.0.1:9"]) in (1, 2)
    assert "error: " in capsys.readouterr().err


def test_an_option_takes_one_value() -> None:
    with pytest.raises(InvalidRequest, match="seed takes one value"):
        parse_option("seed", ["1", "2"])
