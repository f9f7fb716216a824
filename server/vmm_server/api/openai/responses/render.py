"""A response, whole and as a stream of events. Pure."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import FinishReason
from vmm_server.api.errors import message_of
from vmm_server.api.framing import named_event
from vmm_server.api.gathered import completed
from vmm_server.api.openai.responses.items import Json
from vmm_server.api.openai.responses.output import Output
from vmm_server.api.openai.responses.tools import is_strict
from vmm_server.api.openai.responses.wire import FunctionTool, ResponseRequest, TextFormat
from vmm_server.engine.stream import Delta, Usage


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a response this one."""

    id: str
    created_at: int
    """Unix seconds."""


class Response:
    """One response in the making: deltas go in, its object can be had at any time."""

    def __init__(self, identity: Identity, configuration: Mapping[str, object], output: Output) -> None:
        self.id = identity.id
        self.output = output
        self._created_at = identity.created_at
        self._configuration = configuration
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None

    def add(self, delta: Delta) -> list[tuple[str, Json]]:
        """The events of a delta. Raises `GenerationFailed` when it ends an answer that was broken off."""
        events = list(self.output.add(delta))
        if delta.finish_reason is not None:
            self._reason, self._usage = delta.finish_reason, delta.usage
        return events

    def in_progress(self) -> Json:
        """As it is before anything was said."""
        return self._body("in_progress", [])

    def whole(self, completed_at: int) -> Json:
        """As it is at its end: completed, or incomplete when it was cut off.

        Raises `GenerationFailed` when there was none.
        """
        if completed(self._reason) is FinishReason.LENGTH:
            details = {"reason": "max_output_tokens"}
            return self._body("incomplete", self.output.items, incomplete_details=details, usage=self._usage)
        return self._body("completed", self.output.items, completed_at=completed_at, usage=self._usage)

    def failed(self, error: Exception) -> Json:
        """As an error left it."""
        body = {"code": "server_error", "message": message_of(error)}
        return self._body("failed", self.output.items, error=body) | {"store": False}

    def _body(
        self,
        status: str,
        output: list[Json],
        *,
        completed_at: int | None = None,
        error: Mapping[str, object] | None = None,
        incomplete_details: Mapping[str, object] | None = None,
        usage: Usage | None = None,
    ) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": completed_at,
            "status": status,
            "error": error,
            "incomplete_details": incomplete_details,
            "output": output,
            **self._configuration,
            "usage": usage and _usage_fields(usage),
        }


class Events:
    """Server-sent events of one response, numbered from 0."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._count = 0

    def start(self) -> Iterator[bytes]:
        """Before the first delta."""
        for name in ("created", "in_progress"):
            yield self._event(name, {"response": self._response.in_progress()})

    def add(self, delta: Delta) -> Iterator[bytes]:
        """Of one delta."""
        for name, fields in self._response.add(delta):
            yield self._event(name, fields)

    def end(self, body: Json) -> bytes:
        """The last one, which is called as the response's status."""
        return self._event(str(body["status"]), {"response": body})

    def _event(self, name: str, fields: Json) -> bytes:
        number, self._count = self._count, self._count + 1
        return named_event({"type": f"response.{name}", "sequence_number": number, **fields})


def configuration(
    wire: ResponseRequest, defaults: SamplingDefaults, *, store: bool, loose_tools: Collection[str] = ()
) -> Json:
    """What the request asked for and what it left to the server, as the response repeats it.

    `loose_tools` names those that are not strict although they did not say so.
    """
    reasoning, text = wire.reasoning, wire.text
    return {
        "background": False,
        "instructions": wire.instructions,
        "max_output_tokens": wire.max_output_tokens,
        "max_tool_calls": wire.max_tool_calls,
        "metadata": wire.metadata or {},
        "model": wire.model,
        "parallel_tool_calls": wire.parallel_tool_calls is not False,
        "previous_response_id": wire.previous_response_id,
        "prompt_cache_key": wire.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        "safety_identifier": wire.safety_identifier,
        "service_tier": "default",
        "store": store,
        "temperature": _first(wire.temperature, defaults.temperature),
        "text": {"format": _format(text.format if text else None), "verbosity": "medium"},
        "tool_choice": wire.tool_choice if wire.tool_choice is not None else "auto",
        "tools": [_tool(tool, is_strict(tool) and tool.name not in loose_tools) for tool in wire.tools or ()],
        "top_logprobs": wire.top_logprobs or 0,
        "top_p": _first(wire.top_p, defaults.top_p),
        "truncation": wire.truncation or "disabled",
        "user": wire.user,
    }


def _first(asked: float | None, recommended: float | None) -> float:
    return next((value for value in (asked, recommended) if value is not None), 1.0)


def _tool(wire: FunctionTool, strict: bool) -> Json:
    return {
        "type": "function",
        "name": wire.name,
        "description": wire.description,
        "parameters": wire.parameters,
        "strict": strict,
    }


def _format(wire: TextFormat | None) -> Json:
    if wire is None or wire.type != "json_schema":
        return {"type": wire.type if wire else "text"}
    return {
        "type": "json_schema",
        "name": wire.name,
        "description": wire.description,
        "schema": wire.schema_,
        "strict": wire.strict is not False,
    }


def _usage_fields(usage: Usage) -> Json:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.num_generated_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
    }
