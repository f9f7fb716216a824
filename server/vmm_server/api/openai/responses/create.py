"""`POST /v1/responses`, and counting what it would read."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body, report
from vmm_server.api.openai.responses import examples
from vmm_server.api.openai.responses.conversation import conversation
from vmm_server.api.openai.responses.convert import (
    count_request,
    refuse_unsupported,
    response_request,
    wants_summary,
)
from vmm_server.api.openai.responses.items import Item
from vmm_server.api.openai.responses.keeping import check_store, earlier_items, given_items, keep, new_id
from vmm_server.api.openai.responses.logprobs import TextLogprobs
from vmm_server.api.openai.responses.output import Output
from vmm_server.api.openai.responses.render import Events, Identity, Response, configuration
from vmm_server.api.openai.responses.tools import hopeful_tools, with_loose_tools
from vmm_server.api.openai.responses.wire import CountRequest, ResponseRequest
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.completion import Completion
from vmm_server.errors import InvalidRequest
from vmm_server.inference import Inference
from vmm_server.requests import GenerateRequest
from vmm_server.response_store import ResponseStore
from vmm_server.settings import Settings


class ResponsesController(Controller):
    """New responses."""

    path = "/v1/responses"

    @post(
        status_code=200,
        operation_id="createResponse",
        summary="Answer a conversation of items",
        opt=described(*examples.CREATE, body=ResponseRequest, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        response_store: NamedDependency[ResponseStore],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, ResponseRequest)
        refuse_unsupported(wire)
        check_store(wire, response_store)
        earlier = await earlier_items(wire, response_store)
        given = await given_items(wire, response_store)
        asked = placed(
            response_request(wire, conversation([*earlier, *given], wire.instructions)), request.headers, wire
        )
        job = _Job(wire, asked, given, inference, response_store)
        if not wire.stream:
            return json_response(job.answer)
        return sse_response(job.stream, openai_body, drain_s=settings.shutdown_timeout_s)

    @post(
        "/input_tokens",
        status_code=200,
        operation_id="countInputTokens",
        summary="Count the tokens of a prompt",
        opt=described(*examples.COUNT, body=CountRequest),
    )
    async def count(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        response_store: NamedDependency[ResponseStore],
    ) -> dict[str, object]:
        """As a response to the same input would count them; nothing is generated."""
        wire = await read_body(request, CountRequest)
        refuse_unsupported(wire)
        check_store(wire, response_store)
        items = [*await earlier_items(wire, response_store), *await given_items(wire, response_store)]
        asked = placed(count_request(wire, conversation(items, wire.instructions)), request.headers, wire)
        prompted = await inference.count_tokens(asked)
        return {"object": "response.input_tokens", "input_tokens": len(prompted.tokens)}


@dataclass(frozen=True, slots=True)
class _Job:
    """One response to make."""

    wire: ResponseRequest
    asked: GenerateRequest
    given: Sequence[Item]
    inference: Inference
    store: ResponseStore

    async def answer(self) -> WholeAnswer:
        """All of it."""
        started = await self._start()
        async with started.completion as completion:
            response = self._response(started)
            async for delta in completion:
                response.add(delta)
            body = response.whole(int(time.time()))
            body = await keep(body, self.given, response.output.items, self.store)
            usages = [completion.usage] if completion.usage is not None else []
            return WholeAnswer(body, provenance(completion) | cache_header(usages))

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[ChunkStream]:
        """As events."""
        started = await self._start()
        async with started.completion, aclosing(self._events(started)) as events:
            yield ChunkStream(events, lambda: provenance(started.completion))

    async def _start(self) -> "_Started":
        """Start it, less strict than was asked where the request leaves that open.

        A tool that left `strict` out and whose schema cannot be enforced is not strict: two tries find the one such
        tool that there may be, and from then on none of their kind is.
        """
        hopeful, asked, loose = hopeful_tools(self.wire), self.asked, set[str]()
        while True:
            try:
                return _Started(await self.inference.generate(asked), loose)
            except InvalidRequest as error:
                name = hopeful.get(error.param or "")
                if name is None or name in loose:
                    raise
                loose = set(hopeful.values()) if loose else {name}
                asked = with_loose_tools(asked, loose)

    async def _events(self, started: "_Started") -> AsyncGenerator[bytes]:
        """A failure before the first delta has its own status; a later one is the last event."""
        response = self._response(started)
        events = Events(response)
        has_begun = False
        try:
            async for delta in started.completion:
                if not has_begun:
                    has_begun = True
                    for event in events.start():
                        yield event
                for event in events.add(delta):
                    yield event
            body = response.whole(int(time.time()))
            body = await keep(body, self.given, response.output.items, self.store)
        except Exception as error:
            if not has_begun:
                raise
            report(error)
            body = response.failed(error)
        yield events.end(body)

    def _response(self, started: "_Started") -> Response:
        wire, completion = self.wire, started.completion
        store = wire.store is not False and self.store.is_enabled
        wants_logprobs = self.asked.sampling.logprobs is not None
        logprobs = TextLogprobs(completion.token_bytes) if wants_logprobs else None
        return Response(
            Identity(new_id("resp"), int(completion.created.timestamp())),
            configuration(wire, completion.model.sampling, store=store, loose_tools=started.loose_tools),
            Output(new_id, summarised=wants_summary(wire.reasoning), logprobs=logprobs),
        )


@dataclass(frozen=True, slots=True)
class _Started:
    """A generation, and what it was started without."""

    completion: Completion
    loose_tools: Collection[str]
    """Names of tools that are not strict after all."""
