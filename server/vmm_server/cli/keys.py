"""`vmm keys`: who may ask the server of this home. A running one sees what is done here within a second."""

import re
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import click

from vmm_server.callers import MAX_PRIORITY, MIN_PRIORITY
from vmm_server.cli.flags import home_option, json_option
from vmm_server.cli.output import format_age, format_expiry, print_json, print_table, utc_now
from vmm_server.durations import parse_duration
from vmm_server.keys import SCOPES, Key, KeyRing
from vmm_server.settings import read_settings

MAX_LIFETIME = timedelta(days=36500)
_LIMITS = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "max_concurrent": "at a time"}


class Lifetime(click.ParamType[timedelta]):
    """`30d`, or a duration as all other options have it."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration that a text means."""
        try:
            days = re.fullmatch(r"(\d{1,6})d", value)
            seconds = 86400.0 * int(days[1]) if days else parse_duration(value)
        except ValueError as error:
            self.fail(f"{error}, or 30d", param, ctx)
        if not 0 < seconds <= MAX_LIFETIME.total_seconds():
            self.fail(f"must be more than 0 and no more than {MAX_LIFETIME.days}d", param, ctx)
        return timedelta(seconds=seconds)


@click.group()
def keys() -> None:
    """Make, list and revoke keys.

    As soon as there is one, every request to the server needs a key, on this machine too. Keys are kept in keys.toml
    in the home folder, as hashes.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=("inference",), help="What it may do."
)
@click.option("--weight", type=float, default=1.0, help="Its share beside other keys of the same priority. [1]")
@click.option(
    "--priority",
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    default=0,
    help="The best that its requests may have; lower goes first. [0]",
)
@click.option("--requests-per-minute", type=click.IntRange(1), metavar="N", help="Requests that may begin.")
@click.option("--tokens-per-minute", type=click.IntRange(1), metavar="N", help="Tokens of prompts and answers.")
@click.option("--max-concurrent", type=click.IntRange(1), metavar="N", help="Requests at the same time.")
@click.option(
    "--expires", "lifetime", type=Lifetime(), metavar="DURATION", help="How long it is good for, such as 30d."
)
@home_option
def create(name: str, scopes: tuple[str, ...], lifetime: timedelta | None, home: str | None, **limits: Any) -> None:
    """Make a key and print its secret, which is kept nowhere.

    --scope may be given several times: inference runs models, models fetches, makes and deletes them, metrics reads
    figures, admin does everything.
    """
    ring = KeyRing(read_settings(home=home).keys_path)
    is_first = not ring.keys
    key, secret = ring.create(name, scopes=scopes, lifetime=lifetime, **limits)
    click.echo(f"{key.id} {key.name}: {_may(key)}; {_limited(key)}", err=True)
    if is_first:
        click.echo("it is the first key: from now on every request needs one", err=True)
    click.echo("this is the only time that you see it:", err=True)
    click.echo(secret)


@keys.command("list")
@json_option
@home_option
def list_keys(as_json: bool, home: str | None) -> None:
    """List the keys, revoked ones too."""
    found = KeyRing(read_settings(home=home).keys_path).keys
    if as_json:
        print_json([_plain(key) for key in found])
    else:
        header = ("ID", "NAME", "SECRET", "SCOPES", "PRIORITY", "WEIGHT", "LIMITS", "CREATED", "STATE")
        print_table(header, [_row(key, utc_now()) for key in found])


@keys.command()
@click.argument("key", metavar="ID|NAME")
@home_option
def revoke(key: str, home: str | None) -> None:
    """Make a key of no use, at once and for ever.

    What is running goes on to its end.
    """
    revoked = KeyRing(read_settings(home=home).keys_path).revoke(key)
    click.echo(f"revoked {revoked.id} {revoked.name}", err=True)


def _plain(key: Key) -> dict[str, object]:
    """For JSON, without the hash."""
    shown = {each.name: getattr(key, each.name) for each in fields(key) if each.name != "sha256"}
    times = {name: value.isoformat() for name, value in shown.items() if isinstance(value, datetime)}
    return shown | times | {"scopes": sorted(key.scopes)}


def _row(key: Key, now: datetime) -> tuple[str, ...]:
    weight = f"{key.weight:g}"
    age = format_age(key.created_at, now)
    return (
        *(key.id, key.name, f"{key.prefix}…", _may(key), str(key.priority), weight, _limited(key), age),
        _state(key, now),
    )


def _may(key: Key) -> str:
    return ",".join(sorted(key.scopes))


def _limited(key: Key) -> str:
    limits = [f"{limit} {unit}" for name, unit in _LIMITS.items() if (limit := getattr(key, name)) is not None]
    return ", ".join(limits) or "no limits"


def _state(key: Key, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    return f"expires {format_expiry(key.expires_at, now)}" if key.is_valid(now) else "expired"
