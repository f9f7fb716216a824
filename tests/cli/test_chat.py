from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from vmm_server.cli.chat import Conversation, chat_loop, format_timings, read_message
from vmm_server.cli.client import Client
from vmm_server.errors import VMMError

Messages = list[dict[str, str]]


class FakeClient:
    """Answers with the number of messages it was sent; `broken` is raised after the first piece."""

    def __init__(self) -> None:
        self.seen: list[Messages] = []
        self.broken: BaseException | None = None

    def chat(self, model: str, messages: Messages, **fields: object) -> Iterator[dict[str, Any]]:
        self.seen.append(messages)
        yield {"message": {"content": f"{len(messages)} "}}
        if self.broken:
            raise self.broken
        yield {"message": {"content": "messages"}}
        yield {"message": {"content": ""}, "done": True, "eval_count": 4, "eval_duration": 2_000_000_000}


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


def conversation(fake: FakeClient, system: str | None = None, verbose: bool = False) -> Conversation:
    return Conversation(cast(Client, fake), "m", system, {}, verbose)


def typed(*lines: str | BaseException) -> Callable[[str], str]:
    """A reader that gives these lines, then Ctrl-D."""
    left = list(lines)

    def read_line(prompt: str) -> str:
        line = left.pop(0) if left else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    return read_line


def roles(messages: Messages) -> list[str]:
    return [message["role"] for message in messages]


def test_each_question_carries_the_conversation(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    chat_loop(conversation(fake, system="be kind"), typed("one", "", "two"))
    assert [roles(messages) for messages in fake.seen] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert fake.seen[1][2]["content"] == "2 messages"
    assert capsys.readouterr().out == "2 messages\n4 messages\n"


def test_clear_keeps_the_system_message_alone(fake: FakeClient) -> None:
    chat_loop(conversation(fake, system="be kind"), typed("one", "/clear", "two"))
    assert [roles(messages) for messages in fake.seen] == [["system", "user"], ["system", "user"]]


@pytest.mark.parametrize("word", ["/bye", "/exit"])
def test_bye_leaves(fake: FakeClient, word: str) -> None:
    chat_loop(conversation(fake), typed(word, "never asked"))
    assert fake.seen == []


def test_ctrl_c_stops_the_answer_not_the_program(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(fake)
    fake.broken = KeyboardInterrupt()
    chat_loop(talk, typed(KeyboardInterrupt(), "one"))
    assert [message["content"] for message in talk.messages] == ["one", "1 "]
    output = capsys.readouterr()
    assert output.out == "1 \n"
    assert "Ctrl-D" in output.err


def test_an_error_is_told_and_the_chat_goes_on(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    fake.broken = VMMError("it broke")
    chat_loop(conversation(fake), typed("one", "two"))
    assert len(fake.seen) == 2
    assert capsys.readouterr().err == "error: it broke\n" * 2


def test_help_lists_the_commands_and_an_unknown_one_says_so(
    fake: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_loop(conversation(fake), typed("/help", "/nonsense now"))
    out = capsys.readouterr().out
    assert all(word in out for word in ("/clear", "/bye", '"""', "there is no /nonsense"))
    assert fake.seen == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["  plain  "], "plain"),
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", '"""'], "\none\n"),
        (['"""all at once"""'], "all at once"),
    ],
)
def test_triple_quotes_span_lines(lines: list[str], message: str) -> None:
    assert read_message(typed(*lines)) == message


def test_timings_are_rates_of_the_counts(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    conversation(fake, verbose=True).answer("one")
    output = capsys.readouterr()
    assert output.out == "1 messages\n"
    assert "eval rate:            2.0 tokens/s" in output.err


def test_timings_without_a_duration_have_no_rate() -> None:
    assert "rate" not in format_timings({"done": True})
