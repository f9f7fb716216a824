"""The lines of a batch: what is asked, what comes out. Pure; the format is OpenAI's (guides/batch, "JSONL").

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "…", "messages": […]}}
{"id": "batch_req_…", "custom_id": "a", "response": {"status_code": 200, "request_id": "…", "body": {…}}, "error": null}
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

MAX_LINES = 50_000
MAX_LINE_BYTES = 64 * 1024 * 1024
"""As large as a request's body may be."""
MAX_CUSTOM_ID = 512
"""Characters of a `custom_id`."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class AskedLine:
    """One request."""

    number: int
    """Of the file's line, from 1."""
    custom_id: str
    model: str
    body: bytes
    """JSON, as it stands in the file."""


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line, or with the whole file; an entry of a batch's `errors.data`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class TokenUsage(msgspec.Struct, frozen=True):
    """What one answer took, or many."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ResultLine:
    """What came out of one request."""

    text: bytes
    """The line of the output file, without its end."""
    is_error: bool
    usage: TokenUsage


def check_lines(lines: Iterable[bytes], endpoint: str) -> Iterator[AskedLine | LineError]:
    """What each line of a file asks of `endpoint`, or what is wrong with it. Empty lines are none.

    After too many lines nothing more comes.
    """
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        text = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if not text:
            continue
        asked = _check_line(text, number, endpoint)
        if isinstance(asked, AskedLine):
            if asked.custom_id in seen:
                message = "The custom_id for this request is a duplicate of another request."
                asked = LineError("duplicate_custom_id", message, "custom_id", number)
            else:
                seen.add(asked.custom_id)
        if len(seen) > MAX_LINES:
            yield LineError("too_many_tasks", f"The file has more than {MAX_LINES} requests.", None, number)
            return
        yield asked


def _check_line(text: bytes, number: int, endpoint: str) -> AskedLine | LineError:
    if len(text) > MAX_LINE_BYTES:
        return LineError("line_too_long", f"This line has more than {MAX_LINE_BYTES} bytes.", None, number)
    try:
        fields = _decode_fields(text)
        msgspec.json.decode(text)  # whatever is inside the fields
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        fields = None
    if fields is None:
        return LineError("invalid_json_line", "This line is not parseable as a JSON object.", None, number)
    try:
        return _read_fields(fields, number, endpoint)
    except _Wrong as wrong:
        return LineError(wrong.code, str(wrong), wrong.param, number)


def _read_fields(fields: dict[str, msgspec.Raw], number: int, endpoint: str) -> AskedLine:
    custom_id = _text(fields, "custom_id")
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise _Wrong("invalid_value", "custom_id", f"custom_id must have 1 to {MAX_CUSTOM_ID} characters.")
    if (method := _text(fields, "method")) != "POST":
        raise _Wrong("invalid_method", "method", f"method must be POST, not {method[:100]!r}.")
    if (url := _text(fields, "url")) != endpoint:
        raise _Wrong("url_mismatch", "url", f"url must be the batch's endpoint {endpoint}, not {url[:200]!r}.")
    try:
        body = _decode_fields(_required(fields, "body"))
    except msgspec.DecodeError as error:
        raise _Wrong("invalid_type", "body", "body must be an object.") from error
    model = _text(body, "model", "body.model")
    if bytes(body.get("stream", b"false")) not in (b"false", b"null"):
        raise _Wrong("unsupported_parameter", "body.stream", "stream: a batch has no streams; leave it out.")
    return AskedLine(number, custom_id, model, bytes(fields["body"]))


class _Wrong(Exception):
    """What is wrong with a field."""

    def __init__(self, code: str, param: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def _required(fields: dict[str, msgspec.Raw], name: str, param: str | None = None) -> msgspec.Raw:
    if name not in fields:
        raise _Wrong("missing_required_parameter", param or name, f"Missing required parameter: '{param or name}'.")
    return fields[name]


def _text(fields: dict[str, msgspec.Raw], name: str, param: str | None = None) -> str:
    try:
        return _decode_text(_required(fields, name, param))
    except msgspec.DecodeError as error:
        raise _Wrong("invalid_type", param or name, f"{param or name} must be a string.") from error


def answered(request_id: str, custom_id: str, status: int, http_request_id: str, body: bytes) -> ResultLine:
    """The line of a request that was answered. Raises `ValueError` for a body that is no JSON."""
    usage = _usage(body)
    response = {"status_code": status, "request_id": http_request_id, "body": msgspec.Raw(body)}
    line = {"id": request_id, "custom_id": custom_id, "response": response, "error": None}
    return ResultLine(_one_line(line), not 200 <= status < 300, usage)


def unanswered(request_id: str, custom_id: str, code: str, message: str) -> ResultLine:
    """The line of a request that nothing was computed for."""
    error = {"code": code, "message": message}
    line = {"id": request_id, "custom_id": custom_id, "response": None, "error": error}
    return ResultLine(_one_line(line), True, TokenUsage())


def _one_line(line: Mapping[str, object]) -> bytes:
    """JSON that is one line for everybody: Python's `splitlines` also ends lines at NEL, U+2028 and U+2029."""
    text = msgspec.json.encode(line)
    for raw, escaped in _LINE_ENDS.items():
        text = text.replace(raw, escaped)
    return text


_LINE_ENDS = {character.encode(): rb"\u%04x" % ord(character) for character in "\x85\u2028\u2029"}


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    thinking_tokens: int = 0


class _Usage(msgspec.Struct):
    """Of chat and completions in the first names, of responses in the second; Anthropic's leaves cached tokens out of
    `input_tokens`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


def _usage(body: bytes) -> TokenUsage:
    try:
        usage = _decode_answer(body).usage
    except msgspec.ValidationError:  # JSON, and no usage that we know
        usage = None
    if usage is None:
        return TokenUsage()
    given = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    made = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return TokenUsage(
        usage.prompt_tokens + usage.input_tokens + usage.cache_read_input_tokens,
        given.cached_tokens + usage.cache_read_input_tokens,
        usage.completion_tokens + usage.output_tokens,
        made.reasoning_tokens + made.thinking_tokens,
    )


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
