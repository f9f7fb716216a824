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
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.errors import InvalidRequest
from vmm_server.inference import Completion, Inference
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
        opt=described(*examples.CREATE, body=ResponseRequest),
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
        asked = response_request(wire, conversation([*earlier, *given], wire.instructions))
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
        prompted = await inference.count_tokens(count_request(wire, conversation(items, wire.instructions)))
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
        completion, loose_tools = await self._generate()
        async with completion:
            response = self._response(completion, loose_tools)
            async for delta in completion:
                response.add(delta)
            body = response.whole(int(time.time()))
            body = await keep(body, self.given, response.output.items, self.store)
            usages = [completion.usage] if completion.usage is not None else []
            return WholeAnswer(body, provenance(completion) | cache_header(usages))

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[ChunkStream]:
        """As events."""
        completion, loose_tools = await self._generate()
        async with completion, aclosing(self._events(completion, loose_tools)) as events:
            yield ChunkStream(events, provenance(completion))

    async def _generate(self) -> tuple[Completion, Collection[str]]:
        """Start it. Returns the names of tools that left `strict` out and whose schemas cannot be enforced, too.

        Two tries find the one such tool that there may be; from the second on none of their kind is strict.
        """
        hopeful, asked, loose = hopeful_tools(self.wire), self.asked, set[str]()
        while True:
            try:
                return await self.inference.generate(asked), loose
            except InvalidRequest as error:
                name = hopeful.get(error.param or "")
                if name is None or name in loose:
                    raise
                loose = set(hopeful.values()) if loose else {name}
                asked = with_loose_tools(self.asked, loose)

    async def _events(self, completion: Completion, loose_tools: Collection[str]) -> AsyncGenerator[bytes]:
        """A failure before the first delta has its own status; a later one is the last event."""
        response = self._response(completion, loose_tools)
        events = Events(response)
        started = False
        try:
            async for delta in completion:
                if not started:
                    started = True
                    for event in events.start():
                        yield event
                for event in events.add(delta):
                    yield event
            body = response.whole(int(time.time()))
            body = await keep(body, self.given, response.output.items, self.store)
        except Exception as error:
            if not started:
                raise
            report(error)
            body = response.failed(error)
        yield events.end(body)

    def _response(self, completion: Completion, loose_tools: Collection[str]) -> Response:
        wire, wants_logprobs = self.wire, self.asked.sampling.logprobs is not None
        store = wire.store is not False and self.store.is_enabled
        logprobs = TextLogprobs(completion.token_bytes) if wants_logprobs else None
        return Response(
            Identity(new_id("resp"), int(completion.created.timestamp())),
            configuration(wire, completion.model.sampling, store=store, loose_tools=loose_tools),
            Output(new_id, summarised=wants_summary(wire.reasoning), logprobs=logprobs),
        )
