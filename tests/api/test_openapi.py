"""The OpenAPI document: valid, whole, and true: every example in it is sent to a server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
from litestar.routes import HTTPRoute
from tests.api.fake_audio import sound

from vmm_server.api.openapi import SSE, TAGS, Example, Operation, operations
from vmm_server.api.streaming import NDJSON

DATA = Path(__file__).parents[1] / "data"
VALIDATOR = jsonschema_rs.validator_for(json.loads((DATA / "openapi_3_1.json").read_text()))
TRIED_LAST = ("deleteResponse", "deleteFile", "headBlob", "pull", "delete")
"""What changes or takes away what the others need."""
SOMETIMES = ("load_duration", "prompt_eval_cached_count")
"""Only there after a load, and where a prompt was seen before."""


def all_operations(server: Any) -> list[Operation]:
    return operations(server.uvicorn.config.app.routes)


def document_of(server: Any) -> Any:
    return server.client.get("/openapi.json").json()


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from refs(part)
    elif isinstance(value, list):
        for part in value:
            yield from refs(part)


def resolve(document: Any, ref: str) -> Any:
    for part in ref.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_the_document_is_valid_openapi(live_server: Any) -> None:
    document = document_of(live_server)
    errors = [
        f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in VALIDATOR.iter_errors(document)
    ]
    assert not errors
    for ref in refs(document):
        assert resolve(document, ref), ref
    known = document["components"]["securitySchemes"]
    assert {name for way in document["security"] for name in way} == known.keys()
    schemas = document["components"]["schemas"]
    assert {"ChatCompletionRequest", "OpenaiChatMessage", "OllamaChatMessage"} <= schemas.keys()
    assert {f"#/components/schemas/{name}" for name in schemas} <= set(refs(document))
    assert not [name for name in schemas if "_" in name]
    for schema in schemas.values():
        jsonschema_rs.meta.validate(schema)


def test_both_addresses_give_the_same_document(live_server: Any) -> None:
    assert live_server.client.get("/schema/openapi.json").content == live_server.client.get("/openapi.json").content


def test_every_route_is_in_the_document_and_nothing_else(live_server: Any) -> None:
    routes = {
        (re.sub(r":\w+}", "}", route.path_format) or "/", method.lower())
        for route in live_server.uvicorn.config.app.routes
        if isinstance(route, HTTPRoute) and not route.path.startswith(("/schema", "/openapi.json"))
        for method in route.methods
        if method != "OPTIONS"
    }
    assert {(path, method) for path, item in document_of(live_server)["paths"].items() for method in item} == routes


def test_every_route_says_what_it_is(live_server: Any) -> None:
    found = all_operations(live_server)
    undescribed = [f"{one.method} {one.path}" for one in found if one.description is None]
    assert not undescribed, "give these `opt=described(...)`"
    for one in found:
        assert one.handler.operation_id, one.path
        assert one.handler.summary, one.path
        assert one.tag in TAGS, one.path
    ids = [one.handler.operation_id for one in found]
    assert len(ids) == len(set(ids))


def test_every_route_that_reads_a_body_names_its_shape(live_server: Any) -> None:
    for one in all_operations(live_server):
        if one.description is None:
            continue
        path = re.sub(r"{\w+}", "x", one.path)
        reads = "missing request body" in live_server.client.request(one.method, path).text
        assert (one.description.body is not None) == reads, f"{one.method} {one.path}"
        assert one.description.examples, one.path
        for example in one.description.examples:
            assert (example.body is not None) == reads, f"{one.path}: {example.title}"


def test_examples_of_a_route_have_different_names(live_server: Any) -> None:
    for one in all_operations(live_server):
        names = [example.name for example in one.description.examples] if one.description else []
        assert len(names) == len(set(names)), one.path


def test_requests_in_the_document_have_the_schema_beside_them(live_server: Any) -> None:
    document = document_of(live_server)
    for path, item in document["paths"].items():
        for operation in item.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                validator = jsonschema_rs.validator_for({**content["schema"], "components": document["components"]})
                for example in content.get("examples", {}).values():
                    assert validator.is_valid(example["value"]), (path, example)


def test_fields_are_shown_with_their_bounds_and_meaning(live_server: Any) -> None:
    fields = document_of(live_server)["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 16}
    assert fields["prompt"]["description"] == "A string, token ids, or an array of either."
    assert fields["stop"]["anyOf"][:2] == [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    assert "default" not in fields["n"]


def test_routes_are_shown_with_what_their_handlers_say(live_server: Any) -> None:
    paths = document_of(live_server)["paths"]
    assert paths["/v1/models"]["get"]["description"] == "Newest first."
    assert paths["/v1/completions"]["post"]["description"] == 'JSON, or server-sent events with `"stream": true`.'
    assert all(operation["description"] for item in paths.values() for operation in item.values())


def test_the_page_needs_nothing_from_anywhere_else(live_server: Any) -> None:
    page = live_server.client.get("/schema")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text) == []
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", page.text) == []


def shape(value: Any) -> Any:
    """Keys and types, down to the leaves. An array is its first element; numbers are alike."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items() if name not in SOMETIMES}
    if isinstance(value, list | tuple):
        return [shape(value[0])] if value else []
    return {bool: "boolean", int: "number", float: "number", str: "string"}.get(type(value))


def parsed(text: str, media_type: str) -> Any:
    """A stream as its objects, JSON as it is, text as text."""
    if media_type == NDJSON:
        return [json.loads(line) for line in text.splitlines()]
    if media_type == SSE:
        data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]
    return json.loads(text) if media_type == "application/json" else text


def check(server: Any, operation: Operation, example: Example) -> None:
    where = f"{operation.method} {operation.path}: {example.title}"
    path = operation.path.format(**example.path)
    description = operation.description
    if description is not None and description.files and not description.takes_json:
        files = {name: ("speech.wav", sound(1, 1)) for name in description.files}
        response = server.client.request(operation.method, path, data=example.body, files=files)
    else:
        response = server.client.request(operation.method, path, json=example.body)
    assert response.status_code == example.status, f"{where}: {response.text}"
    assert response.headers["content-type"].partition(";")[0] == example.media_type, where
    came, shown = parsed(response.text, example.media_type), example.answer
    if example.media_type not in (SSE, NDJSON):
        assert shape(came) == shape(shown), where
        return
    came, shown = [shape(item) for item in came], [shape(item) for item in shown]
    assert [item for item in came if item not in shown] == [], where  # one piece may stand for several
    assert came[-2:] == shown[-2:] if example.media_type == SSE else came[-1] == shown[-1], where


def test_every_example_is_answered_as_it_says(example_server: Any) -> None:
    found = all_operations(example_server)
    last = [one for name in TRIED_LAST for one in found if one.handler.operation_id == name]
    for operation in [one for one in found if one not in last] + last:
        example_server.client.post("/api/generate", json={"model": "smollm2:135m"}).raise_for_status()  # into memory
        for example in operation.description.examples if operation.description else ():
            if example.is_sent:
                check(example_server, operation, example)
