"""Go's duration strings (`1h30m`, `500ms`), as Ollama's clients and variables write them."""

import re
from math import ceil

from vmm_server.requests import KeepAlive

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds in a Go duration (time.ParseDuration's grammar) or a bare number of seconds. Raises `ValueError`."""
    body = text.strip()
    sign = -1.0 if body.startswith("-") else 1.0
    body = body.lstrip("+-")
    try:
        return sign * float(body)
    except ValueError:
        pass
    parts = list(_PART.finditer(body))
    if not parts or "".join(part.group(0) for part in parts) != body:
        raise ValueError(f"{text!r} is not a duration such as 5m, 1h30m or 90s")
    return sign * sum(float(part.group(1)) * _UNITS[part.group(2)] for part in parts)


def format_duration(seconds: float) -> str:
    """As Go writes it, in milliseconds rounded up: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    num_ms = ceil(1000 * seconds)
    if 0 < num_ms < 1000:
        return f"{num_ms}ms"
    minutes, left_ms = divmod(num_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{left_ms / 1000:g}s"


def parse_keep_alive(value: str | int | float) -> KeepAlive:
    """Ollama's `keep_alive`: seconds or a Go duration; negative is for ever. Raises `ValueError`."""
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    if seconds != seconds:  # NaN
        raise ValueError("keep_alive is not a number")
    return KeepAlive(None if seconds < 0 or seconds == float("inf") else seconds)
