"""What an answer must look like, as OpenAI's and vLLM's clients ask for it."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from vmm_server.api.body import parse_body
from vmm_server.api.openai.convert import chat_request, completion_requests
from vmm_server.api.openai.wire import ChatCompletionRequest, CompletionRequest
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex

SCHEMA = {"type": "object", "properties": {"b": {"type": "boolean"}, "a": {"enum": [1, 2]}}, "required": ["b", "a"]}
TEXT = json.dumps(SCHEMA)
SAMPLING = {"temperature": 1.5, "seed": 5, "max_tokens": 150}


def chat(**fields: object) -> Constraint | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | fields
    return chat_request(parse_body(json.dumps(body).encode(), ChatCompletionRequest)).constraint


def complete(**fields: object) -> Constraint | None:
    body = {"model": "m", "prompt": "hello"} | fields
    (request,) = completion_requests(parse_body(json.dumps(body).encode(), CompletionRequest))
    return request.constraint


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize(
    ("fields", "expected", "param"),
    [
        ({"response_format": {"type": "json_object"}}, JsonObject, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            lambda param: JsonSchema(TEXT, param),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            lambda param: JsonSchema(TEXT, param),
            "response_format.schema",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, lambda p: JsonSchema(TEXT, p), "structured_outputs.json"),
        ({"structured_outputs": {"json": TEXT}}, lambda p: JsonSchema(TEXT, p), "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a+"}}, lambda p: Regex("a+", p), "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, lambda p: Choice(("a", "b"), p), "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x"}}, lambda p: Grammar("x", p), "structured_outputs.grammar"),
        ({"structured_outputs": {"json_object": True}}, JsonObject, "structured_outputs.json_object"),
        ({"guided_json": SCHEMA}, lambda p: JsonSchema(TEXT, p), "guided_json"),
        ({"guided_regex": "a+"}, lambda p: Regex("a+", p), "guided_regex"),
        ({"guided_choice": ["a"]}, lambda p: Choice(("a",), p), "guided_choice"),
        ({"guided_grammar": "x"}, lambda p: Grammar("x", p), "guided_grammar"),
    ],
)
def test_every_spelling_arrives_with_the_name_of_its_field(
    ask: Callable[..., Constraint | None], fields: Any, expected: Callable[[str], Constraint], param: str
) -> None:
    constraint = ask(**fields)
    assert constraint == expected(param)
    assert constraint is not None
    assert constraint.param == param


def test_text_is_no_constraint() -> None:
    assert chat(response_format={"type": "text"}) is None
    assert chat(response_format=None, structured_outputs=None) is None


@pytest.mark.parametrize(
    ("fields", "param", "error"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type", UnsupportedParameter),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", InvalidRequest),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            InvalidRequest,
        ),
        ({"structured_outputs": {}}, "structured_outputs", InvalidRequest),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", InvalidRequest),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            UnsupportedParameter,
        ),
        (
            {"structured_outputs": {"structural_tag": {"x": 1}}},
            "structured_outputs.structural_tag",
            UnsupportedParameter,
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            InvalidRequest,
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(fields: Any, param: str, error: type[InvalidRequest]) -> None:
    with pytest.raises(error) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_holds_over_http(live_server: Any, stream: bool) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "response_format": asked}
    response: httpx.Response = live_server.client.post(
        "/v1/chat/completions", json=body | SAMPLING | {"stream": stream}
    )
    assert response.status_code == 200, response.text
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = response.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert reason == "stop"
    answer = json.loads(text)
    assert isinstance(answer["b"], bool)
    assert answer["a"] in (1, 2)
    assert list(answer)[:2] == ["b", "a"], "in the order of the schema"


def test_a_choice_holds_for_every_answer_of_a_completion(live_server: Any) -> None:
    body = {"model": "echo", "prompt": ["ab", "cd"], "structured_outputs": {"choice": ["yes", "no"]}}
    response: httpx.Response = live_server.client.post("/v1/completions", json=body | SAMPLING)
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert len(choices) == 2
    assert {choice["text"] for choice in choices} <= {"yes", "no"}
    assert {choice["finish_reason"] for choice in choices} == {"stop"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
            'Unimplemented keys: ["not"]',
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "structured_outputs.json"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "response_format"),
    ],
)
def test_what_cannot_be_compiled_is_a_400_before_the_first_byte(
    live_server: Any, fields: Any, param: str, words: str, stream: bool
) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": stream} | fields
    response: httpx.Response = live_server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert words in response.json()["error"]["message"]
