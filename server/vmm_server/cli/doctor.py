"""`vmm doctor`: what is installed, what is wrong with it, and the command that mends it."""

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click
from packaging.requirements import Requirement

from vmm_adapters.device import Machine
from vmm_adapters.probing import probe
from vmm_server.cli.client import Client, server_url
from vmm_server.cli.devices import print_devices
from vmm_server.cli.diagnosis import Finding, Installation, Setup, Severity, diagnose
from vmm_server.cli.flags import json_option
from vmm_server.cli.listener import bind
from vmm_server.cli.output import print_json, print_table
from vmm_server.errors import SettingsError
from vmm_server.models.disk import free_bytes
from vmm_server.models.machine import describe
from vmm_server.ollama_environment import without_effect
from vmm_server.settings import Settings, read_settings


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Say what is wrong with the installation, the devices and the settings, and what mends it.

    Exits with 1 when something is broken. Changes nothing.
    """
    machine = probe()
    try:
        setup, unreadable = find_setup(read_settings()), []
    except SettingsError as error:
        setup, unreadable = None, [Finding(Severity.BROKEN, error.message, error.hint)]
    installation = find_installation(machine.packages)
    findings = unreadable + diagnose(installation, machine, setup)
    if as_json:
        print_json({"findings": [asdict(each) for each in findings], **describe(machine)})
    else:
        _print(machine, findings)
    return 1 if any(each.severity is Severity.BROKEN for each in findings) else 0


def find_installation(packages: Mapping[str, str]) -> Installation:
    """With what the `packages` require, and the versions of that."""
    found = dict(packages)
    requirements: dict[str, list[str]] = {}
    for name in packages:
        try:
            requirements[name] = list(distribution(name).requires or ())
        except PackageNotFoundError:
            continue
        for text in requirements[name]:
            required = Requirement(text).name
            try:
                found.setdefault(required.lower().replace("_", "-"), distribution(required).version)
            except PackageNotFoundError:
                continue
    return Installation(found, requirements)


def find_setup(settings: Settings) -> Setup:
    """What the settings come to; nothing is written."""
    return Setup(
        device=settings.device,
        memory_budget_bytes=settings.memory_budget,
        models_dir=str(settings.store_dir),
        models_dir_error=write_error(settings.store_dir),
        free_disk_bytes=free_bytes(_nearest(settings.store_dir)),
        home=str(settings.home),
        home_error=write_error(settings.home),
        cache_dir=str(settings.cache_dir),
        cache_dir_error=write_error(settings.cache_dir),
        address_error=_address_error(settings),
        without_effect=tuple(without_effect(os.environ)),
    )


def write_error(folder: Path) -> str | None:
    """Why no file can be made in a folder, or no folder made where it would be."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        return os.strerror(errno.ENOTDIR)
    return None if os.access(nearest, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(each for each in (folder, *folder.parents) if os.path.lexists(each))


def _address_error(settings: Settings) -> str | None:
    try:
        bind(settings.host, settings.port).close()
    except SettingsError as error:
        with Client(server_url(None, settings)) as client:
            return None if client.answers() else error.message
    return None


def _print(machine: Machine, findings: list[Finding]) -> None:
    print_table(("PACKAGE", "VERSION"), list(machine.packages.items()))
    click.echo()
    print_devices(describe(machine))
    click.echo()
    for finding in findings:
        click.echo(f"{finding.severity}: {finding.message}")
        if finding.mend:
            click.echo(f"  mend: {finding.mend}")
    if not findings:
        click.echo("all is well")
