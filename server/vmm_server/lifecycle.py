"""The life of a server: what it does before its first request, beside them all, and after its last."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any

from vmm_server.api.errors import message_of
from vmm_server.api.requester import Requester
from vmm_server.audio.files import AudioLimits
from vmm_server.errors import ShuttingDown, VMMError
from vmm_server.parts import Parts
from vmm_server.settings import Changes

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(parts: Parts, requester: Requester, preloads: bool) -> AsyncIterator[None]:
    """Load the default model, measure and unload idle ones, compute batches; at the end let what runs finish, then
    unload everything."""
    background: list[asyncio.Task[None]] = [
        asyncio.create_task(parts.pool.run(), name="unloading idle models"),
        asyncio.create_task(parts.batches.run(requester.post), name="computing batches"),
    ]
    if preloads:
        background.append(asyncio.create_task(preload(parts), name="loading the default model"))
    if parts.settings.calibrate == "auto":
        background.append(asyncio.create_task(parts.calibrator.run(), name="measuring models"))
    for task in background:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        stopping_at = asyncio.get_running_loop().time()
        await stop_serving(parts)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await parts.image_reader.aclose()
        parts.machine.close()
        await parts.response_store.aclose()
        await parts.batch_database.aclose()
        left_s = parts.settings.shutdown_timeout_s - (asyncio.get_running_loop().time() - stopping_at)
        await parts.tracer.aclose(max(1.0, left_s))


async def stop_serving(parts: Parts) -> None:
    """Take no new requests, and wait for those that run; after `shutdown_timeout_s` each gets an error that says so.
    A second call does nothing."""
    if parts.door.is_closed:
        return
    timeout_s = parts.settings.shutdown_timeout_s
    parts.calibrator.stop()
    parts.door.close()
    drained = await asyncio.gather(
        *(part.drain(timeout_s) for part in (parts.inference, parts.one_shot, parts.batches)),
        parts.door.emptied(timeout_s),
    )
    if not all(drained):
        logger.warning("ending requests that still ran after %g s", timeout_s)
    await parts.creator.aclose()
    await parts.puller.aclose()
    await parts.pool.aclose()
    await parts.door.dismiss()


async def preload(parts: Parts, pauses: Iterable[float] | None = None) -> None:
    """Have the default model in memory; `/health/ready` waits for it. At once done when it is there already.

    A load that fails is tried again after each of the `pauses`, in seconds: no request will do it where nothing is
    sent to a server that is not ready.
    """
    name, readiness = parts.settings.default_model, parts.readiness
    if not name:
        return
    for pause_s in _pauses() if pauses is None else pauses:
        try:
            await parts.inference.load(name, None)
        except ShuttingDown:
            return
        except VMMError as error:
            if readiness.waiting_for != message_of(error):  # once is enough
                _log_error("loading the default model", error)
            readiness.waiting_for = message_of(error)
        except Exception as error:
            readiness.waiting_for = message_of(error)
            raise
        else:
            readiness.started()
            return
        await asyncio.sleep(pause_s)


def apply(parts: Parts, loading: set[asyncio.Task[Any]], changes: Changes) -> None:
    """Hand on what a reload has changed to those who do not read it from `live_settings`."""
    settings = parts.settings
    parts.admission.max_pending = settings.max_pending
    parts.fetcher.allowed = settings.image_urls
    parts.transcriptions.limits = AudioLimits(settings.max_audio_bytes, settings.max_audio_seconds)
    if "default_model" in changes.at_once and settings.default_model:
        task = asyncio.create_task(
            parts.inference.load(settings.default_model, None), name="loading the new default model"
        )
        loading.add(task)
        task.add_done_callback(_log_failure)
        task.add_done_callback(loading.discard)


def _pauses() -> Iterator[float]:
    yield from (1.0, 5.0, 15.0)
    yield from repeat(60.0)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log_error(task.get_name(), error)


def _log_error(work: str, error: BaseException) -> None:
    cause = error.__cause__ if isinstance(error, VMMError) else error
    logger.error("%s failed: %s", work, message_of(error), exc_info=cause)
