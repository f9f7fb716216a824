"""The fields that say what an answer must look like → one `Constraint`."""

import json

from vmm_server.api.openai.wire import ResponseFormat, SamplingFields, StructuredOutputs
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex


def constraint_of(wire: SamplingFields) -> Constraint | None:
    """What the request asks for, if anything. Raises `InvalidRequest` for two, `UnsupportedParameter`."""
    found: list[Constraint] = []
    if wire.response_format is not None:
        found.extend(_response_format(wire.response_format))
    if wire.structured_outputs is not None:
        found.extend(_structured_outputs(wire.structured_outputs))
    found.extend(_constraints("guided_", wire.guided_json, wire.guided_regex, wire.guided_choice, wire.guided_grammar))
    if len(found) > 1:
        first, second = found[0].param, found[1].param
        raise InvalidRequest(f"{second}: an answer has one form, and {first} is there too", param=second)
    return found[0] if found else None


def _response_format(wire: ResponseFormat) -> list[Constraint]:
    match wire.type:
        case "text":
            return []
        case "json_object" if wire.schema_ is not None:
            return [JsonSchema(json.dumps(wire.schema_), "response_format.schema")]
        case "json_object":
            return [JsonObject("response_format")]
        case "json_schema":
            if wire.json_schema is None:
                param = "response_format.json_schema"
                raise InvalidRequest(f"{param}: field required", param=param)
            return [JsonSchema(json.dumps(wire.json_schema.schema_), "response_format.json_schema.schema")]
        case other:
            param = "response_format.type"
            raise UnsupportedParameter(f"{param}: {other!r} is none of text, json_object, json_schema", param=param)


def _structured_outputs(wire: StructuredOutputs) -> list[Constraint]:
    for name in ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        if getattr(wire, name) not in (None, False):
            param = f"structured_outputs.{name}"
            raise UnsupportedParameter(f"{param} is not supported", param=param)
    found = _constraints("structured_outputs.", wire.json_, wire.regex, wire.choice, wire.grammar)
    if wire.json_object:
        found.append(JsonObject("structured_outputs.json_object"))
    if not found:
        raise InvalidRequest(
            "structured_outputs: one of json, regex, choice, grammar and json_object is needed",
            param="structured_outputs",
        )
    return found


def _constraints(
    prefix: str,
    schema: dict[str, object] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Constraint]:
    found: list[Constraint] = []
    if schema is not None:
        found.append(JsonSchema(schema if isinstance(schema, str) else json.dumps(schema), f"{prefix}json"))
    if regex is not None:
        found.append(Regex(regex, f"{prefix}regex"))
    if choice is not None:
        found.append(Choice(tuple(choice), f"{prefix}choice"))
    if grammar is not None:
        found.append(Grammar(grammar, f"{prefix}grammar"))
    return found
