"""`vmm bench`: how fast a model is wherever it can run, and which placement gets which work."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import home_option, json_option, server_option
from vmm_server.cli.output import PullProgress, format_size, print_json, print_table
from vmm_server.cli.run import connect, ensure_installed
from vmm_server.errors import InvalidRequest
from vmm_server.models.jobs import PullEvent
from vmm_server.settings import read_settings

_RATES: Mapping[str, Mapping[str, str]] = {
    "tokens": {"DECODE 1": "decode_1", "DECODE 8": "decode_8", "PREFILL 512": "prefill"},
    "answers": {"ALONE": "decode_1", "8 AT A TIME": "decode_8"},
}
"""Columns of what is counted a second → where a profile has it."""


@click.command()
@click.argument("model", required=False)
@click.option("--calibrate", is_flag=True, help="Measure now, and keep it; else show what was kept.")
@click.option("--device", metavar="TEXT", help="Measure on this device alone.")
@click.option("--backend", metavar="TEXT", help="Measure with this runtime alone.")
@json_option
@server_option
@home_option
def bench(
    model: str | None,
    calibrate: bool,
    device: str | None,
    backend: str | None,
    as_json: bool,
    address: str | None,
    home: str | None,
) -> None:
    """Show how fast MODEL is wherever it can run here, and which placement requests go to.

    Rates are tokens a second: of one stream, of eight streams together, and of a prompt of 512 tokens; of models for
    pictures and sound, answers a second, one and eight at a time. Uses the running
    server; if none answers, one is embedded for as long as the command runs. MODEL is the default model unless named.
    """
    settings = read_settings(home=home)
    name = model or settings.default_model
    if not name:
        raise InvalidRequest("no model is named, and the settings have no default_model", param="model")
    if (device or backend) and not calibrate:
        raise click.UsageError("--device and --backend say what to measure: with --calibrate")
    with connect(Client(server_url(address, settings)), settings) as client:
        if calibrate:
            ensure_installed(client, name)
            report = measure(client, name, device, backend)
        else:
            report = client.profiles(name)
    if as_json:
        print_json(report)
    else:
        print_report(report)


def measure(client: Client, model: str, device: str | None, backend: str | None) -> dict[str, Any]:
    """Have the server measure, with progress on stderr; its report."""
    report: dict[str, Any] = {}
    with PullProgress() as progress:
        for report in client.calibrate(model, device=device, backend=backend):
            if (status := report.pop("status")) != "success":
                reason = f": {report['reason']}" if report.get("reason") else ""
                progress.show(PullEvent(f"{status}{reason}"))
    return report


def print_report(report: Mapping[str, Any]) -> None:
    """A table, and below it what failed and how the router decides."""
    rows, model = report["placements"], report["model"]
    rates = _RATES[report.get("unit", "tokens")]
    header = ("PLACEMENT", *rates, "LOAD", "MEMORY", "CHOSEN FOR")
    print_table(header, [_row(row, report["choices"], [*rates.values()]) for row in rows])
    lines = [f"{row['placement']}: {row['reason']}" for row in rows if row["reason"]]
    if not any(row["profile"] for row in rows):
        lines.append(f"nothing was measured of {model} here: vmm bench {model} --calibrate")
    elif not report["is_measured"]:
        lines.append(f"not all were measured, so rules of thumb decide: vmm bench {model} --calibrate")
    if lines:
        click.echo()
    for line in lines:
        click.echo(line)


def _row(row: Mapping[str, Any], choices: list[Mapping[str, Any]], rates: Sequence[str]) -> tuple[str, ...]:
    chosen = ", ".join(choice["work"] for choice in choices if choice["placement"] == row["placement"]) or "-"
    if (profile := row["profile"]) is None:
        return row["placement"], *["failed" if row["reason"] else "-"] * len(rates), "-", "-", chosen
    return (
        row["placement"],
        *(_rate(profile[name]) for name in rates),
        f"{profile['load_s']:.1f} s",
        format_size(profile["memory_bytes"]),
        chosen,
    )


def _rate(per_s: float) -> str:
    """`69.4`, `3749`: three digits at least."""
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:.0f}"
