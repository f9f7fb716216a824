"""Items → messages. Pure.

One answer is several items - thinking, text, calls - and one message to a chat template. So what stands between two
items of others becomes one assistant message, calls last, whatever order they were given in.
"""

from collections.abc import Collection, Sequence
from typing import cast

from vmm_adapters.types import IMAGE_MARK
from vmm_server.api.openai.messages import read_call
from vmm_server.api.openai.responses.items import Item, Json
from vmm_server.api.openai.wire import FunctionCall
from vmm_server.errors import InvalidRequest
from vmm_server.requests import GivenImage, Message, ToolCall

Part = dict[str, str]


def conversation(items: Sequence[Item], instructions: str | None) -> tuple[Message, ...]:
    """The messages that items make, after the instructions.

    Raises `InvalidRequest` in OpenAI's words for a call without its output and the other way round, and for nothing.
    """
    outputs = {item.body["call_id"] for item in items if item.body["type"] == "function_call_output"}
    turns = _Turns()
    for item in items:
        if not _is_abandoned(item.body, outputs):
            turns.add(item)
    messages = turns.finish()
    if not messages:
        raise InvalidRequest("input: there is nothing to answer", param="input")
    if instructions:
        messages.insert(0, Message("system", instructions))
    return tuple(_with_one_system_message(messages))


def _is_abandoned(body: Json, outputs: Collection[object]) -> bool:
    """A call that was cut off, and that nobody tried to answer."""
    return body["type"] == "function_call" and body["status"] == "incomplete" and body["call_id"] not in outputs


def _with_one_system_message(messages: list[Message]) -> list[Message]:
    """Instructions and a developer's messages at the beginning in one: many templates take no second."""
    count = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    if count < 2:
        return messages
    return [Message("system", "\n\n".join(message.content for message in messages[:count])), *messages[count:]]


class _Turns:
    """Messages in the making."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._functions: dict[str, str] = {}
        """Names by the ids of all calls."""
        self._unanswered: dict[str, None] = {}
        self._thinking: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, item: Item) -> None:
        """The next item."""
        body = item.body
        match body["type"]:
            case "reasoning":
                self._add_reasoning(body)
            case "message" if body["role"] == "assistant":
                self._add_text(_text(body["content"]))
            case "message":
                self._end_turn()
                role = "user" if body["role"] == "user" else "system"
                self._messages.append(Message(role, _text(body["content"]), images=_images(item)))
            case "function_call":
                self._add_call(read_call(FunctionCall.model_validate(body), str(body["call_id"])))
            case "function_call_output":
                self._add_output(str(body["call_id"]), _text(body["output"]))

    def finish(self) -> list[Message]:
        """All messages. Thinking that led to nothing is not gone on with."""
        if self._texts or self._calls:
            self._end_turn()
        if self._unanswered:
            raise InvalidRequest(
                f"No tool output found for function call {next(iter(self._unanswered))[:100]}.", param="input"
            )
        return self._messages

    def _add_reasoning(self, body: Json) -> None:
        thinking = _text(body["content"]) if body.get("content") else _text(body["summary"])
        if self._texts or self._calls:
            self._end_turn()
        if thinking:
            self._thinking.append(thinking)

    def _add_text(self, text: str) -> None:
        if self._texts and not self._calls:
            self._end_turn()
        self._texts.append(text)

    def _add_call(self, call: ToolCall) -> None:
        self._calls.append(call)
        self._functions[call.id or ""] = call.name
        self._unanswered[call.id or ""] = None

    def _add_output(self, call_id: str, text: str) -> None:
        if call_id not in self._functions:
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {call_id[:100]}.", param="input"
            )
        self._end_turn()
        self._unanswered.pop(call_id, None)
        self._messages.append(Message("tool", text, name=self._functions[call_id], tool_call_id=call_id))

    def _end_turn(self) -> None:
        """What was gathered of an answer becomes a message."""
        thinking, texts, calls = self._thinking, self._texts, self._calls
        self._thinking, self._texts, self._calls = [], [], []
        if thinking or texts or calls:
            self._messages.append(
                Message(
                    "assistant",
                    "\n".join(texts),
                    thinking="\n".join(thinking) or None,
                    tool_calls=tuple(calls),
                )
            )


def _text(content: object) -> str:
    """Of a string, or of parts, which become lines."""
    if isinstance(content, str):
        return content
    return "\n".join(map(_line, cast(Sequence[Part], content)))


def _line(part: Part) -> str:
    match part["type"]:
        case "refusal":
            return part["refusal"]
        case "input_image":
            return IMAGE_MARK
        case _:
            return part["text"]


def _images(item: Item) -> tuple[GivenImage, ...]:
    return tuple(
        GivenImage(part["image_url"], f"{item.where}.content[{index}].image_url")
        for index, part in enumerate(cast(Sequence[Part], item.body["content"]))
        if part["type"] == "input_image"
    )
