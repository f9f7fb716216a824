"""`/api/vmm/releases`: what plain model names mean, and for which share of their requests."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from litestar import Controller, Request, delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath
from pydantic import Field

from vmm_server.api.body import Wire, read_body
from vmm_server.api.openapi import Example, described
from vmm_server.models.names import ModelName
from vmm_server.models.registry import Registry, not_released
from vmm_server.models.releases import ALL, Release

Json = dict[str, object]

MAX_SHARES = ALL
_CANARY = {"name": "smollm2:135m", "shares": {"smollm2:135m@v1": 90, "smollm2:135m@v2": 10}}
_PATH = {"name": "smollm2"}
LIST = Example("Releases", {"releases": [_CANARY]}, is_sent=False)
ONE = Example("A release", _CANARY, path=_PATH, is_sent=False)
PUT = Example(
    "A canary",
    _CANARY,
    body={"shares": {"v1": 90, "v2": 10}},
    path=_PATH,
    is_sent=False,
)
END = Example("It means the installed model again", {"status": "success"}, path=_PATH, is_sent=False)


class ReleaseBody(Wire):
    """Body of `PUT /api/vmm/releases/{name}`."""

    shares: Annotated[Mapping[str, int], Field(min_length=1, max_length=MAX_SHARES)]
    """Versions of the model, or names of any models, and how many of a hundred requests each gets."""


class ReleasesController(Controller):
    """A change holds from the next request on; those under way end where they began."""

    path = "/api/vmm/releases"

    @get(operation_id="listReleases", summary="What plain names mean", opt=described(LIST))
    async def list_releases(self, registry: NamedDependency[Registry]) -> Json:
        """Names that are not here mean the model that is installed under them."""
        return {"releases": [_shown(release) for release in await asyncio.to_thread(registry.releases)]}

    @get("/{name:path}", operation_id="getRelease", summary="What one name means", opt=described(ONE))
    async def one(self, registry: NamedDependency[Registry], name: FromPath[str]) -> Json:
        """The name may be an alias of the one that is released."""
        asked = name.lstrip("/")
        release = await asyncio.to_thread(registry.release_of, ModelName.parse(asked))
        if release is None:
            raise not_released(asked)
        return _shown(release)

    @put(
        "/{name:path}",
        operation_id="putRelease",
        summary="Have a name mean other models",
        opt=described(PUT, body=ReleaseBody),
    )
    async def put(
        self, request: Request[Any, Any, Any], registry: NamedDependency[Registry], name: FromPath[str]
    ) -> Json:
        """All requests for the name, or some of a hundred; the models must be installed."""
        body = await read_body(request, ReleaseBody)
        return _shown(await asyncio.to_thread(registry.release, name.lstrip("/"), body.shares))

    @delete(
        "/{name:path}",
        status_code=200,
        operation_id="deleteRelease",
        summary="Have a name mean the installed model again",
        opt=described(END),
    )
    async def end(self, registry: NamedDependency[Registry], name: FromPath[str]) -> Json:
        """No model is removed."""
        await asyncio.to_thread(registry.clear_release, name.lstrip("/"))
        return {"status": "success"}


def _shown(release: Release) -> Json:
    return {"name": str(release.name), "shares": {str(model): share for model, share in release.shares}}
