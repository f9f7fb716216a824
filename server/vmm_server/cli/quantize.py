"""`vmm quantize`: a variant of an installed model in fewer bits, and what that costs."""

from pathlib import Path
from threading import Event
from typing import cast

import click

from vmm_server.cli.flags import home_option, server_option
from vmm_server.cli.output import PullProgress, format_size
from vmm_server.cli.places import local, open_place
from vmm_server.errors import InvalidRequest
from vmm_server.models.jobs import Throttle
from vmm_server.models.quantizing import BITS, Made, Precision, Wish, change_of


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--to", type=click.Choice(list(BITS)), required=True, help="Bits of a weight.")
@click.option("--text", "path", metavar="FILE", help="A text to compare on. [a chapter of a novel, in English]")
@click.option("--force", is_flag=True, help="Also where it is larger, says much less well, or cannot be compared.")
@server_option
@home_option
def quantize(name: str, to: str, path: str | None, force: bool, address: str | None, home: str | None) -> None:
    """Make a variant of a model in 8 or 4 bits a weight, for devices with little memory.

    Prints the perplexity over a text before and after, and keeps no variant that is more than a tenth worse. A server
    that runs uses it at its next load: where the model itself does not fit, or when a request asks for it.
    """
    text = None if path is None else _read(Path(path))
    wish = Wish(cast(Precision, to), text, force)
    with open_place(address, home) as place:
        store = local(place, "vmm quantize")
        with PullProgress() as progress:
            made = store.quantize(name, wish, Throttle(progress.show), Event())
    click.echo(_sentence(made))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}", param="text", hint="name a UTF-8 text") from error


def _sentence(made: Made) -> str:
    size = f"{made.variant.name} of {made.model.name}: {format_size(made.variant.size_bytes)}"
    size += f", {format_size(made.model.size_bytes)} as installed"
    if made.before is None or made.after is None:
        return f"{size}; not compared"
    change = change_of(made.before, made.after)
    return f"{size}; perplexity {made.before:.2f} -> {made.after:.2f} ({change}, {made.num_tokens} tokens)"
