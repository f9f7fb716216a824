"""The OpenAPI document, made of what stands beside each route handler.

Handlers read their bodies themselves (`body.read_body`) and return ASGI callables; a framework sees nothing of either.
So a handler says in its `opt` which wire model it reads, and shows what is sent and what comes back:

    @post(operation_id="createCompletion", summary="…", opt=described(*COMPLETION, body=CompletionRequest))

The schemas of requests are those of the wire models; those of answers are the shapes of the examples, which
`tests/api/test_openapi.py` sends to a server and compares with what it gets.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.routes import BaseRoute, HTTPRoute
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from vmm_server.api.errors import Body, anthropic_body, body_for, headers_of, message_of, ollama_body, openai_body
from vmm_server.api.framing import json_line, named_event, sse_event
from vmm_server.api.placement import HEADERS as PLACEMENT_HEADERS
from vmm_server.api.placement import PRIORITY_HEADER, TIMEOUT_HEADER, PlacementFields, takes_placement
from vmm_server.api.streaming import JSON, NDJSON
from vmm_server.errors import ModelNotFound, Overloaded

SSE = "text/event-stream"
TEXT = "text/plain"
FORM = "multipart/form-data"
OPENAPI_VERSION = "3.1.1"
Schema = dict[str, Any]

TAGS = {
    "OpenAI": "OpenAI's dialect. Fields that its API does not have are those of other local servers.",
    "Anthropic": "Anthropic's dialect.",
    "Ollama": "Ollama's dialect. Streams are on unless `stream` is `false`.",
    "Text": "Reranking and tokens, as other servers have them.",
    "Vision": "What models see in images: as JSON, or as a form with files.",
    "VMM": "What this server alone has.",
    "Health": "For load balancers, orchestrators and monitoring.",
}
"""In the order of the page; a tag that is not here comes last."""

HEADERS: Mapping[str, str] = {
    "x-request-id": "The client's own, if it is short and plain, else a new one. The log's lines carry it.",
    "x-should-retry": "`false`: the same request will fail again.",
    "retry-after": "Seconds to wait before another try.",
    "x-vmm-model": "The model that answered, by its full name.",
    "x-vmm-model-digest": "Its digest, as `/api/tags` has it.",
    "x-vmm-backend": "The runtime it ran on.",
    "x-vmm-device": "The device it ran on.",
    "x-vmm-variant": "The precision that ran; left out for the model as it was installed.",
    "x-vmm-queue-ms": "Milliseconds that it waited for other requests; left out where a stream began before that.",
    "x-vmm-dropped-tokens": "Tokens of a prompt that was too long, which the model did not see.",
    "x-vmm-dropped-messages": "Whole messages among them.",
    "x-vmm-cached-tokens": "Prompt tokens that were not computed again; of a whole answer.",
    "x-vmm-ignored": "Options that were asked for and have no effect here.",
    "x-vmm-warning": "What is missing in the answer, because a file is damaged.",
    "server-timing": "Milliseconds: `decode`, `queue` and `model`.",
}
PROVENANCE = tuple(name for name in HEADERS if name.startswith("x-vmm-"))
"""Of what a model answered; left out where one was only loaded."""
SECURITY: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where the server has any."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, as Anthropic's."},
}
PARAMETERS: Mapping[str, str] = {
    "model_id": "The model's name; it may hold `/` and `:`.",
    "response_id": "The `id` of a response that was stored.",
    "file_id": "The `id` of a file.",
    "batch_id": "The `id` of a batch.",
    "digest": "`sha256:` and 64 hexadecimal digits.",
    "name": "The name that is released, or an alias of it; it may hold `/` and `:`.",
}
"""What a part of a path means."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request and what comes back for it."""

    title: str
    answer: Any
    """JSON; text as a string; a stream as the sequence of its JSON objects, `[DONE]` as a string."""
    body: Mapping[str, Any] | None = None
    path: Mapping[str, str] = field(default_factory=dict)
    """Path parameters."""
    media_type: str = JSON
    status: int = 200
    is_sent: bool = True
    """False for what no request alone brings about; the test then leaves it out."""

    @property
    def name(self) -> str:
        """As a key in the document."""
        return re.sub(r"\W+", "_", self.title.lower()).strip("_")

    @property
    def shown(self) -> Any:
        """The answer as it is on the wire; JSON stays what it is."""
        if self.media_type == SSE:
            return b"".join(map(_event, self.answer)).decode()
        return b"".join(map(json_line, self.answer)).decode() if self.media_type == NDJSON else self.answer


@dataclass(frozen=True, slots=True)
class Description:
    """What a route handler says of itself beyond its path, id and summary."""

    examples: tuple[Example, ...]
    body: type[BaseModel] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    """Its query's parameters: what each means."""
    upload: bool = False
    """The body is bytes."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The body is a form: fields that are files, and what each is. The others are `body`'s."""
    takes_json: bool = False
    """Beside the form."""
    runs: bool = False
    """A model's answer: its headers say which one it was, and where it ran."""
    headers: tuple[str, ...] = ()
    """That its answers have besides."""

    def __deepcopy__(self, memo: object) -> "Description":
        """Itself, since nothing changes it: Litestar copies each handler with all that it says."""
        return self


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    handler: HTTPRouteHandler

    @property
    def description(self) -> Description | None:
        """`None`: the handler says nothing of itself."""
        return self.handler.opt.get("openapi")

    @property
    def tag(self) -> str:
        """Its router's."""
        return next(iter(self.handler.resolve_tags()), "")


def described(
    *examples: Example,
    body: type[BaseModel] | None = None,
    query: Mapping[str, str] | None = None,
    upload: bool = False,
    files: Mapping[str, str] | None = None,
    takes_json: bool = False,
    runs: bool = False,
    headers: tuple[str, ...] = (),
) -> dict[str, Description]:
    """For a route handler's `opt`: what is sent to it and what comes back."""
    return {"openapi": Description(examples, body, query or {}, upload, files or {}, takes_json, runs, headers)}


def operations(routes: Iterable[BaseRoute]) -> list[Operation]:
    """All there are, in the order of the page."""
    order = list(TAGS)
    found = [
        Operation(method, route.path_format or "/", handler)
        for route in routes
        if isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items()
        if handler.resolve_include_in_schema()
    ]
    return sorted(
        found, key=lambda one: (order.index(one.tag) if one.tag in order else len(order), one.path, one.method)
    )


def build_document(routes: Iterable[BaseRoute], *, title: str, version: str) -> Schema:
    """The whole document. An operation without a description has no examples in it."""
    found = operations(routes)
    bodies, schemas = _body_schemas(one.description.body for one in found if one.description and one.description.body)
    paths: dict[str, Schema] = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, bodies)
    tags = list(dict.fromkeys(operation.tag for operation in found))
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": title, "version": version, "description": "AI models behind the APIs that programs speak."},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": TAGS.get(tag, "")} for tag in tags],
        "security": [{}, *({name: []} for name in SECURITY)],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": dict(_error_responses()),
            "securitySchemes": SECURITY,
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
    }


def _operation(operation: Operation, bodies: Mapping[type[BaseModel], Schema]) -> Schema:
    handler, description = operation.handler, operation.description or Description(())
    shown: Schema = {
        "operationId": handler.operation_id,
        "summary": handler.summary,
        "description": getattr(handler.fn, "func", handler.fn).__doc__,  # `func`: what a thread is made for
        "tags": [operation.tag],
        "parameters": list(_parameters(operation.path, description)),
        "responses": _answers(description) | _errors(operation.path),
    }
    if description.body is not None:
        shown["requestBody"] = {"required": True, "content": _content(description, bodies[description.body])}
    elif description.upload:
        shown["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    return {key: value for key, value in shown.items() if value}


def _content(description: Description, schema: Schema) -> Schema:
    """The body's media type, with its schema and examples."""
    examples = {one.name: {"summary": one.title, "value": one.body} for one in description.examples}
    as_json = {JSON: {"schema": schema, "examples": examples}}
    if not description.files:
        return as_json
    files = {
        name: {"type": "string", "format": "binary", "description": text} for name, text in description.files.items()
    }
    form = {"allOf": [schema, {"type": "object", "properties": files}]}
    if description.takes_json:
        return as_json | {FORM: {"schema": form}}
    return {FORM: {"schema": form, "examples": examples}}


def _parameters(path: str, description: Description) -> Iterator[Schema]:
    for name in re.findall(r"{(\w+)", path):
        shown = {"name": name, "in": "path", "required": True, "description": PARAMETERS.get(name, "")}
        examples = [one.path[name] for one in description.examples if name in one.path]
        yield shown | {"schema": {"type": "string"}, "example": examples[0] if examples else ""}
    if description.body is not None and takes_placement(description.body):
        for field_name, name in {**PLACEMENT_HEADERS, "priority": PRIORITY_HEADER}.items():
            text = PlacementFields.model_fields[field_name].description
            yield {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        text = "Milliseconds that the answer is of use for: what cannot begin by then is refused at once."
        yield {"name": TIMEOUT_HEADER, "in": "header", "description": text, "schema": {"type": "string"}}
    for name, text in description.query.items():
        yield {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}


def _answers(description: Description) -> Schema:
    answers: Schema = {}
    headers = _headers("x-request-id", *(PROVENANCE if description.runs else ()), *description.headers)
    for example in description.examples:
        answer = answers.setdefault(
            str(example.status), {"description": "The answer", "headers": headers, "content": {}}
        )
        schema = {"type": "string"} if isinstance(example.shown, str) else shape_of(example.answer)
        content = answer["content"].setdefault(example.media_type, {"schema": schema, "examples": {}})
        content["examples"][example.name] = {"summary": example.title, "value": example.shown}
    return answers


DIALECT_ERRORS: Mapping[Callable[[Exception], Body] | None, str] = {
    openai_body: "OpenAI",
    anthropic_body: "Anthropic",
    ollama_body: "Ollama",
    None: "Plain",
}


def _errors(path: str) -> Schema:
    dialect = DIALECT_ERRORS[body_for(path)]
    return {f"{digit}XX": {"$ref": f"#/components/responses/{dialect}{digit}XX"} for digit in (4, 5)}


def _error_responses() -> Iterator[tuple[str, Schema]]:
    errors = (("4XX", "The request is wrong", ModelNotFound("nobody")), ("5XX", "The server cannot", Overloaded()))
    for word, dialect in DIALECT_ERRORS.items():
        for statuses, text, error in errors:
            body = message_of(error) if word is None else word(error)
            content = {TEXT if word is None else JSON: {"schema": shape_of(body), "example": body}}
            headers = _headers("x-request-id", *headers_of(error))
            yield f"{dialect}{statuses}", {"description": text, "headers": headers, "content": content}


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _body_schemas(models: Iterable[type[BaseModel]]) -> tuple[dict[type[BaseModel], Schema], dict[str, Schema]]:
    """Wire models → a reference for each, and the schemas of all that they are made of, by name.

    Where dialects have models of one name, pydantic puts the modules before it: `OllamaChatMessage` is what stays.
    """
    mode: JsonSchemaMode = "validation"
    asked = [(model, mode) for model in dict.fromkeys(models)]
    found, defined = models_json_schema(asked, ref_template="#/components/schemas/{model}", schema_generator=_Plain)
    names = {
        long: "".join(part.capitalize() for part in parts[2:-2]) + parts[-1]
        for long in defined.get("$defs", {})
        if len(parts := long.split("__")) > 1
    }

    named: set[str] = set()

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(part) for part in value]
        if not isinstance(value, dict):
            return value
        if isinstance(ref := value.get("$ref"), str):
            root, _, long = ref.rpartition("/")
            named.add(names.get(long, long))
            return value | {"$ref": f"{root}/{names.get(long, long)}"}
        return {key: renamed(part) for key, part in value.items()}

    schemas = {names.get(long, long): renamed(schema) for long, schema in defined.get("$defs", {}).items()}
    bodies = {model: renamed(found[model, mode]) for model, _ in asked}
    return bodies, {name: schema for name, schema in schemas.items() if name in named}


_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


class _Plain(GenerateJsonSchema):
    """Without what says nothing: titles that repeat the name, and `null` as a default."""

    def generate_inner(self, schema: Any) -> Schema:
        """With bounds in JSON Schema's words; behind a validator pydantic leaves its own."""
        shown = super().generate_inner(schema)
        return {_BOUNDS.get(key, key): value for key, value in shown.items()}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False

    def default_schema(self, schema: Any) -> Schema:
        """As it is, but for a default that is `null`."""
        shown = super().default_schema(schema)
        if shown.get("default", 0) is None:
            del shown["default"]
        return shown


def shape_of(value: object) -> Schema:
    """The schema that a value suggests: nothing is required, and what is `null` may be anything."""
    if isinstance(value, Mapping):
        return {"type": "object", "properties": {name: shape_of(part) for name, part in value.items()}}
    if isinstance(value, str):
        return {"type": "string"}
    if isinstance(value, Sequence):
        return {"type": "array", "items": shape_of(value[0]) if value else {}}
    if isinstance(value, bool):
        return {"type": "boolean"}
    return {"type": "integer" if isinstance(value, int) else "number"} if value is not None else {}


def _event(item: object) -> bytes:
    if not isinstance(item, Mapping):
        return f"data: {item}\n\n".encode()
    return named_event(item) if "type" in item else sse_event(item)


def encoded(document: Schema) -> bytes:
    """As it is served."""
    return msgspec.json.encode(document)
