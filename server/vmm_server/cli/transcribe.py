"""`vmm transcribe`: speech in files, written down."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import click

from vmm_server.cli.client import Client, UploadedFile
from vmm_server.cli.media import (
    Files,
    check_targets,
    choose_model,
    model_options,
    open_client,
    open_file,
    target,
    write_whole,
)

FORMATS = ("text", "json", "srt", "vtt", "verbose_json")
_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "verbose_json": ".json"}
_JSON = ("json", "verbose_json")
_TEXT = ("transcript.text.delta", "transcript.text.done")


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of each file."""

    form: Mapping[str, Any]
    """The fields that are sent beside it."""
    format: str = "text"
    translate: bool = False
    out: Path | None = None
    """The folder that transcripts are written to; `None`: standard output."""

    @property
    def path(self) -> str:
        """The route."""
        return f"/v1/audio/{'translations' if self.translate else 'transcriptions'}"

    @property
    def streams(self) -> bool:
        """Whether the text comes piece by piece; other formats come whole."""
        return self.format == "text" and not self.translate


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--language", metavar="CODE", help="What is spoken (en, de, …); heard, if it is left out.")
@click.option("--translate", is_flag=True, help="Write it down in English.")
@click.option("--prompt", metavar="TEXT", help="Names and spelling, as if they had been said before.")
@click.option("--words", is_flag=True, help="The time of each word, with --format verbose_json.")
@click.option("--vad", is_flag=True, help="Hear only where somebody speaks. Needs the model silero-vad.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write a file for each.")
@model_options
def transcribe(
    files: tuple[str, ...],
    form: str,
    language: str | None,
    translate: bool,
    prompt: str | None,
    words: bool,
    vad: bool,
    out: Path | None,
    model: str | None,
    device: str | None,
    backend: str | None,
    address: str | None,
    home: str | None,
) -> int:
    """Write speech down: any file with sound in it, videos too; - is standard input.

    Prints the text as it is heard. A file that cannot be read is told, and the others go on; the exit code is then 1.
    """
    if words and form != "verbose_json":
        raise click.UsageError("--words needs --format verbose_json")
    if language and translate:
        raise click.UsageError("--translate hears the language by itself: leave out --language")
    if out is None and len(files) > 1 and form in ("srt", "vtt"):
        raise click.UsageError(f"several files as {form} need --out DIR")
    if out is not None:
        check_targets(out, files, _SUFFIXES[form])
    with open_client(address, home) as client:
        fields: dict[str, Any] = {
            "model": choose_model(client, model, "transcription"),
            "response_format": form,
            "language": language,
            "prompt": prompt,
            "vad_filter": "true" if vad else None,
            "timestamp_granularities[]": ["word", "segment"] if words else None,
            "device": device,
            "backend": backend,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return transcribe_files(client, files, Job(given, form, translate, out))


def transcribe_files(client: Client, paths: Sequence[str], job: Job) -> int:
    """Transcribe each; the exit code. Raises `VMMError` for what would happen to every file."""
    with Files(paths, "transcribing", prints_parts=job.streams and job.out is None) as files:
        for path in files:
            with files.of(path), open_file(path) as file:
                if job.streams:
                    _stream(client, path, file, job, files, heading=len(paths) > 1)
                else:
                    _print(path, client.send_form(job.path, job.form, file).content, job)
    return files.exit_code


def _stream(client: Client, path: str, file: UploadedFile, job: Job, files: Files, *, heading: bool) -> None:
    """Text as it is heard: onto standard output at once, into a file when it is whole."""
    duration_s = _duration_s(path)
    parts: list[str] = []
    title = f"==> {path} <==\n" if heading else ""
    for event in client.stream_form(job.path, {**job.form, "stream": "true"}, file):
        if event["type"] not in _TEXT:
            continue
        parts.append(event.get("delta", ""))
        if job.out is None:
            click.echo(f"{title}{parts[-1]}", nl=False)
            sys.stdout.flush()
            title = ""
        if duration_s and "end" in event:
            files.show(f"transcribing {path}", event["end"], duration_s)
    if job.out is not None:
        _print(path, f"{''.join(parts)}\n".encode(), job)
    else:
        click.echo()


def _print(path: str, content: bytes, job: Job) -> None:
    if job.out is not None:
        to = target(job.out, path, _SUFFIXES[job.format])
        write_whole(to, content)
        click.echo(to)
    elif job.format in _JSON:
        click.echo(json.dumps({"file": path, **json.loads(content)}, ensure_ascii=False))
    else:
        click.echo(content.decode(), nl=False)


def _duration_s(path: str) -> float | None:
    """What a file says of its length; `None` where it does not: the server reads it more closely."""
    try:
        with av.open(path) as container:
            return None if container.duration is None else container.duration / 1_000_000
    except (OSError, ValueError):
        return None
