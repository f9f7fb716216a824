"""`GET /v1/models` and `GET /v1/models/{id}`."""

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from vmm_server.api.openai import examples
from vmm_server.api.openapi import described
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel


class ModelsController(Controller):
    """Installed models, in OpenAI's form."""

    path = "/v1/models"

    @get(
        operation_id="listModels",
        summary="List installed models",
        sync_to_thread=True,
        opt=described(*examples.LIST_MODELS),
    )
    def list_models(self, registry: NamedDependency[Registry]) -> dict[str, object]:
        """Newest first."""
        return {"object": "list", "data": [model_fields(model, model.name) for model in registry.listed()]}

    @get(
        "/{model_id:path}",
        operation_id="retrieveModel",
        summary="One installed model",
        sync_to_thread=True,
        opt=described(*examples.RETRIEVE_MODEL),
    )
    def retrieve(self, registry: NamedDependency[Registry], model_id: FromPath[str]) -> dict[str, object]:
        """The id may hold `/` and `:`."""
        name = model_id.lstrip("/")
        return model_fields(registry.resolve(name), name)


def model_fields(model: InstalledModel, name: str) -> dict[str, object]:
    """One model under the name it was asked for; agents read the two context fields, which models that read no text
    have not."""
    owner, slash, _ = model.name.rpartition("/")
    limits = {"max_model_len": model.context_length, "context_length": model.context_length}
    return {
        "id": name,
        "object": "model",
        "created": int(model.modified_at.timestamp()),
        "owned_by": owner if slash else "library",
        **(limits if model.context_length else {}),
    }
