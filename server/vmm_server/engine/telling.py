"""Errors of an engine's thread in the log, under the id of the request that they belong to."""

import logging
from collections.abc import Iterable
from contextvars import Context
from functools import partial


def tell(logger: logging.Logger, words: str, contexts: Iterable[Context]) -> None:
    """Log the exception that is being handled: in the context of the request that it concerns, where that is one."""
    first, *others = [*contexts] or [Context()]
    log = partial(logger.exception, words)
    if others:
        log()
    else:
        first.run(log)
