"""What is there: `/api/version`, `/api/tags`, `/api/ps`, `/api/show`; and `/`, which says that somebody is."""

import asyncio
from typing import Any

from litestar import Controller, MediaType, Request, get, post
from litestar.di import NamedDependency

import vmm_server
from vmm_server.api.body import read_body
from vmm_server.api.ollama import model_examples as examples
from vmm_server.api.ollama.describe import loaded_fields, show_fields, tag_fields
from vmm_server.api.ollama.wire_models import ShowBody, required
from vmm_server.api.openapi import described
from vmm_server.models.facts import FactsReader
from vmm_server.models.pool import ModelPool
from vmm_server.models.registry import Registry
from vmm_server.settings import Settings

COPILOT = "GitHubCopilotChat/"
"""It shows `general.basename` to its users, who know the model by the name that it asked for."""


class ModelsController(Controller):
    """Installed and loaded models."""

    path = "/"

    @get(
        "/",
        operation_id="root",
        summary="Is somebody there",
        media_type=MediaType.TEXT,
        sync_to_thread=False,
        opt=described(*examples.ROOT),
    )
    def root(self) -> str:
        """Clients look for these words."""
        return "Ollama is running"

    @get(
        "/api/version",
        operation_id="version",
        summary="Versions",
        sync_to_thread=False,
        opt=described(*examples.VERSION),
    )
    def version(self, settings: NamedDependency[Settings]) -> dict[str, str]:
        """The Ollama version clients switch features on by, and VMM's own."""
        return {"version": settings.ollama_version, "vmm_version": vmm_server.__version__}

    @get(
        "/api/tags",
        operation_id="list",
        summary="List installed models",
        sync_to_thread=True,
        opt=described(*examples.TAGS),
    )
    def tags_list(self, registry: NamedDependency[Registry]) -> dict[str, object]:
        """Installed models, newest first."""
        return {"models": [tag_fields(model) for model in registry.listed()]}

    @get(
        "/api/ps",
        operation_id="ps",
        summary="List models in memory",
        sync_to_thread=False,
        opt=described(*examples.PS),
    )
    def loaded(self, pool: NamedDependency[ModelPool]) -> dict[str, object]:
        """Models in memory, the one that stays longest first."""
        now = pool.now()
        return {"models": [loaded_fields(loaded, loaded.expires_at(now)) for loaded in pool.loaded()]}

    @post(
        "/api/show",
        status_code=200,
        operation_id="show",
        summary="What a model is",
        opt=described(*examples.SHOW, body=ShowBody),
    )
    async def show(
        self,
        request: Request[Any, Any, Any],
        registry: NamedDependency[Registry],
        facts: NamedDependency[FactsReader],
    ) -> dict[str, object]:
        """What it is made of, how it is set up, what its files say."""
        body = await read_body(request, ShowBody)
        asked = required(body)
        model = registry.resolve(asked)
        read = await asyncio.to_thread(facts.read, model, verbose=bool(body.verbose))
        copilot = request.headers.get("user-agent", "").startswith(COPILOT)
        return show_fields(model, read, system=body.system, options=body.options, basename=asked if copilot else None)
