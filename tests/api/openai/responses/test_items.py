"""`input` → items → messages."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from vmm_adapters.types import IMAGE_MARK
from vmm_server.api.openai.responses.conversation import conversation
from vmm_server.api.openai.responses.items import Item, Reference, read_input
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import GivenImage, Message, ToolCall

LISTED = TypeAdapter[Any](ResponseItem)


def counted_ids() -> Callable[[str], str]:
    numbers = itertools.count()
    return lambda kind: f"{kind}_{next(numbers)}"


def items(value: object) -> list[Item]:
    read = read_input(value, counted_ids())
    return [item for item in read if isinstance(item, Item)]


def messages(*value: object, instructions: str | None = None) -> list[Message]:
    return list(conversation(items(list(value)), instructions))


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def call(number: int, **fields: object) -> dict[str, object]:
    named = {"call_id": f"call_{number}", "name": f"f{number}", "arguments": '{"a": 1}'}
    return {"type": "function_call"} | named | fields


def output(number: int, value: object = "done") -> dict[str, object]:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": value}


def thought(text: str, **fields: object) -> dict[str, object]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_9", "summary": [], "content": content} | fields


def test_a_string_is_a_user_message() -> None:
    (item,) = items("hi")
    assert item.body == {
        "id": "msg_0",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "hi"}],
    }


EVERY_KIND: list[object] = [
    {"role": "developer", "content": "be brief"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}], "status": "completed"},
    {"role": "assistant", "content": "b", "id": "msg_mine"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    thought("hm", encrypted_content="x"),
    call(1),
    output(1),
    call(2),
    output(2, [{"type": "input_text", "text": "d"}, {"type": "input_text", "text": "e"}]),
]


def test_every_item_is_kept_as_openai_lists_it() -> None:
    read = items(EVERY_KIND)
    assert len(read) == len(EVERY_KIND)
    for item in read:
        LISTED.validate_python(item.body, strict=True)
    assert read[2].body["id"] == "msg_mine"
    assert len({item.body["id"] for item in read}) == len(read)
    again = items([item.body for item in read])
    assert [item.body for item in again] == [item.body for item in read]


def test_a_reference_is_an_id_with_or_without_its_type() -> None:
    read = read_input([{"id": "msg_1"}, {"type": "item_reference", "id": "msg_2"}], counted_ids())
    assert read == [Reference("msg_1", "input[0]"), Reference("msg_2", "input[1]")]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (5, "input"),
        ({"role": "user"}, "input"),
        (["text"], "input[0]"),
        ([{"content": "a"}], "input[0].role"),
        ([{"role": "robot", "content": "a"}], "input[0].role"),
        ([user("a"), {"role": "user"}], "input[1].content"),
        ([{"role": "user", "content": None}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_text", "text": 5}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": ["a"]}], "input[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}], "input[0].content[0].refusal"),
        ([call(1, name=None)], "input[0].name"),
        ([call(1, call_id=None)], "input[0].call_id"),
        ([call(1, arguments={"a": 1})], "input[0].arguments"),
        ([call(1, status="done")], "input[0].status"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id"),
        ([output(1, None)], "input[0].output"),
        ([output(1, {"a": 1})], "input[0].output"),
        ([{"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text"}]}], "input[0].summary[0].text"),
        ([{"type": "item_reference"}], "input[0].id"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "input[0].content[0].image_url"),
    ],
)
def test_what_is_wrong_is_named(value: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_input(value, counted_ids())
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "assistant", "content": [{"type": "input_image", "image_url": "data:,"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "of the chat route"}]}, "input[0].content[0]"),
        (output(1, [{"type": "input_image", "image_url": "data:,"}]), "input[0].output[0]"),
        ({"type": "web_search_call", "id": "ws_1", "status": "completed"}, "input[0].type"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "i"}, "input[0].type"),
        ({"type": "compaction", "encrypted_content": "c"}, "input[0].type"),
    ],
)
def test_what_is_no_text_is_refused_by_name(item: object, param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        read_input([item], counted_ids())
    assert caught.value.param == param


def test_images_stand_between_the_texts_and_are_kept() -> None:
    texts = [{"type": "input_text", "text": text} for text in ("first", "second")]
    image = {"type": "input_image", "image_url": "data:a"}
    given = [user("a"), {"role": "user", "content": [texts[0], image, texts[1]]}]
    assert messages(*given)[1] == Message(
        "user", f"first\n{IMAGE_MARK}\nsecond", images=(GivenImage("data:a", "input[1].content[1].image_url"),)
    )
    (item,) = read_input(given[1:], counted_ids())
    assert isinstance(item, Item)
    assert item.body["content"] == [texts[0], image | {"detail": "auto"}, texts[1]]


def test_items_of_one_answer_are_one_message() -> None:
    said = [thought("hm"), {"role": "assistant", "content": "let me see"}, call(1), call(2)]
    assert messages(user("a"), *said, output(2, "two"), output(1, "one")) == [
        Message("user", "a"),
        Message(
            "assistant",
            "let me see",
            thinking="hm",
            tool_calls=(ToolCall("f1", '{"a": 1}', "call_1"), ToolCall("f2", '{"a": 1}', "call_2")),
        ),
        Message("tool", "two", name="f2", tool_call_id="call_2"),
        Message("tool", "one", name="f1", tool_call_id="call_1"),
    ]


def test_text_behind_a_call_goes_before_it() -> None:
    text = {"role": "assistant", "content": "done soon"}
    assert messages(user("a"), call(1), text, output(1)) == messages(user("a"), text, call(1), output(1))


def test_what_two_answers_said_stays_apart() -> None:
    first, second = {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}
    assert [message.content for message in messages(user("a"), first, second)] == ["a", "b", "c"]
    assert messages(user("a"), first, thought("hm"), second)[1:] == [
        Message("assistant", "b"),
        Message("assistant", "c", thinking="hm"),
    ]


def test_thinking_is_its_content_else_its_summary() -> None:
    summary = [{"type": "summary_text", "text": "short"}]
    for item, expected in (
        (thought("long", summary=summary), "long"),
        (thought("", content=[], summary=summary), "short"),
        ({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, None),
    ):
        assert messages(user("a"), item, {"role": "assistant", "content": "b"})[1].thinking == expected


def test_thinking_that_led_to_nothing_is_not_gone_on_with() -> None:
    assert messages(user("a"), thought("hm")) == [Message("user", "a")]
    assert messages(user("a"), thought("hm"), user("b"))[1] == Message("assistant", "", thinking="hm")


def test_instructions_and_developers_share_the_system_message() -> None:
    developer = {"role": "developer", "content": "be brief"}
    assert messages(user("a"), instructions="be kind")[0] == Message("system", "be kind")
    assert messages(developer, user("a"), developer, instructions="be kind") == [
        Message("system", "be kind\n\nbe brief"),
        Message("user", "a"),
        Message("system", "be brief"),
    ]


def test_several_parts_become_lines() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages({"role": "user", "content": parts})[0].content == "a\nb"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([user("a"), output(1)], "No tool call found for function call output with call_id call_1."),
        ([user("a"), output(1), call(1)], "No tool call found for function call output with call_id call_1."),
        ([user("a"), call(1), call(2), output(1)], "No tool output found for function call call_2."),
        ([], "input: there is nothing to answer"),
        ([thought("hm")], "input: there is nothing to answer"),
    ],
)
def test_calls_and_outputs_belong_together(given: list[object], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages(*given)
    assert (caught.value.message, caught.value.param) == (words, "input")


def test_a_call_that_was_cut_off_needs_no_output() -> None:
    cut = call(1, arguments='{"a', status="incomplete")
    assert messages(user("a"), cut, user("b")) == [Message("user", "a"), Message("user", "b")]
    assert messages(user("a"), cut, output(1))[1].tool_calls == (ToolCall("f1", '{"a', "call_1"),)
