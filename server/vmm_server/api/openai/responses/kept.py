"""`/v1/responses/{response_id}`: what was stored."""

from typing import Any

from litestar import Controller, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from vmm_server.api.openai.responses import examples
from vmm_server.api.openai.responses.items import Json
from vmm_server.api.openapi import described
from vmm_server.callers import caller
from vmm_server.errors import InvalidRequest, ResponseNotFound, UnsupportedParameter
from vmm_server.response_store import ResponseStore

MAX_PAGE = 100
DEFAULT_PAGE = 20
PAGE_QUERY = {
    "order": "`asc` or `desc`, which is the default",
    "limit": f"1 to {MAX_PAGE}; {DEFAULT_PAGE} unless said",
    "after": "the `id` of the item that the page follows",
}


class KeptResponsesController(Controller):
    """Stored responses."""

    path = "/v1/responses/{response_id:str}"

    @get(operation_id="getResponse", summary="A stored response", opt=described(*examples.RETRIEVE))
    async def retrieve(
        self,
        request: Request[Any, Any, Any],
        response_store: NamedDependency[ResponseStore],
        response_id: FromPath[str],
    ) -> dict[str, object]:
        """As it was answered. A stream of it cannot be had again."""
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise UnsupportedParameter("stream: a stored response is not streamed again", param="stream")
        return await _found(response_store, response_id)

    @delete(
        status_code=200,
        operation_id="deleteResponse",
        summary="Forget a stored response",
        opt=described(*examples.DELETE),
    )
    async def remove(
        self, response_store: NamedDependency[ResponseStore], response_id: FromPath[str]
    ) -> dict[str, object]:
        """With its items. A conversation cannot go on from it, nor from what came after it."""
        if not await response_store.delete(response_id, caller.get().tenant):
            raise ResponseNotFound(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @get(
        "/input_items",
        operation_id="listInputItems",
        summary="What a stored response answered",
        opt=described(*examples.LIST_INPUT_ITEMS, query=PAGE_QUERY),
    )
    async def list_input_items(
        self,
        request: Request[Any, Any, Any],
        response_store: NamedDependency[ResponseStore],
        response_id: FromPath[str],
    ) -> dict[str, object]:
        """Its items and those of the conversation before it; `order`, `limit` and `after` are read."""
        items = await response_store.given_items(response_id, caller.get().tenant)
        if items is None:
            raise ResponseNotFound(response_id)
        query = request.query_params
        return page(items, query.get("order", "desc"), query.get("limit", str(DEFAULT_PAGE)), query.get("after"))

    @post(
        "/cancel",
        status_code=200,
        operation_id="cancelResponse",
        summary="Stop a background response",
        opt=described(*examples.CANCEL),
    )
    async def cancel(
        self, response_store: NamedDependency[ResponseStore], response_id: FromPath[str]
    ) -> dict[str, object]:
        """There are none: a response is stored when it is whole."""
        await _found(response_store, response_id)
        raise InvalidRequest(
            "Cannot cancel a synchronous response: only those made with background can be, and there are none here",
            param="response_id",
        )


async def _found(store: ResponseStore, response_id: str) -> Json:
    response = await store.get(response_id, caller.get().tenant)
    if response is None:
        raise ResponseNotFound(response_id)
    return response


def page(items: list[Json], order: str, limit: str, after: str | None) -> Json:
    """A page of items that are given oldest first. Raises `InvalidRequest` naming the query's field."""
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order: {order[:100]!r} is none of asc, desc", param="order")
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 3 or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f"limit: must be 1 to {MAX_PAGE}", param="limit")
    ordered = items if order == "asc" else items[::-1]
    start = 0
    if after is not None:
        places = [index for index, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"after: there is no item {after[:100]!r} here", param="after")
        start = places[0] + 1
    shown = ordered[start : start + int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(ordered),
    }
