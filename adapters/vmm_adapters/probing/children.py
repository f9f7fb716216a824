"""Probes run in child processes, all at the same time: a driver that crashes or hangs takes nobody with it.

A probe prints one JSON object and ends with 0. Whatever else it does becomes a problem in words: it is killed with all
that it started when its time is up or when it prints without end.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from vmm_adapters.probing.findings import Finding

MAX_OUTPUT_BYTES = 1 << 20
_KILL_TIMEOUT_S = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LOG_PREFIX = re.compile(r"^.*\[[EFW]:onnxruntime[^\]]*\]\s*")
_LINE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to one runtime, or to the system."""

    name: str
    """Who is asked, in words."""
    command: tuple[str, ...]
    finding: type[Finding]
    """What it prints."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a probe: `finding`, or `problem`."""

    probe: Probe
    finding: Finding | None = None
    problem: str | None = None
    last_words: str = ""
    """What it wrote to stderr last."""


def run_probes(probes: Sequence[Probe], timeout_s: float) -> list[Outcome]:
    """Outcomes in the order of the probes; returns `timeout_s` and a moment later at the latest. Never raises for
    anything that a probe does. Not to be called on an event loop."""

    async def run() -> list[Outcome]:
        return await asyncio.gather(*(_outcome(probe, timeout_s) for probe in probes))

    return asyncio.run(run())


def last_words(text: bytes) -> str:
    """The last line that a process wrote to stderr, without colours and a log's prefix: of a traceback, the error."""
    plain = _COLOUR.sub("", text.decode("utf-8", "replace"))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return _LOG_PREFIX.sub("", lines[-1])[:_LINE_LENGTH] if lines else ""


class _Listener(asyncio.SubprocessProtocol):
    """What a child prints; who prints more than `MAX_OUTPUT_BYTES` is killed."""

    def __init__(self) -> None:
        self.texts = {1: bytearray(), 2: bytearray()}
        self.is_over = asyncio.Event()
        """It has ended, and nobody holds its pipes."""

    @property
    def printed_too_much(self) -> bool:
        """Whether it was killed for it."""
        return max(map(len, self.texts.values())) > MAX_OUTPUT_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It printed something."""
        if not self.printed_too_much:
            self.texts[fd] += data
            if self.printed_too_much:
                _kill(self._transport.get_pid())

    def connection_lost(self, exc: Exception | None) -> None:
        """The last that comes."""
        self.is_over.set()


async def _outcome(probe: Probe, timeout_s: float) -> Outcome:
    try:
        transport, listener = await asyncio.get_running_loop().subprocess_exec(
            _Listener,
            *probe.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, to be killed together
        )
    except OSError as error:
        return Outcome(probe, problem=f"{probe.name} could not be asked: {error}")
    try:
        is_late = not await _is_over(listener, timeout_s)
        if is_late:
            _kill(transport.get_pid())
            await _is_over(listener, _KILL_TIMEOUT_S)
        status = transport.get_returncode()
    finally:
        if transport.get_returncode() is None:  # Ctrl-C does not reach its group
            _kill(transport.get_pid())
        transport.close()
    if status is None or (is_late and status != 0):  # with 0 it had answered before; a child of its own stayed
        return Outcome(probe, problem=f"{probe.name} did not answer within {timeout_s:g} s")
    if listener.printed_too_much:
        return Outcome(probe, problem=f"{probe.name} printed more than {MAX_OUTPUT_BYTES >> 20} MB")
    said = last_words(bytes(listener.texts[2]))
    if status != 0:
        return Outcome(probe, problem=f"{probe.name} {_end(status)}" + (f": {said}" if said else ""))
    return _checked(probe, bytes(listener.texts[1]), said)


async def _is_over(listener: _Listener, timeout_s: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(listener.is_over.wait(), timeout_s)
    return listener.is_over.is_set()


def _checked(probe: Probe, output: bytes, said: str) -> Outcome:
    try:
        return Outcome(probe, TypeAdapter(probe.finding).validate_json(output), last_words=said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Outcome(
            probe, problem=f"{probe.name} gave no answer that can be read: {where and f'{where}: '}{first['msg']}"
        )


def _kill(pid: int) -> None:
    """A process with all that it started. One that the system cannot end, in a driver's call, is left behind."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"failed with exit code {status}"
    with suppress(ValueError):
        return f"crashed ({signal.Signals(-status).name})"
    return f"crashed (signal {-status})"
