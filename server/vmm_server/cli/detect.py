"""`vmm detect`: what is where in pictures."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vmm_server.cli.client import Client
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

_SUFFIX = ".png"


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--threshold", type=click.FloatRange(0, 1), metavar="SCORE", help="The least score. [0.25]")
@click.option("--iou", type=click.FloatRange(0, 1), metavar="IOU", help="Boxes of a class may overlap so far. [0.45]")
@click.option("--max", "limit", type=click.IntRange(1), metavar="N", help="At most so many in a picture. [300]")
@click.option("--classes", metavar="NAMES", help="Only these, as names or numbers with commas: cat,dog.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write drawn pictures.")
@model_options
def detect(
    images: tuple[str, ...],
    threshold: float | None,
    iou: float | None,
    limit: int | None,
    classes: str | None,
    out: Path | None,
    model: str | None,
    device: str | None,
    backend: str | None,
    address: str | None,
    home: str | None,
) -> int:
    """Find things in pictures; - is standard input.

    Prints a line of JSON for each picture. One that cannot be read is told, and the others go on; the exit code is
    then 1.
    """
    if out is not None:
        check_targets(out, images, _SUFFIX)
    with open_client(address, home) as client:
        fields: dict[str, Any] = {
            "model": choose_model(client, model, "detection"),
            "threshold": threshold,
            "iou_threshold": iou,
            "max_detections": limit,
            "classes": None if classes is None else [each.strip() for each in classes.split(",")],
            "device": device,
            "backend": backend,
        }
        return detect_files(client, images, {name: value for name, value in fields.items() if value is not None}, out)


def detect_files(client: Client, paths: Sequence[str], fields: Mapping[str, Any], out: Path | None = None) -> int:
    """Look at each picture, and draw it into `out` where there is one; the exit code."""
    fields = fields if out is None else {**fields, "draw": "true"}
    with Files(paths, "looking at") as files:
        for path in files:
            with files.of(path), open_file(path) as file:
                (found,) = client.send_form("/v1/vision/detect", fields, file).json()["data"]
                line = {"file": path, **{name: found[name] for name in ("width", "height", "detections")}}
                if out is not None:
                    drawn = target(out, path, _SUFFIX)
                    write_whole(drawn, base64.b64decode(found["image"].partition(",")[2]))
                    line["image"] = str(drawn)
                click.echo(json.dumps(line, ensure_ascii=False))
    return files.exit_code
