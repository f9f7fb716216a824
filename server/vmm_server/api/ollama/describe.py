"""Models → Ollama's objects: the entries of `/api/tags` and `/api/ps`, and `/api/show`. Pure."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime

from vmm_server.api.ollama.render import timestamp
from vmm_server.models.facts import FileFacts
from vmm_server.models.modelfile import HEADER, licenses_of, modelfile_of, parameters_text
from vmm_server.models.pool import LoadedModel
from vmm_server.models.store import InstalledModel

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT])", re.IGNORECASE)
_SCALE = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def tag_fields(model: InstalledModel) -> dict[str, object]:
    """One entry of `/api/tags`."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details(model),
        "capabilities": list(model.capabilities),
    }


def loaded_fields(loaded: LoadedModel, expires_at: datetime) -> dict[str, object]:
    """One entry of `/api/ps`. Clients compute the share on the GPU as `size_vram / size`."""
    placement = loaded.ready.placement
    return {
        "name": loaded.model.name,
        "model": loaded.model.name,
        "size": loaded.size_bytes,
        "digest": loaded.model.digest,
        "details": details(loaded.model),
        "expires_at": timestamp(expires_at),
        "size_vram": 0 if placement.device.upper().startswith("CPU") else loaded.size_bytes,
        "context_length": loaded.ready.context_length,
        "placement": str(placement),
    }


def details(model: InstalledModel) -> dict[str, object]:
    """The `details` object that three routes share."""
    fields: dict[str, object] = {
        "parent_model": model.parent or "",
        "format": model.format,
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
        "context_length": model.context_length,
    }
    return fields if model.embedding_length is None else fields | {"embedding_length": model.embedding_length}


def show_fields(
    model: InstalledModel,
    facts: FileFacts,
    *,
    system: str | None = None,
    options: Mapping[str, object] | None = None,
    basename: str | None = None,
) -> dict[str, object]:
    """`/api/show`. As in Ollama, `system` stands in for the model's own, and `options` go into the Modelfile alone.

    `model_info` is there even when little is known: clients index into it. `basename` is told as the model's there.
    """
    shown = replace(model, system=system) if system else model
    modelfile = modelfile_of(shown, facts.template or None)
    if options:
        modelfile = replace(modelfile, parameters={**modelfile.parameters, **options})
    fields: dict[str, object] = {
        "license": "\n".join(licenses_of(model)),
        "modelfile": f"{HEADER}{modelfile}",
        "parameters": parameters_text(model),
        "template": facts.template if model.template is None else model.template,
        "system": shown.system or "",
        "details": details(model),
        "messages": [{"role": role, "content": content} for role, content in model.messages],
        "model_info": _model_info(model, facts) | ({"general.basename": basename} if basename else {}),
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(model.modified_at),
    }
    return fields | {"tensors": [asdict(tensor) for tensor in facts.tensors]} if facts.tensors else fields


def parameter_count(size: str) -> int | None:
    """`135M` → 135,000,000; `None` when the words hold no number."""
    found = _SIZE.search(size)
    return round(float(found.group(1)) * _SCALE[found.group(2).upper()]) if found else None


def _model_info(model: InstalledModel, facts: FileFacts) -> dict[str, object]:
    """What the file says, and under the same names what else is known."""
    family = model.family
    known: dict[str, object] = {
        "general.architecture": family,
        "general.basename": model.name.rpartition("/")[2].partition(":")[0],
        "general.parameter_count": parameter_count(model.parameter_size),
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": model.embedding_length,
    }
    return {name: value for name, value in known.items() if value is not None} | dict(facts.metadata)
