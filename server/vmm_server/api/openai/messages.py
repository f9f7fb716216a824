"""`messages` → `Message`s. Pure."""

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from vmm_adapters.types import IMAGE_MARK
from vmm_server.api.body import invalid_request
from vmm_server.api.openai.wire import ChatMessage, ContentPart, FunctionCall, MessageToolCall, Prediction
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import GivenImage, Message, ToolCall

_PARTS = TypeAdapter(list[ContentPart])
_ROLES = {"developer": "system", "function": "tool"}


def chat_messages(wire: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation. Raises `InvalidRequest`, and `UnsupportedParameter` for what is no text."""
    if not wire:
        raise InvalidRequest("[] is too short - 'messages'", param="messages")
    messages = tuple(_message(one, f"messages[{index}]") for index, one in enumerate(wire))
    if messages[-1].tool_calls:
        param = f"messages[{len(messages) - 1}]"
        raise InvalidRequest(f"{param}: the results of its tool calls have to follow", param=param)
    return messages


def _message(wire: ChatMessage, where: str) -> Message:
    if wire.audio is not None:
        raise UnsupportedParameter(f"{where}.audio is not supported", param=f"{where}.audio")
    content, images = _content(wire, where)
    return Message(
        role=_ROLES.get(wire.role, wire.role),
        content=content,
        images=images,
        name=wire.name,
        thinking=wire.reasoning or wire.reasoning_content,
        tool_calls=_tool_calls(wire, where),
        tool_call_id=wire.tool_call_id,
    )


def _tool_calls(wire: ChatMessage, where: str) -> tuple[ToolCall, ...]:
    calls = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(wire.tool_calls or ())]
    if wire.function_call is not None:
        path = f"{where}.function_call"
        if calls:
            raise InvalidRequest(f"{path}: the older name of tool_calls, which are there too", param=path)
        calls.append(read_call(wire.function_call))
    if calls and wire.role != "assistant":
        field = "tool_calls" if wire.tool_calls else "function_call"
        raise InvalidRequest(f"{where}.{field}: only an assistant calls", param=f"{where}.{field}")
    return tuple(calls)


def _tool_call(wire: MessageToolCall, where: str) -> ToolCall:
    if wire.type != "function":
        param = f"{where}.type"
        raise UnsupportedParameter(f"{param}: {wire.type[:100]!r} is not supported, only functions are", param=param)
    if wire.function is None:
        raise InvalidRequest(f"{where}.function: field required", param=f"{where}.function")
    return read_call(wire.function, wire.id)


def read_call(wire: FunctionCall, call_id: str | None = None) -> ToolCall:
    """A call that a client tells of. Arguments that a model got wrong, or did not end, stay as they are."""
    return ToolCall(wire.name, wire.arguments or "{}", call_id)


def _content(wire: ChatMessage, where: str) -> tuple[str, tuple[GivenImage, ...]]:
    """The text of a message, and the images in it; several parts become lines."""
    content, path = wire.content, f"{where}.content"
    if isinstance(content, str):
        return content, ()
    if content is None and wire.role == "assistant":
        return wire.refusal or "", ()
    parts = _parts(content, path)
    images = tuple(
        _image(part, wire.role, f"{path}[{index}]") for index, part in enumerate(parts) if part.type == "image_url"
    )
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(parts)), images


def predicted_text(wire: Prediction) -> str:
    """What a prediction says. Raises `InvalidRequest`, and `UnsupportedParameter` for what is no text."""
    path = "prediction.content"
    if isinstance(wire.content, str):
        return wire.content
    parts = _parts(wire.content, path)
    for index, part in enumerate(parts):
        if part.type == "image_url":
            raise UnsupportedParameter(f"{path}[{index}]: answers have no images", param=f"{path}[{index}]")
    return "".join(_part(part, f"{path}[{index}]") for index, part in enumerate(parts))


def _parts(content: object, path: str) -> list[ContentPart]:
    if not isinstance(content, list):
        raise InvalidRequest(f"{path}: must be a string or an array of parts", param=path)
    try:
        return _PARTS.validate_python(content)
    except ValidationError as error:
        raise invalid_request(error, path) from error


def _image(part: ContentPart, role: str, where: str) -> GivenImage:
    if role != "user":
        raise InvalidRequest(f"{where}: only a user shows images", param=where)
    if part.image_url is None:
        raise InvalidRequest(f"{where}.image_url: field required", param=f"{where}.image_url")
    return GivenImage(part.image_url.url, f"{where}.image_url.url")


def _part(part: ContentPart, where: str) -> str:
    if part.type == "image_url":
        return IMAGE_MARK
    if part.type not in ("text", "refusal"):
        raise UnsupportedParameter(f"{where}: {part.type[:100]} parts are not supported", param=where)
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"{where}.{part.type}: field required", param=f"{where}.{part.type}")
    return text
