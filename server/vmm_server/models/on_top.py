"""What a Modelfile puts on top of a model's weights. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import InvalidRequest
from vmm_server.models.manifests import InstalledModel, Manifest
from vmm_server.models.names import ModelName
from vmm_server.models.parameters import from_sampling, to_sampling
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.go_template import GoTemplate
from vmm_server.prompt.templates import read_template

FLOAT_FILES = ("F16", "BF16", "F32")
"""`InstalledModel.quantization` of GGUF files that can be quantised."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What is to be made. A field left empty keeps what the parent has."""

    name: str
    from_: str | None = None
    """An installed model, or what `Puller.pull` takes."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Uploaded files: path → `sha256:<hex>`."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    licenses: tuple[str, ...] = ()
    """Texts."""
    system: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    """By Ollama's names; each replaces the parent's of that name."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content)"""
    quantize: str | None = None


def check_parent(request: CreateRequest, parent: Manifest) -> None:
    """Raise `InvalidRequest` for what cannot be made of this model."""
    model, blobs = parent.model, parent.blobs
    _check_task(request, model)
    if not request.quantize:
        return
    if model.format != "gguf" or len(blobs) != 1:
        raise InvalidRequest(f"quantize: {model.name} has no GGUF file that could be quantized", param="quantize")
    if model.quantization not in FLOAT_FILES:
        raise InvalidRequest(
            f"quantize: {model.name} is {model.quantization} already; only F16, BF16 and F32 can be quantized",
            param="quantize",
        )


def _check_task(request: CreateRequest, model: InstalledModel) -> None:
    given = {"system": request.system, "template": request.template, "messages": request.messages}
    param = next((param for param, value in given.items() if value), None)
    if param and not model.generates:
        raise InvalidRequest(f"{param}: {model.title} makes no text", param=param)


def put_on_top(base: InstalledModel, request: CreateRequest, name: ModelName, *, now: datetime) -> InstalledModel:
    """The base under a new name, with what the request sets in place of the base's own. Raises `InvalidRequest`."""
    _check_task(request, base)
    parameters = {**base.parameters, **request.parameters}
    num_ctx = parameters.get("num_ctx")
    model = replace(
        base,
        name=str(name),
        aliases=(),
        modified_at=now,
        system=request.system or base.system,
        template=request.template or base.template,
        capabilities=_capabilities(base.capabilities, request.template),
        parameters=parameters,
        sampling=SamplingDefaults.model_validate(base.sampling.model_dump() | to_sampling(request.parameters)),
        num_ctx=num_ctx if isinstance(num_ctx, int) else None,
        messages=request.messages or base.messages,
        license_texts=tuple(dict.fromkeys((*base.license_texts, *_texts(request.licenses, base)))),
    )
    return identified(model, base)


def identified(model: InstalledModel, base: InstalledModel) -> InstalledModel:
    """The model with its digest: that of the base, if nothing on top differs. Servers that have both agree on it."""
    is_changed = _on_top(model) != _on_top(base)
    return replace(model, digest=digest_of(model) if is_changed else base.digest)


def _texts(licenses: tuple[str, ...], base: InstalledModel) -> list[str]:
    """Without one that is the name of the base's licence: a model pushed from elsewhere brings no more than that."""
    return [text for text in licenses if text.strip() != base.license]


def _capabilities(base: tuple[str, ...], source: str | None) -> tuple[str, ...]:
    """A template adds what it has places for. None takes away: tools that have no place in it are told in words."""
    if not source:
        return base
    template = read_template(source)
    format = find_format(template, ())
    shown = {"tools": format.tools_in_template, "thinking": format.reasoning is not None}
    shown["insert"] = isinstance(template, GoTemplate) and template.inserts
    return (*base, *[name for name, is_shown in shown.items() if is_shown and name not in base])


def digest_of(model: InstalledModel) -> str:
    """sha256 of the weights' digest and of all that is put on top, as JSON with sorted keys."""
    on_top = {"weights": model.weights, **_on_top(model)}
    return hashlib.sha256(json.dumps(on_top, sort_keys=True).encode()).hexdigest()


def _on_top(model: InstalledModel) -> dict[str, object]:
    """What is put on top of the weights, whether a card, a Modelfile or another server said so."""
    return {
        "system": model.system,
        "template": model.template,
        "parameters": {**from_sampling(model.sampling), **model.parameters},
        "messages": [list(message) for message in model.messages],
        "licenses": list(model.license_texts) or ([model.license] if model.license else []),
    }
