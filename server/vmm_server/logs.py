"""The id of the request that a log line belongs to."""

import contextvars
import logging

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
"""Of the request that the running task answers."""


class RequestIdFilter(logging.Filter):
    """Gives every record a `request_id` for the format to show; `-` outside a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        record.request_id = request_id.get()
        return True
