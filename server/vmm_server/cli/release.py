"""`vmm release`: what a plain model name means, all at once or for a share of its requests."""

from collections.abc import Mapping, Sequence

import click

from vmm_server.cli.flags import home_option, json_option, server_option
from vmm_server.cli.output import print_json, print_table
from vmm_server.cli.places import Json, Place, open_place
from vmm_server.models.releases import ALL


@click.command()
@click.argument("name", required=False)
@click.argument("models", metavar="[VERSION|MODEL[=SHARE]]...", nargs=-1)
@click.option("--clear", is_flag=True, help="Have NAME mean again what is installed under it.")
@json_option
@server_option
@home_option
def release(
    name: str | None, models: tuple[str, ...], clear: bool, as_json: bool, address: str | None, home: str | None
) -> None:
    """Say which model a plain name means.

    `vmm release smollm2:135m v2` moves all requests for that name to smollm2:135m@v2 at once; v1=90 v2=10 sends ten of
    a hundred there. NAME may also be one of its own: `vmm release chat smollm2:135m@v2`. Without models it shows what
    NAME, or every name, means now. Conversations that run stay where they are.
    """
    if clear and (name is None or models):
        raise click.UsageError("--clear takes one name")
    shares = _shares(models)
    with open_place(address, home) as place:
        if name is not None and clear:
            place.clear_release(name)
            click.echo(f"'{name}' means again what is installed under it")
            return
        found = [place.release(name, shares)] if name is not None and shares else _found(place, name)
    if as_json:
        print_json(found)
    else:
        rows = [(each["name"], model, f"{share} %") for each in found for model, share in each["shares"].items()]
        print_table(("NAME", "MODEL", "SHARE"), rows)


def _found(place: Place, name: str | None) -> list[Json]:
    return place.releases() if name is None else [place.release_of(name)]


def _shares(models: Sequence[str]) -> Mapping[str, int]:
    """Each model and its share. Raises `click.UsageError`."""
    if len(models) == 1 and "=" not in models[0]:
        return {models[0]: ALL}
    shares: dict[str, int] = {}
    for given in models:
        model, _, share = given.rpartition("=")
        if not model or not share.isdecimal():
            raise click.UsageError(f"{given!r} has no share: write VERSION=SHARE for each, such as v1=90 v2=10")
        if model in shares:
            raise click.UsageError(f"{model!r} is named twice")
        shares[model] = int(share)
    return shares
