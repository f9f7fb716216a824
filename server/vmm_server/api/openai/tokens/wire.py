"""What clients send to the routes about tokens, in the words of three servers, and what it asks for. Pure."""

from collections.abc import Callable, Sequence

from vmm_server.api.body import Integer
from vmm_server.api.openai.wire import ChatCompletionRequest, ChatMessage, ToolDefinition
from vmm_server.api.placement import PlacementFields
from vmm_server.errors import InvalidRequest, UnsupportedParameter

MAX_CHARACTERS = 4 * 2**20
"""Of all texts in a request; the longest contexts of today's models are about that many."""
MAX_TEXTS = 2048
MAX_TOKENS = 2**20


class EndingFields(PlacementFields):
    """How a conversation's prompt ends. It ends where the answer begins: these change nothing, or are refused."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class TokenizeBody(EndingFields):
    """Body of `POST /tokenize`: one of the first four."""

    prompt: object = None
    """vLLM's word for the text: a string, or an array of them."""
    content: object = None
    """llama-server's: special tokens are added only with `add_special`."""
    text: object = None
    """OVMS's."""
    messages: list[ChatMessage] | None = None
    """A conversation, as vLLM takes it."""
    model: str | None = None
    """`None`: the server's default, or the only one there is."""
    add_special_tokens: bool | None = None
    """Let the tokeniser add what it adds to every text; on, but for `content` and `messages`."""
    add_special: bool | None = None
    """llama-server's word for it."""
    parse_special: bool | None = None
    with_pieces: bool | None = None
    """Each token as `{"id", "piece"}`."""
    return_token_strs: bool | None = None
    """The tokens' texts as `token_strs`."""
    tools: list[ToolDefinition] | None = None
    tool_choice: object = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, object] | None = None
    max_length: Integer | None = None
    pad_to_max_length: bool | None = None


class DetokenizeBody(PlacementFields):
    """Body of `POST /detokenize`."""

    tokens: list[Integer]
    model: str | None = None


class ApplyTemplateBody(ChatCompletionRequest, EndingFields):
    """Body of `POST /apply-template`: that of `/v1/chat/completions`, whose prompt it tells."""

    model: str = ""
    """Empty: the server's default, or the only one there is."""


def texts_of(wire: TokenizeBody) -> str | list[str] | None:
    """The text to tokenise, or several; `None`: a conversation. Raises `InvalidRequest`, `UnsupportedParameter`."""
    named = {"prompt": wire.prompt, "content": wire.content, "text": wire.text, "messages": wire.messages}
    given = [name for name, value in named.items() if value is not None]
    if not given:
        raise InvalidRequest("prompt: one of prompt, content, text and messages is needed", param="prompt")
    if len(given) > 1:
        raise InvalidRequest(f"{given[1]}: {given[0]} is there too", param=given[1])
    _refuse("parse_special", wire.parse_special is False, "special tokens that a text spells are those tokens")
    _refuse("max_length", wire.max_length is not None, "texts are not cut")
    _refuse("pad_to_max_length", bool(wire.pad_to_max_length), "texts are not padded")
    if wire.messages is not None:
        _refuse("add_special_tokens", adds_special_tokens(wire), "the chat template writes them")
        return None
    return _checked(named[given[0]], given[0])


def _checked(value: object, field: str) -> str | list[str]:
    texts = value if isinstance(value, list) else [value]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) < len(texts):
        raise InvalidRequest(f"{field}: must be a string or an array of strings", param=field)
    if len(strings) > MAX_TEXTS:
        raise InvalidRequest(f"{field}: {len(strings)} texts, the limit is {MAX_TEXTS}", param=field)
    if (size := sum(map(len, strings))) > MAX_CHARACTERS:
        raise InvalidRequest(f"{field}: {size} characters, the limit is {MAX_CHARACTERS}", param=field)
    return value if isinstance(value, str) else strings


def adds_special_tokens(wire: TokenizeBody) -> bool:
    """Each server's default, by the field that its clients send."""
    asked = wire.add_special if wire.add_special_tokens is None else wire.add_special_tokens
    return (wire.content is None and wire.messages is None) if asked is None else asked


def chat_of(wire: TokenizeBody, model: str) -> ChatCompletionRequest:
    """The chat request whose prompt is asked for. Raises `InvalidRequest`, `UnsupportedParameter`."""
    messages = wire.messages or []
    check_ending(wire, messages)
    return ChatCompletionRequest(
        model=model,
        messages=messages,
        tools=wire.tools,
        tool_choice=wire.tool_choice,
        reasoning_effort=wire.reasoning_effort,
        chat_template_kwargs=wire.chat_template_kwargs,
    )


def check_ending(wire: EndingFields, messages: Sequence[ChatMessage]) -> None:
    """Refuse an end that prompts here do not have: an answer begins anew, or goes on from an assistant's message."""
    goes_on = bool(messages) and messages[-1].role == "assistant"
    if wire.continue_final_message and not goes_on:
        raise InvalidRequest(
            "continue_final_message: the last message is not an assistant's", param="continue_final_message"
        )
    _refuse(
        "add_generation_prompt",
        wire.add_generation_prompt is False and not goes_on,
        "a prompt ends where the answer begins",
    )


def check_tokens(wire: DetokenizeBody) -> None:
    """Raise `InvalidRequest` for too many."""
    if len(wire.tokens) > MAX_TOKENS:
        raise InvalidRequest(f"tokens: {len(wire.tokens)} of them, the limit is {MAX_TOKENS}", param="tokens")


def piece(token_id: int, token_bytes: Callable[[int], bytes]) -> dict[str, object]:
    """A token as llama-server has it: its text, or its bytes where those are no whole characters."""
    raw = token_bytes(token_id)
    try:
        return {"id": token_id, "piece": raw.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(raw)}


def _refuse(field: str, asked: bool, hint: str) -> None:
    if asked:
        raise UnsupportedParameter(f"{field} is not supported", param=field, hint=hint)
