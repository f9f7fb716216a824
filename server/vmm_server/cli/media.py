"""What the commands for pictures and sound share: which model, which files, and what happens to a bad one."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from types import TracebackType
from typing import Any, Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vmm_adapters.catalog import BACKENDS
from vmm_server.cli import print_error
from vmm_server.cli.client import Client, UploadedFile, server_url
from vmm_server.cli.embedded import embedded_server
from vmm_server.cli.flags import home_option, server_option
from vmm_server.errors import InvalidRequest
from vmm_server.settings import read_settings

STDIN = "-"
DEFAULTS = {
    "transcription": "whisper:tiny.en",
    "detection": "yolox:nano",
    "classification": "efficientnet:lite0",
    "embedding": "all-minilm",
    "image-embedding": "clip",
}
"""Capability → the model that is asked where several are installed, or none: then the error says how to pull it."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def model_options(function: Decorated) -> Decorated:
    """`--model`, where it runs, and which server runs it."""
    for option in (
        home_option,
        server_option,
        click.option("--backend", type=click.Choice(BACKENDS, case_sensitive=False), help="Run on this runtime only."),
        click.option("--device", metavar="DEVICE", help="Run on this device only: CPU, GPU, GPU.1."),
        click.option("--model", metavar="MODEL", help="By default the only one installed that can do it."),
    ):
        function = option(function)
    return function


@contextmanager
def open_client(address: str | None, home: str | None) -> Iterator[Client]:
    """The running server, or one embedded for the occasion where none answers on this machine."""
    settings = read_settings(home=home)
    with Client(server_url(address, settings)) as client:
        if not client.is_local or client.answers():
            yield client
            return
    with embedded_server(settings) as (url, api_key), Client(url, api_key=api_key) as embedded:
        yield embedded


def choose_model(client: Client, named: str | None, capability: str) -> str:
    """The model that is named, else the only one installed that has the capability, else `DEFAULTS`'."""
    if named is not None:
        return named
    able = [each["name"] for each in client.installed() if capability in each.get("capabilities", ())]
    return able[0] if len(able) == 1 else DEFAULTS[capability]


@contextmanager
def open_file(path: str) -> Iterator[UploadedFile]:
    """A file by its path, or what comes in on standard input. Raises `OSError`."""
    if path != STDIN:
        with Path(path).open("rb") as file:
            yield os.path.basename(path), file
        return
    with tempfile.TemporaryFile() as file:  # its length has to be known before it is sent
        copyfileobj(sys.stdin.buffer, file)
        file.seek(0)
        yield "stdin", file


class Files:
    """Goes through files: a bad one is told in a line, and the others go on. Draws a bar on a terminal."""

    def __init__(self, paths: Sequence[str], doing: str, *, prints_parts: bool = False) -> None:
        """`prints_parts`: what is printed meanwhile are not whole lines, which leave no room for a bar."""
        self._paths = paths
        self.num_failed = 0
        console = Console(stderr=True)
        shows_output = sys.stdout.isatty()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=shows_output,  # lines go above the bar; elsewhere they are none of its business
            disable=not console.is_terminal or (prints_parts and shows_output),
        )
        self._doing = doing
        self._task: TaskID | None = None

    def __iter__(self) -> Iterator[str]:
        """Each path; the work on it is done in `self.of`."""
        total = len(self._paths) if len(self._paths) > 1 else None
        self._task = self._progress.add_task(self._doing, total=total)
        for index, path in enumerate(self._paths):
            self.show(f"{self._doing} {path}", index if total else None, total)
            yield path

    def show(self, description: str, done: float | None = None, total: float | None = None) -> None:
        """Draw how far the work is; a bar without a total tells no more than that it goes on."""
        assert self._task is not None, "iterate first"
        self._progress.update(self._task, description=description, completed=done, total=total)

    @contextmanager
    def of(self, path: str) -> Iterator[None]:
        """Around the work on one file: what is wrong with it does not end the others'."""
        try:
            yield
        except InvalidRequest as error:
            self._fail(f"{path}: {error.message}", error.hint)
        except OSError as error:
            self._fail(f"{path}: {error.strerror or error}", None)

    @property
    def exit_code(self) -> int:
        """1 if any of them failed."""
        return int(self.num_failed > 0)

    def _fail(self, message: str, hint: str | None) -> None:
        self.num_failed += 1
        print_error(message, hint)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def target(folder: Path, path: str, suffix: str) -> Path:
    """Where what was made of a file goes."""
    return folder / f"{'stdin' if path == STDIN else Path(path).stem}{suffix}"


def check_targets(folder: Path, paths: Sequence[str], suffix: str) -> None:
    """Make the folder. Raises `click.UsageError` where two files would become one, or one would replace its source."""
    sources = {os.path.realpath(path) for path in paths if path != STDIN}
    taken: dict[Path, str] = {}
    for path in paths:
        to = target(folder, path, suffix)
        if to in taken:
            raise click.UsageError(f"{taken[to]} and {path} would both be written to {to}")
        if os.path.realpath(to) in sources:
            raise click.UsageError(f"{path} would be written over: choose another --out")
        taken[to] = path
    folder.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises `OSError`."""
    aside = path.with_name(f"{path.name}.partial")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
