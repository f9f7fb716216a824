"""Messages and tools as chat templates know them: dictionaries in the shape that transformers hands over.

Templates agree on that shape, not on what they do with it. What they differ in is seen in their source, and met here:
whether the arguments of a call are a text, whether an absent content is `None`, how many calls a turn may hold, what
a call's id may look like, who brings a result, and where the tools are looked for.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vmm_server.errors import InvalidRequest
from vmm_server.requests import Message, Tool, ToolCall

_NULL_CONTENT = re.compile(r"""(?<!\w)content(['"]\])?\s*(is\s+(not\s+)?|[!=]=\s*)none\b""", re.IGNORECASE)
_SEVERAL_CALLS = re.compile(r"\bfor\s[^%]*?\bin\s[^%]*\btool_calls\b")
_SHORT_IDS = re.compile(r"""\bid['"\]]*\s*\|\s*length\s*(!=|==|<)\s*9\b""")
_TOOLS_IN_MESSAGE = re.compile(r"""\bmessage(\.|\[['"])tools\b""")
_TOOL_ROLE = re.compile(r"""['"]tool['"]""")
_RESPONSE_ROLE = re.compile(r"""['"]tool_response['"]""")
_ID_LENGTH = 9
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

Turn = dict[str, Any]


class Arguments(dict[str, Any]):
    """A call's arguments: an object, which some templates print or add to a text as the JSON that it was."""

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


class TurnWriter:
    """Writes turns for one template."""

    def __init__(self, source: str) -> None:
        self.takes_null = _NULL_CONTENT.search(source) is not None
        """It looks whether a message has no content, which does not mean that it bears with one that has none."""
        self._takes_several_calls = _SEVERAL_CALLS.search(source) is not None or "tool_calls" not in source
        self._wants_short_ids = _SHORT_IDS.search(source) is not None
        is_granite = _RESPONSE_ROLE.search(source) is not None and _TOOL_ROLE.search(source) is None
        self._tool_role = "tool_response" if is_granite else "tool"
        self._tools_in_message = _TOOLS_IN_MESSAGE.search(source) is not None

    def turns(self, messages: Sequence[Message], tools: Sequence[Tool], *, null_content: bool) -> list[Turn]:
        """One turn a message, or more where a turn holds one call at most.

        The content of one that only calls is empty, or with `null_content` there is none.
        """
        if not self._takes_several_calls:
            messages = list(_one_call_a_turn(messages))
        names = {call.id: call.name for message in messages for call in message.tool_calls if call.id is not None}
        turns = [self._turn(message, names) for message in messages]
        for turn in turns if null_content else ():
            if "tool_calls" in turn and not turn["content"]:
                turn["content"] = None
        if tools and self._tools_in_message:  # Phi-4: a text in the system turn
            if not turns or turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": "You are a helpful assistant with some tools."})
            turns[0]["tools"] = json.dumps([schema["function"] for schema in tool_schemas(tools)], ensure_ascii=False)
        return turns

    def _turn(self, message: Message, names: dict[str, str]) -> Turn:
        role = self._tool_role if message.role == "tool" else message.role
        turn: Turn = {"role": role, "content": message.content}
        name = message.name
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._id(message.tool_call_id)
            name = name or names.get(message.tool_call_id)
        if name is not None:
            turn["name"] = name
        if message.thinking is not None:  # most templates read the first, gpt-oss the other
            turn["reasoning_content"] = turn["thinking"] = message.thinking
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return turn

    def _call(self, call: ToolCall) -> Turn:
        entry: Turn = {"type": "function", "function": {"name": call.name, "arguments": _arguments(call.arguments)}}
        if call.id is not None:
            entry["id"] = self._id(call.id)
        return entry

    def _id(self, call_id: str) -> str:
        """The id, or nine letters and digits made of it: Mistral's templates take nothing else."""
        if not self._wants_short_ids or re.fullmatch(r"[A-Za-z0-9]{9}", call_id):
            return call_id
        digest = hashlib.sha256(call_id.encode(errors="surrogatepass")).digest()
        return "".join(_ID_ALPHABET[byte % len(_ID_ALPHABET)] for byte in digest[:_ID_LENGTH])


def tool_schemas(tools: Sequence[Tool]) -> list[Turn]:
    """Tools as OpenAI's API has them, which is what templates expect; the order of properties is kept.

    Raises `InvalidRequest` naming the tool's field for a schema that Python cannot read.
    """
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",  # some templates add it to a text
                "parameters": _schema(tool),
            },
        }
        for tool in tools
    ]


def _schema(tool: Tool) -> object:
    try:
        return json.loads(tool.parameters)
    except RecursionError as error:
        raise InvalidRequest(f"{tool.param}: the schema is nested too deeply", param=tool.param) from error


def _arguments(text: str) -> Arguments | str:
    """An object; the text itself where a model wrote something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return Arguments(value, text) if isinstance(value, dict) else text


def _one_call_a_turn(messages: Sequence[Message]) -> Iterator[Message]:
    """Each call of an answer in a turn of its own, the result of each right behind it."""
    answered: set[int] = set()
    for index, message in enumerate(messages):
        if index in answered:
            continue
        if len(message.tool_calls) < 2:
            yield message
            continue
        results = {}
        for later in range(index + 1, len(messages)):
            if messages[later].role != "tool":
                break
            results[later] = messages[later]
        for position, call in enumerate(message.tool_calls):
            own = replace(message, tool_calls=(call,))
            yield own if position == 0 else replace(own, content="", thinking=None)
            for later, result in results.items():
                if later not in answered and call.id is not None and result.tool_call_id == call.id:
                    answered.add(later)
                    yield result
