"""Tools in words: the model is told, what it wrote comes back as it wrote it, and the roles go on alternating."""

import json
from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.prompt.chat import ChatTemplate
from vmm_server.prompt.formats.base import Arguments, CallStart
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.tool_text import textual_format, with_calls_as_text, with_tools_as_text
from vmm_server.requests import Message, Tool, ToolCall

TOOLS = (Tool("time", "What time it is", '{"type": "object", "properties": {"zone": {"type": "string"}}}'), Tool("now"))
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)

exchanges = st.lists(
    st.tuples(st.integers(0, 3), st.booleans()).map(
        lambda drawn: [
            Message("assistant", "So.", tool_calls=tuple(ToolCall("now", "{}", f"c{i}") for i in range(drawn[0]))),
            *(Message("tool", f"at {i}", tool_call_id=f"c{i}") for i in range(drawn[0])),
            *([Message("user", "Go on.")] if drawn[1] or not drawn[0] else []),
        ]
    ),
    max_size=4,
).map(lambda parts: [message for part in parts for message in part])


def texts(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


@given(exchanges, st.booleans(), st.booleans())
def test_roles_alternate_whatever_was_called(turns: list[Message], has_system: bool, takes_system: bool) -> None:
    start = [Message("system", "Be kind.")] if has_system and takes_system else []
    messages = [*start, Message("user", "Hi"), *turns]
    told = with_tools_as_text(messages, TOOLS, TOOL_FORMATS["hermes"], takes_system=takes_system)
    template = ChatTemplate(ALTERNATING, bos_token="", eos_token="")
    assert template.render(told, now=datetime(2026, 11, 21), variables={}) == ""
    everything = texts(told)
    assert everything.count('"name": "time"') == 1
    for message in messages:
        assert message.content in everything
    assert everything.count('<tool_call>\n{"name": "now"') == sum(len(m.tool_calls) for m in messages)


def test_the_system_message_is_told_of_the_tools_at_its_end() -> None:
    messages = [Message("system", "Be kind."), Message("user", "Hi")]
    system, user = with_tools_as_text(messages, TOOLS, TOOL_FORMATS["hermes"], takes_system=True)
    assert system.content.startswith("Be kind.\n\nYou can call functions.")
    assert user == messages[1]
    (lines,) = [part.split("\n</tools>")[0] for part in system.content.split("<tools>\n")[1:]]
    assert [json.loads(line)["name"] for line in lines.splitlines()] == ["time", "now"]


def test_the_first_user_message_is_where_the_template_has_no_system() -> None:
    (user,) = with_tools_as_text([Message("user", "Hi")], TOOLS, TOOL_FORMATS["pythonic"], takes_system=False)
    assert user.role == "user"
    assert user.content.endswith("\n\nHi")
    assert "[name(argument=value, …)]" in user.content


def test_without_tools_only_history_is_text() -> None:
    history = [Message("user", "Hi"), Message("assistant", "", tool_calls=(ToolCall("now", "{}"),))]
    told = with_tools_as_text(history, (), TOOL_FORMATS["hermes"], takes_system=True)
    assert texts(told) == 'user: Hi\nassistant: <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_results_and_the_next_question_are_one_turn() -> None:
    turns = [
        Message("tool", "1"),
        Message("tool", "2"),
        Message("user", "And?"),
        Message("assistant", "x"),
        Message("tool", "3"),
    ]
    told = with_tools_as_text(turns, (), TOOL_FORMATS["hermes"], takes_system=True)
    assert texts(told) == (
        "user: <tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>\nAnd?\n"
        "assistant: x\nuser: <tool_response>\n3\n</tool_response>"
    )


@pytest.mark.parametrize("name", ["hermes", "pythonic", "llama3_json", "mistral", "granite", "phi"])
def test_calls_are_written_as_the_formats_parser_reads_them(name: str) -> None:
    arguments = '{"zone": "it\'s \\"here\\"", "deep": {"a": [1, null, true]}}'
    calls = (ToolCall("time", arguments), ToolCall("now", "{}"))
    (message,) = with_calls_as_text([Message("assistant", "", tool_calls=calls)], TOOL_FORMATS[name])
    assert message.tool_calls == ()
    parser = TOOL_FORMATS[name].parser(TOOLS)
    read: list[list[str]] = []
    for part in [*parser.push(message.content), *parser.finish()]:
        match part:
            case CallStart(called):
                read.append([called, ""])
            case Arguments(text):
                read[-1][1] += text
            case _:
                pytest.fail(f"{part} of {message.content!r}")
    assert [(called, json.loads(text)) for called, text in read] == [("time", json.loads(arguments)), ("now", {})]


def test_arguments_that_are_broken_do_not_break_the_conversation() -> None:
    message = Message("assistant", "", tool_calls=(ToolCall("time", '{"zone": "Eur'), ToolCall("now", "[1]")))
    for format in TOOL_FORMATS.values():
        (told,) = with_calls_as_text([message], format)
        assert "time" in told.content


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_what_is_taught_can_be_read(name: str) -> None:
    taught = textual_format(TOOL_FORMATS[name])
    assert taught.name == name or taught.name == "hermes"
    assert with_tools_as_text([], TOOLS, taught, takes_system=True)[0].content
