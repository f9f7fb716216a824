"""`vmm devices`: what the machine computes on, and which adapters can use it."""

from collections.abc import Mapping
from typing import Any

import click

from vmm_adapters.probing import probe
from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import json_option, server_option
from vmm_server.cli.output import format_size, print_json, print_table
from vmm_server.models.machine import describe
from vmm_server.settings import read_settings


@click.command()
@json_option
@server_option
def devices(as_json: bool, address: str | None) -> None:
    """List this machine's processors, and what can use each; with --host, those of a server's machine."""
    if address is None:
        machine = describe(probe())
    else:
        with Client(server_url(address, read_settings())) as client:
            machine = client.devices()
    if as_json:
        print_json(machine)
    else:
        print_devices(machine)


def print_devices(machine: Mapping[str, Any]) -> None:
    """A table, and below it what could not be used or found out."""
    found = machine["devices"]
    print_table(("NAME", "DEVICE", "MEMORY", "DRIVER", "USED BY"), [_row(device) for device in found])
    lines = [line for device in found for line in _details(device)]
    lines += [f"problem: {problem}" for problem in machine["problems"]]
    if lines:
        click.echo()
    for line in lines:
        click.echo(line)


def _row(device: Mapping[str, Any]) -> tuple[str, ...]:
    usable = [use["adapter"] for use in device["uses"] if use["spelling"] is not None]
    return (
        device["name"],
        device["description"],
        _memory(device["memory_total_bytes"], device["memory_free_bytes"]),
        device["driver"] or "-",
        ", ".join(usable) or "nothing",
    )


def _memory(total: int | None, free: int | None) -> str:
    if total is None:
        return "-"
    return format_size(total) + (f", {format_size(free)} free" if free is not None else "")


def _details(device: Mapping[str, Any]) -> list[str]:
    """Cores and features of a CPU, providers of each adapter, and why an adapter cannot use the device."""
    name, lines = device["name"], []
    if device["num_threads"] is not None:
        cores = f"{device['num_cores']} cores, " if device["num_cores"] is not None else ""
        lines.append(f"{name}: {cores}{device['num_threads']} threads; {' '.join(device['features']) or 'no features'}")
    for use in device["uses"]:
        if use["providers"]:
            lines.append(f"{name}: {use['adapter']} with {', '.join(use['providers'])}")
        elif use["reason"]:
            lines.append(f"{name}: not {use['adapter']}: {use['reason']}")
        elif use.get("is_slow"):
            lines.append(f"{name}: {use['adapter']} is slow here: it has none of the instructions that it is fast with")
    return lines
