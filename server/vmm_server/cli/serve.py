"""`vmm serve`: listen, fetch the default model, load it, and leave in good order."""

import asyncio
import gc
import json
import linecache
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

import click

from vmm_server import __version__
from vmm_server.app import create_app
from vmm_server.cli.allocator import give_back_memory
from vmm_server.cli.connections import limit_unread
from vmm_server.cli.flags import setting_options
from vmm_server.cli.listener import HTTPServer, bind, configure_logging, http_server, listen, url_of
from vmm_server.cli.tls import renew, server_context
from vmm_server.errors import ModelNotFound, SettingsError
from vmm_server.lifecycle import stop_serving
from vmm_server.ollama_environment import without_effect
from vmm_server.parts import Parts
from vmm_server.reloading import Reloader
from vmm_server.settings import read_settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal came before the server was ready."""


@click.command()
@setting_options()
def serve(**flags: str | None) -> None:
    """Start the server.

    Listens, fetches the default model if it is not there, and loads it. SIGTERM or Ctrl-C lets the running
    requests finish; a second one does not. SIGHUP reads settings, cards and keys again. Every flag is also a
    variable and a key of vmm.toml in the home folder, such as max_queue = 64.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    for line in without_effect(os.environ):
        logger.warning(line)
    give_back_memory()
    tls = server_context(settings)
    with bind(settings.host, settings.port) as listener:
        limit_unread(listener, settings.client_timeout_s)
        app = create_app(settings, read=partial(read_settings, **flags), preloads=False)
        live = app.state.parts.live_settings
        app.state.parts.reloader.on_change(lambda _: configure_logging(live.now.log_level, live.now.log_format))
        if tls is not None:
            app.state.parts.reloader.on_change(lambda _: renew(tls, live.now))
        server = http_server(app, tls)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(app.state.parts, server, listener))


async def _serve(parts: Parts, server: HTTPServer, listener: socket.socket) -> None:
    """Answer from the first moment on: `/health` tells how far the rest is."""
    stop = _take_signals(parts.reloader)
    linecache.clearcache()  # pydantic read our modules for what they say of fields
    gc.collect()
    gc.freeze()  # to look through all that was made once would hold up every request for a tenth of a second
    listen(listener)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        if await _first(serving, server.ready.wait()):
            model = await _unless_stopped(stop, _prepare(parts))
            _announce(url_of(listener, "https" if server.config.is_ssl else "http"), model, parts)
            await _first(serving, stop.wait())
    except Stopped:
        pass
    finally:
        if not serving.done():
            timeout_s = parts.settings.shutdown_timeout_s
            logger.info("stopping: no new requests, up to %g s for the running ones", timeout_s)
            await stop_serving(parts)
        server.should_exit = True
        await serving


async def _prepare(parts: Parts) -> str | None:
    """Have the default model on disk, in memory and warm. Returns its full name."""
    name, readiness = parts.settings.default_model, parts.readiness
    if not name:
        return None
    try:
        model = parts.registry.resolve(name)
    except ModelNotFound:
        readiness.waiting_for = f"fetching {name}"
        with parts.registry.arriving(name):
            # its progress bar is 2 MB of memory, of which later starts have no need
            await import_module("vmm_server.cli.models").pull_model(parts.puller, name)
        model = parts.registry.resolve(name)
    readiness.waiting_for = f"loading {name}"
    await parts.inference.load(model.name, None)
    readiness.started()
    return model.name


def _announce(url: str, model: str | None, parts: Parts) -> None:
    click.echo(f"VMM {__version__} listens on {url}, for OpenAI clients on {url}/v1")
    for loaded in parts.pool.loaded():
        click.echo(f"{loaded.model.name} runs on {loaded.ready.placement} (backend/device)")
    if model:
        question, route = {"prompt": "Why is the sky blue?"}, "/api/generate"
        if not parts.registry.resolve(model).generates:
            question, route = {"input": "Why is the sky blue?"}, "/v1/embeddings"
        key = ' -H "Authorization: Bearer $VMM_API_KEY"' if parts.keys.is_required else ""
        click.echo(f"try:  curl {url}{route}{key} -d '{json.dumps({'model': model} | question)}'")


def _take_signals(reloader: Reloader) -> asyncio.Event:
    """An event that SIGINT or SIGTERM sets; the second one ends the process at once. SIGHUP reads settings again."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    seen: list[int] = []
    reloads: set[asyncio.Task[None]] = set()

    def on_stop(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        loop.call_soon_threadsafe(stop.set)

    def begin_reload() -> None:
        task = asyncio.create_task(_reload(reloader))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_stop)
    if sys.platform != "win32":
        is_shielded = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
        ends_with_terminal = _has_terminal() and not is_shielded

        def on_hang_up(number: int, frame: FrameType | None) -> None:
            if ends_with_terminal and not _has_terminal():
                on_stop(number, frame)  # the window was closed: nobody asked for a reload
            else:
                loop.call_soon_threadsafe(begin_reload)

        signal.signal(signal.SIGHUP, on_hang_up)
    return stop


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _reload(reloader: Reloader) -> None:
    """The log tells what changed, or what is wrong."""
    try:
        await reloader.reload()
    except SettingsError as error:
        hint = f" ({error.hint})" if error.hint else ""
        logger.error("nothing was read again, all stays as it was: %s%s", error.message, hint)


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
