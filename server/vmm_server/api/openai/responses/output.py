"""Deltas → output items, and the events that tell of them. Pure.

One item after the other: each is added, grows by deltas and is done before the next one begins. A whole answer is made
the same way, and only its events are left out; so both say the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from vmm_adapters.types import FinishReason
from vmm_server.api.gathered import completed
from vmm_server.api.openai.responses.items import Json, NewId
from vmm_server.api.openai.responses.logprobs import TextLogprobs
from vmm_server.engine.stream import Delta, ToolCallDelta

Event = tuple[str, Json]
"""The type after `response.`, and the fields that depend on it."""


class Output:
    """The items of one answer."""

    def __init__(self, new_id: NewId, *, summarised: bool, logprobs: TextLogprobs | None) -> None:
        """`summarised`: thinking goes by the name of a summary."""
        self._new_id = new_id
        self._summarised = summarised
        self._logprobs = logprobs
        self._done: list[Json] = []
        self._open: _OpenItem | None = None
        self._num_calls = 0

    @property
    def items(self) -> list[Json]:
        """All items so far; one that is not done is incomplete."""
        return [*self._done, self._open.body("incomplete")] if self._open is not None else self._done

    def add(self, delta: Delta) -> Iterator[Event]:
        """What a delta adds, and the end of the last item if it has a `finish_reason`.

        Raises `GenerationFailed` for any end but a whole answer and one cut off.
        """
        if self._logprobs is not None:
            self._logprobs.push(delta.logprobs)
        if delta.reasoning:
            yield from self._add_reasoning(delta.reasoning)
        if delta.text:
            yield from self._add_text(delta.text)
        for call in delta.tool_calls:
            yield from self._add_call(call)
        if delta.finish_reason is not None:
            yield from self._finish(completed(delta.finish_reason))

    def _add_reasoning(self, text: str) -> Iterator[Event]:
        if self._logprobs is not None:
            self._logprobs.take(text)
        if not isinstance(self._open, _Reasoning):
            yield from self._begin(_Reasoning(self._new_id("rs"), self._next_index, self._summarised))
        yield from self._grow(text)

    def _add_text(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, _Message):
            yield from self._begin(_Message(self._new_id("msg"), self._next_index))
        yield from self._grow(text, self._logprobs.take(text) if self._logprobs is not None else ())

    def _add_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.index == self._num_calls:
            self._num_calls += 1
            call_id = call.id or self._new_id("call")
            yield from self._begin(_Call(self._new_id("fc"), self._next_index, call_id, call.name or ""))
        if call.arguments:
            yield from self._grow(call.arguments)

    def _finish(self, reason: FinishReason) -> Iterator[Event]:
        """An answer that ended by itself has a message or a call, be it an empty message."""
        said = {item["type"] for item in self.items}
        if not said or (reason is not FinishReason.LENGTH and said == {"reasoning"}):
            yield from self._begin(_Message(self._new_id("msg"), self._next_index))
        yield from self._end("incomplete" if reason is FinishReason.LENGTH else "completed")

    @property
    def _next_index(self) -> int:
        return len(self._done) + (self._open is not None)

    def _begin(self, item: "_OpenItem") -> Iterator[Event]:
        yield from self._end("completed")
        self._open = item
        yield "output_item.added", {"output_index": item.index, "item": item.empty()}
        yield from item.begin()

    def _grow(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Event]:
        if self._open is not None:
            yield self._open.grow(text, logprobs)

    def _end(self, status: str) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is not None:
            body = item.body(status)
            self._done.append(body)
            yield from item.end()
            yield "output_item.done", {"output_index": item.index, "item": body}


class _OpenItem(Protocol):
    """An item in the making."""

    index: int

    def empty(self) -> Json:
        """The item before anything is in it."""
        ...

    def begin(self) -> Iterable[Event]:
        """Events after the one that adds the item."""
        ...

    def grow(self, text: str, logprobs: Sequence[Json]) -> Event:
        """More of it."""
        ...

    def end(self) -> Iterable[Event]:
        """Events before the one that ends the item."""
        ...

    def body(self, status: str) -> Json:
        """The item as it is now."""
        ...


class _Message:
    """Text."""

    def __init__(self, item_id: str, index: int) -> None:
        self.index = index
        self._id = item_id
        self._place: Json = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._texts: list[str] = []
        self._logprobs: list[Json] = []

    def empty(self) -> Json:
        return self._item("in_progress", [])

    def begin(self) -> Iterable[Event]:
        yield "content_part.added", self._place | {"part": self._part()}

    def grow(self, text: str, logprobs: Sequence[Json]) -> Event:
        self._texts.append(text)
        self._logprobs.extend(logprobs)
        return "output_text.delta", self._place | {"delta": text, "logprobs": list(logprobs)}

    def end(self) -> Iterable[Event]:
        part = self._part()
        yield "output_text.done", self._place | {"text": part["text"], "logprobs": part["logprobs"]}
        yield "content_part.done", self._place | {"part": part}

    def body(self, status: str) -> Json:
        return self._item(status, [self._part()])

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> Json:
        text = "".join(self._texts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class _Reasoning:
    """Thinking: as `content`, or as the one part of a `summary` for clients that look there only."""

    def __init__(self, item_id: str, index: int, summarised: bool) -> None:
        self.index = index
        self._id = item_id
        self._field = "summary" if summarised else "content"
        self._kind = "summary_text" if summarised else "reasoning_text"
        self._events = "reasoning_summary_text" if summarised else "reasoning_text"
        self._part_events = "reasoning_summary_part" if summarised else "content_part"
        self._place: Json = {"item_id": item_id, "output_index": index, f"{self._field}_index": 0}
        self._texts: list[str] = []

    def empty(self) -> Json:
        return self._item("in_progress", [])

    def begin(self) -> Iterable[Event]:
        yield f"{self._part_events}.added", self._place | {"part": self._part()}

    def grow(self, text: str, logprobs: Sequence[Json]) -> Event:
        self._texts.append(text)
        return f"{self._events}.delta", self._place | {"delta": text}

    def end(self) -> Iterable[Event]:
        part = self._part()
        yield f"{self._events}.done", self._place | {"text": part["text"]}
        yield f"{self._part_events}.done", self._place | {"part": part}

    def body(self, status: str) -> Json:
        return self._item(status, [self._part()])

    def _item(self, status: str, parts: list[Json]) -> Json:
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": [], self._field: parts}

    def _part(self) -> Json:
        return {"type": self._kind, "text": "".join(self._texts)}


class _Call:
    """A function call."""

    def __init__(self, item_id: str, index: int, call_id: str, name: str) -> None:
        self.index = index
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._place: Json = {"item_id": item_id, "output_index": index}
        self._arguments: list[str] = []

    def empty(self) -> Json:
        return self.body("in_progress")

    def begin(self) -> Iterable[Event]:
        return ()

    def grow(self, text: str, logprobs: Sequence[Json]) -> Event:
        self._arguments.append(text)
        return "function_call_arguments.delta", self._place | {"delta": text}

    def end(self) -> Iterable[Event]:
        fields = {"name": self._name, "arguments": "".join(self._arguments)}
        yield "function_call_arguments.done", self._place | fields

    def body(self, status: str) -> Json:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }
