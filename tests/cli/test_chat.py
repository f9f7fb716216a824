from pathlib import Path

import pytest

from vmm_server.cli.chat import chat_loop, read_message
from vmm_server.cli.conversation import Conversation
from vmm_server.errors import VMMError

from .conftest import FakeClient, Messages, Typed


def roles(messages: Messages) -> list[str]:
    return [message["role"] for message in messages]


def test_each_question_carries_the_conversation(
    fake: FakeClient, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.session.system = "be kind"
    chat_loop(conversation, Typed("one", "", "two"))
    assert [roles(messages) for messages in fake.seen] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert fake.seen[1][2]["content"] == "2 messages"
    assert capsys.readouterr().out == "2 messages\n4 messages\n"


def test_clear_keeps_the_system_message_alone(fake: FakeClient, conversation: Conversation) -> None:
    conversation.session.system = "be kind"
    chat_loop(conversation, Typed("one", "/clear", "two"))
    assert [roles(messages) for messages in fake.seen] == [["system", "user"], ["system", "user"]]


@pytest.mark.parametrize("word", ["/bye", "/exit", "/bye now"])
def test_bye_leaves(fake: FakeClient, conversation: Conversation, word: str) -> None:
    chat_loop(conversation, Typed(word, "never asked"))
    assert fake.seen == []


def test_ctrl_c_stops_the_answer_not_the_program(
    fake: FakeClient, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.broken = KeyboardInterrupt()
    chat_loop(conversation, Typed(KeyboardInterrupt(), "one"))
    assert [message["content"] for message in conversation.messages] == ["one", "1 "]
    output = capsys.readouterr()
    assert output.out == "1 \n"
    assert "Ctrl-D" in output.err


def test_ctrl_c_gives_up_a_message_of_several_lines(fake: FakeClient, conversation: Conversation) -> None:
    chat_loop(conversation, Typed('"""one', KeyboardInterrupt(), "two"))
    assert [messages[0]["content"] for messages in fake.seen] == ["two"]


def test_an_error_is_told_with_its_mend_and_the_chat_goes_on(
    fake: FakeClient, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.broken = VMMError("it broke", hint="mend it")
    chat_loop(conversation, Typed("one", "/nonsense", "two"))
    assert len(fake.seen) == 2
    told = "error: it broke\nhint: mend it\n"
    assert capsys.readouterr().err == told + "error: there is no /nonsense\nhint: /? lists what there is\n" + told


def test_a_message_may_begin_with_the_path_of_a_picture(
    fake: FakeClient, conversation: Conversation, tmp_path: Path
) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    chat_loop(conversation, Typed(f"{picture} what is this?", "/no/such.png what is this?"))
    (message,) = fake.seen[0]
    assert message == {"role": "user", "content": "what is this?", "images": ["iVBORw0KGgo="]}
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["  plain  "], "plain"),
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", '"""'], "\none\n"),
        (['"""all at once"""'], "all at once"),
        (['"""', "/bye", '"""'], "\n/bye\n"),
        (["pasted\nlines"], "pasted\nlines"),
        (['"""pasted\nlines"""'], "pasted\nlines"),
        (['/set system """one', 'two"""'], "/set system one\ntwo"),
        (['say """hi"""'], 'say """hi"""'),
    ],
)
def test_triple_quotes_span_lines(lines: list[str], message: str) -> None:
    reader = Typed(*lines)
    assert read_message(reader) == message
    assert reader.prompts == [">>> ", "... ", "... "][: len(lines)]
