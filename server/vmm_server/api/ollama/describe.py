"""Models → Ollama's objects: the entries of `/api/tags` and `/api/ps`, and `/api/show`. Pure."""

import re
from datetime import datetime

from vmm_server.api.ollama.render import timestamp
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
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
        "context_length": model.context_length,
    }
    return fields if model.embedding_length is None else fields | {"embedding_length": model.embedding_length}


def show_fields(model: InstalledModel, template: str) -> dict[str, object]:
    """`/api/show`. `model_info` is there even when nothing is known: clients index into it."""
    parameters = _parameters(model)
    return {
        "license": model.license or "",
        "modelfile": _modelfile(model, parameters),
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in parameters.items()),
        "template": template,
        "system": model.system or "",
        "details": details(model),
        "messages": [],
        "model_info": _model_info(model),
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(model.modified_at),
    }


def parameter_count(size: str) -> int | None:
    """`135M` → 135,000,000; `None` when the words hold no number."""
    found = _SIZE.search(size)
    return round(float(found.group(1)) * _SCALE[found.group(2).upper()]) if found else None


def _parameters(model: InstalledModel) -> dict[str, object]:
    """The recommended sampling, under Ollama's names."""
    recommended = model.sampling.model_dump(exclude_none=True)
    return {{"repetition_penalty": "repeat_penalty"}.get(name, name): value for name, value in recommended.items()}


def _modelfile(model: InstalledModel, parameters: dict[str, object]) -> str:
    lines = [f"# {model.title}", f"FROM {model.source}"]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    if model.system:
        lines.append(f'SYSTEM """{model.system}"""')
    return "\n".join(lines) + "\n"


def _model_info(model: InstalledModel) -> dict[str, object]:
    family = model.family
    fields: dict[str, object] = {
        "general.architecture": family,
        "general.basename": model.name.rpartition("/")[2].partition(":")[0],
        "general.parameter_count": parameter_count(model.parameter_size),
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": model.embedding_length,
    }
    return {name: value for name, value in fields.items() if value is not None}
