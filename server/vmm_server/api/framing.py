"""Objects → bytes on a stream: one SSE event, one NDJSON line."""

from collections.abc import Mapping

import msgspec

_encode = msgspec.json.Encoder().encode


def sse_event(body: Mapping[str, object]) -> bytes:
    """One server-sent event, as OpenAI frames it. JSON holds no raw line break, so one `data:` line is enough."""
    return b"data: " + _encode(body) + b"\n\n"


def named_event(body: Mapping[str, object]) -> bytes:
    """One server-sent event named by its body's `type`, as Anthropic and OpenAI's Responses frame theirs."""
    return b"event: %b\ndata: %b\n\n" % (str(body["type"]).encode(), _encode(body))


def json_line(body: Mapping[str, object]) -> bytes:
    """One line of NDJSON."""
    return _encode(body) + b"\n"
