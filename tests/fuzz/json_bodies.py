"""JSON bodies: right ones of each dialect with things in them that no client means, as bytes."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.bytes_of import damaged

from vmm_server.api.anthropic.convert import message_request, prompt_request
from vmm_server.api.anthropic.wire import MessagesBody, PromptFields
from vmm_server.api.body import Wire, parse_body
from vmm_server.api.ollama import convert as ollama
from vmm_server.api.ollama.options import context_limit, ignored_fields, kept_tokens, sampling_params, unset_params
from vmm_server.api.ollama.wire import ChatBody, GenerateBody, GenerationFields, Options
from vmm_server.api.openai.convert import chat_request, completion_requests
from vmm_server.api.openai.embeddings import EmbeddingsBody, embedding_request
from vmm_server.api.openai.responses.conversation import conversation
from vmm_server.api.openai.responses.convert import count_request, refuse_unsupported, response_request
from vmm_server.api.openai.responses.items import Item, read_input
from vmm_server.api.openai.responses.wire import CountRequest, ResponseRequest
from vmm_server.api.openai.wire import ChatCompletionRequest, CompletionRequest
from vmm_server.engine.constraints import check_size, is_costly
from vmm_server.requests import GenerateRequest

Body = dict[str, Any]
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "enum": [1, 2]}}, "required": ["n"]}
_FUNCTION = {"name": "look_up", "description": "Looks up", "parameters": _SCHEMA}
_TOOL = {"type": "function", "function": _FUNCTION}
_PIXEL = "data:image/png;base64,iVBORw0KGgo="
_SAMPLING: Body = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repetition_penalty": 1.1, "logit_bias": {"17": -100, "18": 2.5}, "seed": 7, "stop": ["\n", "END"], "max_tokens": 9,
    "min_tokens": 1, "stop_token_ids": [1, 2], "n": 2, "stream": True, "stream_options": {"include_usage": True},
    "keep_alive": "5m", "device": "CPU", "options": {"num_ctx": 100},
}  # fmt: skip
_CHAT: Body = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"n": 1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "user", "name": "bob", "content": "and?"},
    ],
    "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "parallel_tool_calls": False,
    "logprobs": True, "top_logprobs": 3, "reasoning_effort": "low", "chat_template_kwargs": {"x": [1, {"y": None}]},
    "prediction": {"type": "content", "content": "as before"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": _SCHEMA, "strict": True}},
}  # fmt: skip
_BLOCKS = [
    {"type": "text", "text": "hi"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
]
_ANTHROPIC: Body = {
    "model": "m", "max_tokens": 10, "system": [{"type": "text", "text": "Be brief."}], "stop_sequences": ["x"],
    "messages": [
        {"role": "user", "content": _BLOCKS},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"n": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": _BLOCKS, "is_error": False}]},
    ],
    "tools": [{"name": "look_up", "description": "d", "input_schema": _SCHEMA, "strict": True}],
    "tool_choice": {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 100}, "temperature": 1.0, "top_p": 0.5, "top_k": 3, "stream": True,
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}},
}  # fmt: skip
_OPTIONS: Body = {
    "num_ctx": 100, "num_keep": 5, "num_predict": -1, "seed": -1, "temperature": 0.1, "top_k": -1, "top_p": 2.0,
    "min_p": -1.0, "typical_p": 0.5, "repeat_last_n": -1, "repeat_penalty": 1.1, "presence_penalty": 1.0,
    "frequency_penalty": 1.0, "stop": "x", "num_batch": 1, "num_gpu": 99, "mirostat": 2, "tfs_z": 0.5, "backend": "cpu",
}  # fmt: skip
_OLLAMA_CHAT: Body = {
    "model": "m", "format": _SCHEMA, "think": "high", "keep_alive": -1, "options": _OPTIONS, "tools": [_TOOL],
    "truncate": False, "logprobs": True, "top_logprobs": 2, "messages": [
        {"role": "user", "content": "hi", "images": ["iVBORw0KGgo="]},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            {"function": {"name": "look_up", "arguments": {"n": 1}}}]},
        {"role": "tool", "tool_name": "look_up", "content": "found"},
    ],
}  # fmt: skip
_RESPONSE: Body = {
    "model": "m", "instructions": "Be brief.", "tools": [{"type": "function", **_FUNCTION}], "tool_choice": "auto",
    "reasoning": {"effort": "low", "summary": "auto"}, "truncation": "auto", "max_output_tokens": 10, "store": False,
    "text": {"format": {"type": "json_schema", "name": "f", "schema": _SCHEMA}}, "metadata": {"a": "b"}, "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": _PIXEL}]},
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"n": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"type": "message", "role": "user", "content": "and?"},
    ],
}  # fmt: skip
BODIES: Mapping[type[Wire], tuple[Body, ...]] = {
    ChatCompletionRequest: (
        _CHAT | _SAMPLING,
        {"model": "m", "messages": _CHAT["messages"], "functions": [_FUNCTION], "function_call": {"name": "look_up"}},
        {"model": "m", "messages": _CHAT["messages"], "guided_regex": "a+", "modalities": ["text"], "verbosity": "low"},
    ),
    CompletionRequest: (
        {"model": "m", "prompt": [[1, 2], [3]], "echo": True, "logprobs": 2, "best_of": 3}
        | _SAMPLING
        | {"stream": False},
        {"model": "m", "prompt": "a", "suffix": "b", "structured_outputs": {"choice": ["a", "b"]}},
    ),
    ResponseRequest: (_RESPONSE,),
    CountRequest: ({name: value for name, value in _RESPONSE.items() if name not in ("store", "metadata")},),
    EmbeddingsBody: (
        {"model": "m", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64", "truncate": "END"},
        {
            "model": "m",
            "input": [[1, 2], [3]],
            "token_encoding": "model",
            "truncate_prompt_tokens": 5,
            "prompt_name": "q",
        },
    ),
    MessagesBody: (_ANTHROPIC,),
    PromptFields: (_ANTHROPIC,),
    ChatBody: (_OLLAMA_CHAT,),
    GenerateBody: (
        {"model": "m", "prompt": "a", "suffix": "b", "options": _OPTIONS, "format": "json"},
        {
            "model": "m",
            "prompt": "a",
            "system": "s",
            "template": "{{ .Prompt }}",
            "context": [1, 2],
            "images": ["AAAA"],
        },
    ),
}
"""Bodies of each shape with all of its fields in one of them."""

_RAW = ("9" * 5000, "-" + "9" * 400, "1e999", "-1e-999", "0." + "1" * 2000, "1E400", "-0", "NaN", "Infinity",
        '"\\ud800"', '"\\ud83d\\ude00\\udc00"', "[" * 250 + "]" * 250,
        '{"a":' * 190 + "1" + "}" * 190, '"' + "x" * 300_000 + '"',
        "[" + "0," * 20_000 + "0]", '{"a": 1, "a": 2}', "tru", "'x'", "01", "[1,]", "\x00", '"\x01"')  # fmt: skip
"""JSON that Python's writer does not write, and what is none."""
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 10**30, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 8192.0),
    *(
        "",
        " ",
        "\0",
        "é\u2028\U0001f600\u200d",
        "auto",
        "none",
        "x" * 3000,
        "null",
        "1",
        "{",
        '{"n": 1}',
        "{{ 1 / 0 }}",
    ),
    *("data:image/png;base64,", "data:,", "http://[::1", "text", "user", "function", "json_schema", "<|im_end|>"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        ["a", 1],
        [0] * 300,
        ["a"] * 100,
        {"type": "x"},
        {"a": {"b": [1, {"c": None}]}},
    ),
    *(_SCHEMA, _TOOL, {"$ref": "#"}, {"allOf": [{"pattern": "(a{9}){9}"}]}, {"type": ["string", "null"]}),
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[type[Wire], bytes]:
    """A shape, and a body that was once right for it."""
    shape = draw(st.sampled_from(list(BODIES)))
    body = copy.deepcopy(draw(st.sampled_from(BODIES[shape])))
    fields = sorted({*shape.model_fields, *_SAMPLING, *_OPTIONS})
    raw: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        found = list(_places(body))
        how = draw(st.sampled_from(("value", "value", "raw", "remove", "repeat", "add", "move")))
        holder, key = draw(st.sampled_from(found)) if found else (body, "x")
        if how == "add" or not found:
            body[draw(st.sampled_from(fields))] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        elif how == "value":
            holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        elif how == "raw":
            holder[key] = f"@raw{len(raw)}@"
            raw.append(draw(st.sampled_from(_RAW)))
        elif how == "remove":
            del holder[key]
        elif how == "move":
            other, place = draw(st.sampled_from(found))
            other[place] = copy.deepcopy(holder[key]) if key in _keys(holder) else None
        elif isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[key]) for _ in range(draw(st.sampled_from((1, 2, 70)))))
    text = json.dumps(body, allow_nan=True)
    for index, token in enumerate(raw):
        text = text.replace(f'"@raw{index}@"', token)
    content = text.encode("utf-8", "surrogatepass")
    return shape, draw(damaged(content, 2)) if draw(st.integers(0, 4)) == 0 else content


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _respond(wire: ResponseRequest | CountRequest) -> list[GenerateRequest]:
    refuse_unsupported(wire)
    items = [one for one in read_input(wire.input, lambda kind: f"{kind}_1") if isinstance(one, Item)]
    messages = conversation(items, wire.instructions)
    return [response_request(wire, messages) if isinstance(wire, ResponseRequest) else count_request(wire, messages)]


def _ollama(body: ChatBody | GenerateBody) -> list[GenerateRequest]:
    fields: GenerationFields = body
    options = body.options or Options()
    sampling_params(options, num_logprobs=None)
    unset_params(options), context_limit(options), kept_tokens(options), ignored_fields(fields)
    return [ollama.chat_request(body, thinks=True) if isinstance(body, ChatBody) else ollama.generate_request(body)]


_CONVERT: Mapping[type[Wire], Callable[[Any], object]] = {
    ChatCompletionRequest: lambda wire: [chat_request(wire)],
    CompletionRequest: completion_requests,
    ResponseRequest: _respond,
    CountRequest: _respond,
    EmbeddingsBody: embedding_request,
    MessagesBody: lambda wire: [message_request(wire)],
    PromptFields: lambda wire: [prompt_request(wire)],
    ChatBody: _ollama,
    GenerateBody: _ollama,
}


def read(case: tuple[type[Wire], bytes]) -> None:
    """A body → what runs: bytes, shape, request, and what its constraint looks like."""
    shape, content = case
    made = _CONVERT[shape](parse_body(content, shape))
    for request in made if isinstance(made, list) else ():
        if request.constraint is not None:
            check_size(request.constraint)
            is_costly(request.constraint)
