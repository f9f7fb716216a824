"""`vmm show`: what is known of a model, or one part of it alone."""

import click

from vmm_server.cli.flags import home_option, json_option, server_option
from vmm_server.cli.output import format_size, print_json
from vmm_server.cli.places import Json, open_place

PARTS = ("license", "modelfile", "parameters", "system", "template")
_NUM_LINES = 2
"""Of a system message and of a licence."""


@click.command()
@click.argument("name")
@click.option("--license", is_flag=True, help="Print its licence alone.")
@click.option("--modelfile", is_flag=True, help="Print its Modelfile alone.")
@click.option("--parameters", is_flag=True, help="Print its parameters alone.")
@click.option("--system", is_flag=True, help="Print its system message alone.")
@click.option("--template", is_flag=True, help="Print its chat template alone.")
@click.option("-v", "--verbose", is_flag=True, help="Print what its file says, and its tensors.")
@json_option
@server_option
@home_option
def show(name: str, verbose: bool, as_json: bool, address: str | None, home: str | None, **alone: bool) -> None:
    """Show what is known of an installed model."""
    parts = [part for part in PARTS if alone[part]]
    if len(parts) > 1:
        raise click.UsageError(f"only one of {', '.join(f'--{part}' for part in PARTS)} can be asked for")
    with open_place(address, home) as place:
        shown = place.show(name, verbose=verbose)
    if as_json:
        print_json(shown[parts[0]] if parts else shown)
    elif parts:
        click.echo((shown.get(parts[0]) or "").removesuffix("\n"))
    else:
        click.echo("\n".join(_sections(shown, verbose)))


def _sections(shown: Json, verbose: bool) -> list[str]:
    """Titles two columns in, what belongs to them four, as Ollama has it; an empty line between them."""
    details, info = shown["details"], shown["model_info"]
    family = details.get("family", "")
    facts = {
        "architecture": info.get("general.architecture", family),
        "parameters": details.get("parameter_size"),
        "context length": details.get("context_length") or info.get(f"{family}.context_length"),
        "embedding length": details.get("embedding_length") or info.get(f"{family}.embedding_length"),
        "quantization": details.get("quantization_level"),
        "format": details.get("format"),
        "parent": details.get("parent_model"),
    }
    stored = {name: shown.get(name) for name in ("source", "digest", "adapter", "folder")}
    if "size_bytes" in shown:
        stored["size"] = format_size(shown["size_bytes"])
    parameters = [line.split(None, 1) for line in shown.get("parameters", "").splitlines()]
    sections = {
        "Model": _columns([(name, str(value)) for name, value in facts.items() if value]),
        "Capabilities": list(shown.get("capabilities", ())),
        "Parameters": _columns([(line[0], line[1]) for line in parameters if len(line) > 1]),
        "System": _beginning(shown.get("system", "")),
        "License": _beginning(shown.get("license", "")),
        "Stored": _columns([(name, str(value)) for name, value in stored.items() if value]),
    }
    if variants := shown.get("variants"):
        sections["Variants"] = _columns([_variant_row(each) for each in variants])
    if verbose:
        sections["Metadata"] = _columns([(name, _brief(info[name])) for name in sorted(info)])
        tensors = shown.get("tensors") or []
        sections["Tensors"] = _columns([(one["name"], one["type"], str(list(one["shape"]))) for one in tensors])
    lines: list[str] = []
    for title, content in sections.items():
        if content:
            lines += [f"  {title}", *(f"    {line}" for line in content), ""]
    return lines


def _variant_row(variant: Json) -> tuple[str, ...]:
    ratio = variant.get("perplexity_ratio")
    return variant["name"], format_size(variant["size"]), "" if ratio is None else f"perplexity {ratio - 1:+.1%}"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _beginning(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [*lines[:_NUM_LINES], *(["..."] if len(lines) > _NUM_LINES else [])]


def _brief(value: object) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"[{', '.join(map(str, value[:3]))}, … {len(value) - 3} more]"
    text = str(value).replace("\n", " ")
    return text if len(text) <= 100 else f"{text[:99]}…"
