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
_KILL_TIMEOUT_S = 2.0
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
    """The last line that a process wrote to stderr, without a log's prefix: of a traceback, the error."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return _LOG_PREFIX.sub("", lines[-1])[:_LINE_LENGTH] if lines else ""


async def _outcome(probe: Probe, timeout_s: float) -> Outcome:
    try:
        process = await asyncio.create_subprocess_exec(
            *probe.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, to be killed together
        )
    except OSError as error:
        return Outcome(probe, problem=f"{probe.name} could not be asked: {error}")
    try:
        async with asyncio.timeout(timeout_s):
            output, words = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            status = await process.wait()
    except TimeoutError:
        return Outcome(probe, problem=f"{probe.name} did not answer within {timeout_s:g} s")
    except _TooLong:
        return Outcome(probe, problem=f"{probe.name} printed more than {MAX_OUTPUT_BYTES >> 20} MB")
    finally:
        if process.returncode is None:
            await _kill(process)
    said = last_words(words)
    if status != 0:
        return Outcome(probe, problem=f"{probe.name} {_end(status)}" + (f": {said}" if said else ""))
    return _checked(probe, output, said)


def _checked(probe: Probe, output: bytes, said: str) -> Outcome:
    try:
        return Outcome(probe, TypeAdapter(probe.finding).validate_json(output), last_words=said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Outcome(
            probe, problem=f"{probe.name} gave no answer that can be read: {where and f'{where}: '}{first['msg']}"
        )


class _TooLong(Exception):
    """A child prints more than any answer has."""


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """All of it. Raises `_TooLong`."""
    assert stream is not None
    text = bytearray()
    while piece := await stream.read(1 << 16):
        text += piece
        if len(text) > MAX_OUTPUT_BYTES:
            raise _TooLong
    return bytes(text)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started. One that the system cannot end, in a driver's call, is left behind."""
    if sys.platform == "win32":
        killer = await asyncio.create_subprocess_exec("taskkill", "/F", "/T", "/PID", str(process.pid))
        await killer.wait()
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_TIMEOUT_S):
            await asyncio.gather(_drain(process.stdout), _drain(process.stderr), process.wait())


async def _drain(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(1 << 16):
        pass


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"failed with exit code {status}"
    with suppress(ValueError):
        return f"crashed ({signal.Signals(-status).name})"
    return f"crashed (signal {-status})"
