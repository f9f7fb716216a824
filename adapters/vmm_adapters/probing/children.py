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
    reading = asyncio.gather(_read(process, process.stdout), _read(process, process.stderr), process.wait())
    is_late = False
    try:
        await asyncio.wait_for(asyncio.shield(reading), timeout_s)
    except TimeoutError:
        is_late = True
        _kill(process)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), _KILL_TIMEOUT_S)
    if is_late and process.returncode != 0:  # one that ended with 0 has answered; a child of its own stayed
        reading.cancel()
        return Outcome(probe, problem=f"{probe.name} did not answer within {timeout_s:g} s")
    output, words, status = await reading
    if max(len(output), len(words)) > MAX_OUTPUT_BYTES:
        return Outcome(probe, problem=f"{probe.name} printed more than {MAX_OUTPUT_BYTES >> 20} MB")
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


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None) -> bytes:
    """All that is printed; who prints more than `MAX_OUTPUT_BYTES` is killed, and what came until then returned."""
    text = bytearray()
    while stream is not None and (piece := await stream.read(1 << 16)):
        if len(text) <= MAX_OUTPUT_BYTES:
            text += piece
            if len(text) > MAX_OUTPUT_BYTES:
                _kill(process)
    return bytes(text)


def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started. One that the system cannot end, in a driver's call, is left behind."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"failed with exit code {status}"
    with suppress(ValueError):
        return f"crashed ({signal.Signals(-status).name})"
    return f"crashed (signal {-status})"
