"""`vmm embed`: vectors of texts and pictures."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmm_server.cli.client import Client
from vmm_server.cli.media import Files, choose_model, model_options, open_client, open_file

_MAX_TEXTS = 256
"""In one request."""


@click.command()
@click.argument("texts", nargs=-1, metavar="[TEXT...]")
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture; as often as there are some.")
@click.option("--dimensions", type=click.IntRange(1), metavar="N", help="Cut each vector to N numbers.")
@model_options
def embed(
    texts: tuple[str, ...],
    images: tuple[str, ...],
    dimensions: int | None,
    model: str | None,
    device: str | None,
    backend: str | None,
    address: str | None,
    home: str | None,
) -> int:
    """Make vectors of texts, and of pictures with a model that sees.

    Without either, each line of standard input is a text. Prints a line of JSON for each: texts first. A picture that
    cannot be read is told, and the others go on; the exit code is then 1.
    """
    lines = texts if texts or images else piped_lines()
    if not (lines or images):
        raise click.UsageError("name a text or an --image, or pipe lines of text in")
    with open_client(address, home) as client:
        chosen = choose_model(client, model, "image-embedding" if images else "embedding")
        fields: dict[str, Any] = {"model": chosen, "dimensions": dimensions, "device": device, "backend": backend}
        given = {name: value for name, value in fields.items() if value is not None}
        embed_texts(client, lines, given)
        return embed_images(client, images, given)


def piped_lines() -> tuple[str, ...]:
    """The lines of standard input that hold anything; none where somebody sits before it."""
    if sys.stdin is None or sys.stdin.isatty():
        return ()
    return tuple(line for line in sys.stdin.read().splitlines() if line.strip())


def embed_texts(client: Client, texts: Sequence[str], fields: Mapping[str, Any]) -> None:
    """Print the vector of each text."""
    for start in range(0, len(texts), _MAX_TEXTS):
        some = texts[start : start + _MAX_TEXTS]
        answer = client.ask("/v1/embeddings", {**fields, "input": list(some)})
        for text, found in zip(some, answer["data"], strict=True):
            click.echo(json.dumps({"text": text, "embedding": found["embedding"]}, ensure_ascii=False))


def embed_images(client: Client, paths: Sequence[str], fields: Mapping[str, Any]) -> int:
    """Print the vector of each picture; the exit code."""
    with Files(paths, "looking at") as files:
        for path in files:
            with files.of(path), open_file(path) as file:
                (found,) = client.send_form("/v1/vision/embed", fields, file).json()["data"]
                click.echo(json.dumps({"image": path, "embedding": found["embedding"]}, ensure_ascii=False))
    return files.exit_code
