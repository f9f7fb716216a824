"""Objects → bytes on a stream: one SSE event, one NDJSON line."""

from collections.abc import Mapping

import msgspec

_encode = msgspec.json.Encoder().encode


def sse_event(body: Mapping[str, object]) -> bytes:
    """One server-sent event, as OpenAI frames it. JSON holds no raw line break, so one `data:` line is enough."""
    return b"data: " + _encode(body) + b"\n\n"


def json_line(body: Mapping[str, object]) -> bytes:
    """One line of NDJSON."""
    return _encode(body) + b"\n"
