"""Commands on the models in a running server's memory."""

from datetime import datetime
from typing import Any

import click

from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import json_option, server_option
from vmm_server.cli.output import format_expiry, format_size, print_json, print_table, utc_now
from vmm_server.settings import read_settings


@click.command()
@click.argument("prefix", required=False)
@json_option
@server_option
def ps(prefix: str | None, as_json: bool, address: str | None) -> None:
    """List the models that a running server has loaded; those whose names begin with PREFIX, if one is given."""
    with Client(server_url(address, read_settings())) as client:
        models = [model for model in client.loaded() if model["name"].lower().startswith((prefix or "").lower())]
    if as_json:
        print_json(models)
    else:
        header = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "PLACEMENT")
        print_table(header, [_row(model, utc_now()) for model in models])


@click.command()
@click.argument("model")
@server_option
def stop(model: str, address: str | None) -> None:
    """Unload a model from a running server, from all that it runs on, once it is idle."""
    with Client(server_url(address, read_settings())) as client:
        client.unload(model)


def _row(model: dict[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        model["name"],
        model["digest"][:12],
        format_size(model["size"]),
        _processor(model["size"], model["size_vram"]),
        str(model["context_length"] or "-"),
        format_expiry(datetime.fromisoformat(model["expires_at"]), now),
        model.get("placement", ""),  # not every server's models have one
    )


def _processor(size: int, size_vram: int) -> str:
    """Where the model lies, as Ollama writes it: `100% CPU`, `40%/60% CPU/GPU`."""
    gpu = round(100 * size_vram / size) if size else 0
    if gpu in (0, 100):
        return "100% GPU" if gpu else "100% CPU"
    return f"{100 - gpu}%/{gpu}% CPU/GPU"
