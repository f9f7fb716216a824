"""What the commands print: tables, sizes, ages, JSON, and the progress of a pull."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vmm_server.models.jobs import PullEvent

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def print_json(value: object) -> None:
    """Indented JSON on stdout; times in RFC 3339, folders as text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, never cut, and apart as Ollama's are: scripts read them too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        click.echo("    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def format_size(num_bytes: int) -> str:
    """Decimal units, as Ollama prints them: `98 MB`, `1.2 GB`."""
    size = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_span(span: timedelta) -> str:
    """The largest unit that fits: `5 minutes`, `3 days`."""
    seconds = int(abs(span.total_seconds()))
    length, unit = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    count = seconds // length
    return f"{count} {unit}" + ("s" if count != 1 else "")


def format_age(then: datetime, now: datetime) -> str:
    """How long ago: `3 days ago`."""
    return f"{format_span(now - then)} ago"


def format_expiry(then: datetime, now: datetime) -> str:
    """How long from now: `4 minutes from now`; what is centuries away is `Forever`."""
    if then - now > timedelta(days=36500):
        return "Forever"
    return f"{format_span(then - now)} from now" if then > now else "Stopping..."


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class PullProgress:
    """Draws the events of a pull on stderr: a bar a file on a terminal, a line a step elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_status = ""

    def show(self, event: PullEvent) -> None:
        """Draw one event."""
        if not event.total or not self._console.is_terminal:
            if event.status != self._last_status:
                self._console.print(event.status, highlight=False, markup=False, soft_wrap=True)
            self._last_status = event.status
            return
        key = event.digest or event.status
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(event.status, total=event.total)
        self._progress.update(self._tasks[key], completed=event.completed or 0, total=event.total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
