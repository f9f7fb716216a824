"""Flags that are settings: every field of `Settings` is one, with the field's docstring as its help."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import AliasChoices, ByteSize

from vmm_server.ollama_environment import VARIABLES
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings

_METAVARS: dict[object, str] = {
    Path: "PATH",
    ByteSize: "SIZE",
    KeepAlive: "DURATION",
    int: "N",
    float: "SECONDS",
    str: "TEXT",
    bool: "true|false",
}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def flag_name(setting: str) -> str:
    """`max_queue` → `--max-queue`."""
    return "--" + setting.replace("_", "-")


def variables(setting: str) -> list[str]:
    """The environment variables that set a setting, the one that wins first."""
    alias = Settings.model_fields[setting].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [f"VMM_{setting.upper()}", *([VARIABLES[setting]] if setting in VARIABLES else [])]


def _metavar(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin in (Annotated, Union, types.UnionType, tuple):
        return _metavar(arguments[0])
    return _METAVARS[annotation]


def setting_options(*names: str) -> Callable[[Decorated], Decorated]:
    """A flag for each named setting, or for every one. Values stay text: `read_settings` checks them."""

    def decorate(function: Decorated) -> Decorated:
        for name in reversed(names or tuple(Settings.model_fields)):
            field = Settings.model_fields[name]
            option = click.option(
                flag_name(name),
                name,
                metavar=_metavar(field.annotation),
                help=f"{field.description} [{', '.join(variables(name))}]",
            )
            function = option(function)
        return function

    return decorate


home_option = setting_options("home")
server_option = click.option(
    "--host", "address", metavar="ADDRESS", help="The server's host[:port] or URL. [VMM_HOST, VMM_PORT, OLLAMA_HOST]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
