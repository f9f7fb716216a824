"""What the WebSockets of several routes have in common."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

from vmm_server.api.errors import openai_body, report, status_of
from vmm_server.errors import ShuttingDown

SERVICE_RESTART = 1012
PRIVATE_CODES = 4000
"""RFC 6455, 7.4.2: from here on codes are an application's own. Ours have the HTTP status behind them."""

Socket = WebSocket[Any, Any, Any]


async def send_json(socket: Socket, message: Mapping[str, object]) -> None:
    """One message of text."""
    await socket.send_text(msgspec.json.encode(message).decode())


@asynccontextmanager
async def told_of_errors(socket: Socket, marked: Mapping[str, object]) -> AsyncIterator[None]:
    """An error ends the connection: by a message that has `marked` beside the error, and by a code that tells its
    status. That the client has left is none."""
    try:
        yield
    except (WebSocketDisconnect, OSError):
        return
    except Exception as error:  # noqa: BLE001 - told to the client, and to the log where it is ours
        report(error)
        with suppress(WebSocketDisconnect, OSError):
            await send_json(socket, {**marked, **openai_body(error)})
            await socket.close(SERVICE_RESTART if isinstance(error, ShuttingDown) else PRIVATE_CODES + status_of(error))


async def until_one_ends(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it at a time; the first that ends, ends the others. Raises what that one raises."""
    tasks = {asyncio.create_task(each) for each in work}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
