"""Logging to stderr, with the id of the request that a line belongs to."""

import contextvars
import logging
import sys

FORMAT = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
"""Of the request that the running task answers."""


class RequestIdFilter(logging.Filter):
    """Gives every record a `request_id` for the format to show; `-` outside a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        record.request_id = request_id.get()
        return True


def configure_logging(level: str) -> None:
    """One handler on stderr. uvicorn's and httpx's own lines say nothing that ours do not."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn.error", "httpx", "sse_starlette"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
