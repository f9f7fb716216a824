"""`vmm status` and `vmm reload`: how a running server is, and reading its files again."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import json_option, server_option
from vmm_server.cli.output import format_size, format_span, print_json, print_table
from vmm_server.settings import read_settings

_CHANGED = {
    "at_once": "changed",
    "at_next_load": "changed for models that are loaded from now on",
    "at_restart": "needs a restart",
}


@click.command()
@json_option
@server_option
def status(as_json: bool, address: str | None) -> None:
    """Show how a running server is: ready or not, what it has loaded, and what it has to do."""
    with Client(server_url(address, read_settings())) as client:
        found = client.status()
        url = client.url
    if as_json:
        print_json(found)
        return
    uptime = format_span(timedelta(seconds=found["uptime_s"]))
    state = "ready" if found["status"] == "ok" else f"not ready: {found['reason']}"
    asked = found["requests"]
    click.echo(f"VMM {found['version']} on {url}, up {uptime}: {state}")
    click.echo(f"requests: {asked['running']} running, {asked['waiting']} waiting; errors so far: {asked['errors']}")
    click.echo(f"keys: {'needed' if found['keys_required'] else 'none, everybody may ask'}{_memory(found)}")
    if found["models"]:
        header = ("MODEL", "PLACEMENT", "SIZE", "RUNNING", "WAITING", "KV CACHE")
        print_table(header, [_row(model) for model in found["models"]])


@click.command("reload")
@server_option
def reload_server(address: str | None) -> None:
    """Have a running server read its settings, model cards and keys again, without dropping a request."""
    with Client(server_url(address, read_settings())) as client:
        found = client.reload()
    click.echo(f"read {found['num_cards']} cards and {found['num_keys']} keys")
    for kind, words in _CHANGED.items():
        if names := found["changed"][kind]:
            click.echo(f"{words}: {', '.join(names)}")


def _memory(found: Mapping[str, Any]) -> str:
    return f"; memory: {format_size(found['memory_bytes'])}" if found["memory_bytes"] else ""


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    blocks, used = model["kv_blocks"], model["kv_blocks_used"]
    placement = "/".join(filter(None, (model["backend"], model["device"], model["variant"])))
    return (
        model["model"],
        placement,
        format_size(model["memory_bytes"] or 0),
        str(model["running"]),
        str(model["waiting"]),
        f"{100 * used / blocks:.0f} %" if blocks else "-",
    )
