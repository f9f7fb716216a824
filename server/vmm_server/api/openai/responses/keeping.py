"""Between a request and the stored responses: the conversation before it, and the response after it."""

import secrets
from collections.abc import Sequence

from vmm_server.api.errors import report
from vmm_server.api.openai.responses.items import Item, Json, Reference, read_input
from vmm_server.api.openai.responses.wire import PromptFields, ResponseRequest
from vmm_server.callers import caller
from vmm_server.errors import InvalidRequest, StoreError, UnsupportedParameter
from vmm_server.response_store import ResponseStore

_OFF = "this server keeps no responses (response_store_size is 0)"


def new_id(kind: str) -> str:
    """Of an item or a response, such as `msg_…`."""
    return f"{kind}_{secrets.token_hex(24)}"


def check_store(wire: PromptFields, store: ResponseStore) -> None:
    """Raise `UnsupportedParameter` when what is asked of the store cannot be, because it is off."""
    if store.is_enabled:
        return
    if wire.previous_response_id is not None:
        hint = "send the whole conversation as input"
        raise UnsupportedParameter(f"previous_response_id: {_OFF}", param="previous_response_id", hint=hint)
    if isinstance(wire, ResponseRequest) and wire.store:
        raise UnsupportedParameter(f"store: {_OFF}", param="store", hint="leave it out, or send false")


async def earlier_items(wire: PromptFields, store: ResponseStore) -> list[Item]:
    """The conversation that the request goes on with. Raises `PreviousResponseNotFound`, `StoreError`."""
    if wire.previous_response_id is None:
        return []
    return [Item(body) for body in await store.conversation(wire.previous_response_id, caller.get().tenant)]


async def given_items(wire: PromptFields, store: ResponseStore) -> list[Item]:
    """The request's own items, references looked up. Raises `InvalidRequest`, `StoreError`."""
    read = read_input(wire.input, new_id)
    found = await store.output_items([one.id for one in read if isinstance(one, Reference)], caller.get().tenant)
    return [one if isinstance(one, Item) else _resolved(one, found) for one in read]


async def keep(body: Json, given: Sequence[Item], output: Sequence[Json], store: ResponseStore) -> Json:
    """Store a whole response that wants to be; its `store` says whether it is.

    The answer is there and is not lost over a full disk: that is for the log.
    """
    if not body["store"]:
        return body
    try:
        is_kept = await store.put(body, caller.get().tenant, given=[item.body for item in given], output=output)
    except StoreError as error:
        report(error)
        is_kept = False
    return body | {"store": is_kept}


def _resolved(reference: Reference, found: dict[str, Json]) -> Item:
    if reference.id not in found:
        raise InvalidRequest(f"Item with id '{reference.id[:100]}' not found.", param=f"{reference.where}.id")
    return Item(found[reference.id], reference.where)
