"""Deltas of chat answers → OpenAI's objects and chunks. Pure."""

from collections.abc import Iterator, Sequence

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.gathered import Gathered, completed
from vmm_server.api.openai.render import Chunks, Identity, TokenText, encode, usage_fields
from vmm_server.engine.stream import Delta, ToolCallDelta
from vmm_server.requests import ToolCall


def chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenText) -> dict[str, object]:
    """`choices[].logprobs` of a chat answer: of every drawn token, those of thinking and calls too."""

    def entry(token_id: int, logprob: float) -> dict[str, object]:
        raw = token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        entry(item.token_id, item.logprob) | {"top_logprobs": [entry(*alternative) for alternative in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def chat_completion(
    identity: Identity,
    gathered: Sequence[Gathered],
    token_bytes: TokenText | None,
    *,
    functions: bool = False,
) -> dict[str, object]:
    """Whole chat answers to one prompt. `token_bytes` is given when logprobs are wanted.

    `functions`: calls go by their older name, `function_call`.
    """
    choices = [
        {
            "index": index,
            "message": _message(one, functions=functions),
            "logprobs": chat_logprobs(one.logprobs, token_bytes) if token_bytes else None,
            "finish_reason": _finish_reason(one.reason, functions=functions),
        }
        for index, one in enumerate(gathered)
    ]
    usage = usage_fields([one.usage for one in gathered], len(gathered))
    return identity.fields("chat.completion") | {"choices": choices, "usage": usage}


def _message(one: Gathered, *, functions: bool) -> dict[str, object]:
    """Content is null only where there are calls in its place. Thinking goes by both names that clients read."""
    calls = one.tool_calls
    message: dict[str, object] = {
        "role": "assistant",
        "content": one.text or (None if calls else ""),
        "refusal": None,
    }
    if one.reasoning:
        message |= {"reasoning_content": one.reasoning, "reasoning": one.reasoning}
    if calls and functions:
        message["function_call"] = _function(calls[0])
    elif calls:
        message["tool_calls"] = [{"id": call.id, "type": "function", "function": _function(call)} for call in calls]
    return message


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def _finish_reason(reason: FinishReason, *, functions: bool) -> str:
    return "function_call" if functions and reason is FinishReason.TOOL_CALLS else reason.value


class ChatChunks(Chunks):
    """Deltas of chat answers → server-sent events, each choice in OpenAI's order.

    The role goes with the first thing said, so that no client takes it for a first token; thinking, content and calls
    never share a chunk; the first chunk of a call has its name and no arguments.
    """

    KIND = "chat.completion.chunk"

    def __init__(
        self,
        identity: Identity,
        num_choices: int,
        *,
        include_usage: bool,
        token_bytes: TokenText | None,
        functions: bool = False,
    ) -> None:
        """`token_bytes` is given when logprobs are wanted. `functions`: calls go by their older name."""
        super().__init__(identity, num_choices, include_usage=include_usage, per_prompt=num_choices)
        self._token_bytes = token_bytes
        self._functions = functions
        self._has_role = [False] * num_choices
        self._has_answer = [False] * num_choices
        """Content or a call: what a message has at least."""
        self._before = [b'%b,"choices":[{"index":%d,"delta":' % (self._start, index) for index in range(num_choices)]
        self._before_content = [before + b'{"content":' for before in self._before]
        self._after_content = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of choice `index`; none while there is nothing to tell."""
        if self._token_bytes is None and self._has_answer[index] and delta.finish_reason is None and delta.text:
            return [self._before_content[index] + encode(delta.text) + self._after_content]
        events = self._said(index, delta)
        if delta.finish_reason is not None:
            reason = _finish_reason(completed(delta.finish_reason), functions=self._functions)
            if not self._has_answer[index]:
                events.append(self._event(index, b'{"content":""}'))
            end = b'{},"logprobs":null,"finish_reason":"%b"}]' % reason.encode()
            events += [self._before[index] + end + self._tail, *self._end(index, delta.usage)]
        return events

    def _said(self, index: int, delta: Delta) -> list[bytes]:
        """What a delta says, its log-probabilities with the first of it."""
        said = list(self._pieces(delta))
        if self._token_bytes is None or not (said or delta.logprobs):
            events = [self._event(index, piece) for piece in said]
        else:
            logprobs = encode(chat_logprobs(delta.logprobs, self._token_bytes))
            first, *others = said or [b"{}"]
            events = [self._event(index, first, logprobs), *(self._event(index, piece) for piece in others)]
        self._has_answer[index] |= bool(delta.text or delta.tool_calls)
        return events

    def _pieces(self, delta: Delta) -> Iterator[bytes]:
        """`choices[].delta` of each event."""
        if delta.reasoning:
            text = encode(delta.reasoning)
            yield b'{"reasoning_content":%b,"reasoning":%b}' % (text, text)
        if delta.text:
            yield b'{"content":%b}' % encode(delta.text)
        for call in delta.tool_calls:
            yield from self._call(call)

    def _call(self, call: ToolCallDelta) -> Iterator[bytes]:
        if self._functions and call.index:  # a message has room for one function_call
            return
        if call.name is not None:
            name = b'{"name":%b,"arguments":""}' % encode(call.name)
            yield self._function(call.index, name, b'"id":%b,"type":"function",' % encode(call.id))
        if call.arguments:
            yield self._function(call.index, b'{"arguments":%b}' % encode(call.arguments))

    def _function(self, index: int, function: bytes, head: bytes = b"") -> bytes:
        if self._functions:
            return b'{"function_call":%b}' % function
        return b'{"tool_calls":[{"index":%d,%b"function":%b}]}' % (index, head, function)

    def _event(self, index: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        if not self._has_role[index]:
            self._has_role[index] = True
            delta = _with_role(delta)
        return b'%b%b,"logprobs":%b,"finish_reason":null}]%b' % (self._before[index], delta, logprobs, self._tail)


def _with_role(delta: bytes) -> bytes:
    """The first delta of a message, which names both: what it says, and no content where that is something else."""
    if delta == b"{}":
        return b'{"role":"assistant","content":null}'
    content = b"" if delta.startswith(b'{"content":') else b'"content":null,'
    return b'{"role":"assistant",' + content + delta[1:]
