"""`vmm classify`: what pictures show."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmm_server.cli.client import Client
from vmm_server.cli.flags import json_option
from vmm_server.cli.media import Files, choose_model, model_options, open_client, open_file


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top-k", type=click.IntRange(1), metavar="N", default=5, show_default=True, help="So many classes.")
@json_option
@model_options
def classify(
    images: tuple[str, ...],
    top_k: int,
    as_json: bool,
    model: str | None,
    device: str | None,
    backend: str | None,
    address: str | None,
    home: str | None,
) -> int:
    """Name what pictures show; - is standard input.

    Prints the likeliest classes of each picture; with --json a line of JSON. One that cannot be read is told, and the
    others go on; the exit code is then 1.
    """
    with open_client(address, home) as client:
        chosen = choose_model(client, model, "classification")
        fields: dict[str, Any] = {"model": chosen, "top_k": top_k, "device": device, "backend": backend}
        given = {name: value for name, value in fields.items() if value is not None}
        return classify_files(client, images, given, as_json=as_json)


def classify_files(client: Client, paths: Sequence[str], fields: Mapping[str, Any], *, as_json: bool = False) -> int:
    """Look at each picture; the exit code."""
    with Files(paths, "looking at") as files:
        for path in files:
            with files.of(path), open_file(path) as file:
                (found,) = client.send_form("/v1/vision/classify", fields, file).json()["data"]
                if as_json:
                    click.echo(json.dumps({"file": path, "classes": found["classes"]}, ensure_ascii=False))
                else:
                    named = ", ".join(f"{each['label']} {each['score']:.3f}" for each in found["classes"])
                    click.echo(f"{path}: {named}")
    return files.exit_code
