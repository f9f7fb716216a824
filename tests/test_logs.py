"""Lines of the log: for people and for machines, and which of them are ours to write."""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from vmm_server.callers import Caller, caller
from vmm_server.logs import HumanFormatter, JSONFormatter, RequestIdFilter, configure, request_id, rfc3339
from vmm_server.request_note import RequestNote, note
from vmm_server.tracing import CallersTrace

TRACE = "0af7651916cd43dd8448eb211c80319c"


def record(message: str = "hello %s", **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("vmm_server.test").makeRecord(
        "vmm_server.test", logging.INFO, "file", 1, message, ("you",), extra.pop("exc_info", None), extra=extra
    )
    RequestIdFilter().filter(made)
    return made


@pytest.fixture
def answering() -> Iterator[None]:
    tokens = request_id.set("req-1"), note.set(RequestNote(CallersTrace(TRACE), lambda _: None))
    token = caller.set(Caller("key-7"))
    yield
    caller.reset(token)
    note.reset(tokens[1])
    request_id.reset(tokens[0])


def test_a_line_for_people(answering: None) -> None:
    line = HumanFormatter().format(record())
    assert line.endswith(f"INFO    req-1 vmm_server.test: hello you trace={TRACE}")


def test_a_line_outside_a_request() -> None:
    assert HumanFormatter().format(record()).endswith("INFO    - vmm_server.test: hello you")
    assert json.loads(JSONFormatter().format(record())).keys() == {"time", "level", "logger", "message"}


def test_a_line_for_machines(answering: None) -> None:
    line = json.loads(JSONFormatter().format(record(fields={"status": 200, "path": "/x"})))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "vmm_server.test",
        "message": "hello you",
        "request_id": "req-1",
        "trace_id": TRACE,
        "tenant": "key-7",
        "status": 200,
        "path": "/x",
    }


def test_an_exception_and_a_line_break_stay_in_one_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        line = JSONFormatter().format(record("x\ny %s", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: a\nb" in json.loads(line)["exception"]


def test_times_are_rfc_3339() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert datetime.fromisoformat(rfc3339(1763815747.412)).timestamp() == pytest.approx(1763815747.412)


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Logging is as it was afterwards."""
    names = ("", "vmm_server", "vmm_adapters")
    root, levels = logging.getLogger(), [logging.getLogger(name).level for name in names]
    handlers, root.handlers = root.handlers, []
    yield
    root.handlers = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def test_only_our_own_lines_follow_the_level(unconfigured: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "human")
    logging.getLogger("vmm_server.x").debug("ours")
    logging.getLogger("sse_starlette.sse").debug("chunk: theirs")
    logging.getLogger("httpx").info("GET theirs")
    logging.getLogger("uvicorn.error").warning("odd")
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()] == ["ours", "odd"]


def test_what_is_configured_again_holds_from_then_on(unconfigured: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "human")
    configure("warning", "json")
    logging.getLogger("vmm_server.x").info("no")
    logging.getLogger("vmm_server.x").warning("yes")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["yes"]
