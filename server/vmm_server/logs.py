"""Lines of the log: for people, or one JSON object each, with the request that they belong to.

Only our own loggers follow the setting: those of libraries tell of what they carry - chunks of answers, addresses of
pictures - when they are asked to say much.
"""

import contextvars
import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

from vmm_server.callers import caller
from vmm_server.request_note import note

Format = Literal["human", "json"]

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
"""Of the request that the running task answers."""

OURS = ("vmm_server", "vmm_adapters")
_MAX_BEHIND = 10
_HUMAN = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"


class RequestIdFilter(logging.Filter):
    """Gives every record the `request_id`, `trace_id` and `tenant` for the format to show; `-` or empty outside a
    request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        noted = note.get()
        record.request_id = request_id.get()
        record.trace_id = noted.trace.trace_id if noted else ""
        record.tenant = caller.get().tenant or (noted.tenant if noted else "")
        return True


class HumanFormatter(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__(_HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """With the trace at the end, where there is one."""
        line = super().formatMessage(record)
        trace_id = getattr(record, "trace_id", "")
        return f"{line} trace={trace_id}" if trace_id else line


class JSONFormatter(logging.Formatter):
    """One JSON object a line: `time` (RFC 3339), `level`, `logger`, `message`, `request_id`, `trace_id`, `tenant`,
    what is in the record's `fields`, and `exception`; what is not known is left out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        known = {name: getattr(record, name, "") for name in ("request_id", "trace_id", "tenant")}
        line: dict[str, object] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in known.items() if value not in ("", "-")},
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """What a record says besides its words: `logger.info(..., extra={"fields": {...}})`."""
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


def without_words(error: BaseException) -> str:
    """An error's class and where it came from, and that of each one behind it; its words may quote a request."""
    told: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(told) < _MAX_BEHIND:
        frames = "".join(traceback.format_tb(behind.__traceback__))
        told.append(f"{type(behind).__qualname__}\n{frames}".rstrip())
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return "\nbecause of ".join(told)


def rfc3339(seconds: float) -> str:
    """A time since the epoch, in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(level: str, log_format: Format) -> None:
    """Log to stderr. Called again, it changes how much, and how lines look."""
    ours = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.setLevel(max(logging.WARNING, ours))
    for name in OURS:
        logging.getLogger(name).setLevel(ours)
    handler = next((each for each in root.handlers if isinstance(each, _Handler)), None)
    if handler is None:
        handler = _Handler()
        handler.addFilter(RequestIdFilter())
        root.addHandler(handler)
    handler.setFormatter(JSONFormatter() if log_format == "json" else HumanFormatter())


class _Handler(logging.StreamHandler[TextIO]):
    """Ours."""
