"""Models → Ollama's objects: the entries of `/api/tags` and `/api/ps`, and `/api/show`. Pure."""

from collections.abc import Mapping
from datetime import datetime

from vmm_server.api.ollama.render import timestamp
from vmm_server.models.facts import FileFacts
from vmm_server.models.leases import LoadedModel
from vmm_server.models.shown import details, model_info, shown
from vmm_server.models.store import InstalledModel


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
    """One entry of `/api/ps`: a model on one placement. Clients compute the share on the GPU as `size_vram / size`."""
    placement = loaded.ready.placement
    in_host_memory = placement.device.upper().startswith(("CPU", "NPU"))
    return {
        "name": loaded.model.name,
        "model": loaded.model.name,
        "size": loaded.size_bytes,
        "digest": loaded.model.digest,
        "details": details(loaded.model),
        "expires_at": timestamp(expires_at),
        "size_vram": 0 if in_host_memory else loaded.size_bytes,
        "context_length": loaded.ready.context_length,
        "placement": str(placement),
        "backend": placement.adapter,
        "device": placement.device,
        "variant": placement.variant,
    }


def show_fields(
    model: InstalledModel,
    facts: FileFacts,
    *,
    system: str | None = None,
    options: Mapping[str, object] | None = None,
    basename: str | None = None,
) -> dict[str, object]:
    """`/api/show`, with what its request says in place of the model's own. `basename` is told as the model's there."""
    fields = shown(model, facts, system=system, options=options) | {"modified_at": timestamp(model.modified_at)}
    return fields | {"model_info": model_info(model, facts) | {"general.basename": basename}} if basename else fields
