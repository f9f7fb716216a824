"""`vmm serve`: fetch the default model, load it, listen, and leave in good order."""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

import click

from vmm_server import __version__
from vmm_server.app import Parts, create_app, drain
from vmm_server.cli.allocator import give_back_large_blocks
from vmm_server.cli.flags import setting_options
from vmm_server.cli.listener import HTTPServer, bind, configure_logging, http_server, listen, url_of
from vmm_server.cli.models import pull_model
from vmm_server.errors import ModelNotFound
from vmm_server.ollama_environment import without_effect
from vmm_server.settings import Settings, read_settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal came before the server listened."""


@click.command()
@setting_options()
def serve(**flags: str | None) -> None:
    """Start the server.

    Fetches the default model if it is not there, loads it, and listens. SIGTERM or Ctrl-C lets the running
    generations finish; a second one does not. Every flag is also a variable and a key of vmm.toml in the home
    folder, such as max_queue = 64.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    for line in without_effect(os.environ):
        logger.warning(line)
    give_back_large_blocks()
    with bind(settings.host, settings.port) as listener:
        app = create_app(settings)
        server = http_server(app)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(app.state.parts, server, listener, settings))


async def _serve(parts: Parts, server: HTTPServer, listener: socket.socket, settings: Settings) -> None:
    stop = _stop_signals()
    try:
        model = await _unless_stopped(stop, _prepare(parts, settings))
        listen(listener)
    except BaseException as error:
        await parts.pool.aclose()
        if isinstance(error, Stopped):
            return
        raise
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    if await _first(serving, server.ready.wait()):
        _announce(url_of(listener), model, parts)
        await _first(serving, stop.wait())
        logger.info("stopping: no new requests, up to %g s for the running ones", settings.shutdown_timeout_s)
        await drain(parts, settings.shutdown_timeout_s)
    server.should_exit = True
    await serving


async def _prepare(parts: Parts, settings: Settings) -> str | None:
    """Have the default model on disk, in memory and warm. Returns its full name."""
    if not settings.default_model:
        return None
    try:
        model = parts.registry.resolve(settings.default_model)
    except ModelNotFound:
        await pull_model(parts.puller, settings.default_model)
        model = parts.registry.resolve(settings.default_model)
    await parts.inference.load(model.name, None)
    return model.name


def _announce(url: str, model: str | None, parts: Parts) -> None:
    click.echo(f"VMM {__version__} listens on {url}, for OpenAI clients on {url}/v1")
    for loaded in parts.pool.loaded():
        click.echo(f"{loaded.model.name} runs on {loaded.ready.placement} (backend/device)")
    if model:
        question, route = {"prompt": "Why is the sky blue?"}, "/api/generate"
        if not parts.registry.resolve(model).generates:
            question, route = {"input": "Why is the sky blue?"}, "/v1/embeddings"
        click.echo(f"try:  curl {url}{route} -d '{json.dumps({'model': model} | question)}'")


def _stop_signals() -> asyncio.Event:
    """An event that SIGINT or SIGTERM sets. The second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`. Raises `Stopped`, with the work cancelled, when `stop` is set first."""
    task = asyncio.create_task(work)
    if await _first(task, stop.wait()):
        task.cancel()
        await asyncio.wait({task})
        raise Stopped
    return task.result()


async def _first(task: asyncio.Task[Any], event: Coroutine[Any, Any, Any]) -> bool:
    """Wait for either; True when the task is not done yet."""
    waiting = asyncio.create_task(event)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return not task.done()
