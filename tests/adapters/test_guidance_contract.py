"""What the engine makes of a request's constraints holds in every `TextBackend`."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer

from vmm_adapters.echo import END, VOCAB_SIZE, tokenizer_json
from vmm_adapters.types import FinishReason
from vmm_server.engine.constraints import grammar_source
from vmm_server.engine.guidance import guidance_of
from vmm_server.requests import Choice, Composite, Constraint, Grammar, JsonObject, JsonSchema, Regex

from .backend_subjects import BACKENDS, BackendSubject, Session

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"enum": ["x", 7]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)
CONSTRAINTS: dict[str, Constraint | Composite] = {
    "object": JsonObject("p"),
    "schema": JsonSchema(SCHEMA, "p"),
    "lenient": JsonSchema(SCHEMA, "p", lenient=True),
    "regex": Regex("(ab|c)+[0-9]{2}", "p"),
    "choice": Choice(("a.b", "a", "{x}"), "p"),
    "lark": Grammar('start: word ("," word)*\nword: /[a-c]{1,3}/', "p"),
    "gbnf": Grammar('root ::= [a-c] root | "x"', "p"),
    "composite": Composite(
        'start: "a" @form ("b" | calls)\ncalls: @form "," @text @word',
        (("form", JsonSchema(SCHEMA, "p")), ("text", Regex("[a-c]+x", "p")), ("word", Choice(("a", "b"), "p"))),
        "p",
    ),
}


@pytest.fixture(scope="module", params=BACKENDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BackendSubject:
    built: BackendSubject = request.param(tmp_path_factory.mktemp("model"))
    return built


@pytest.fixture(scope="module")
def session(subject: BackendSubject) -> Iterator[Session]:
    loaded = subject.load()
    yield Session(loaded)
    loaded.close()


@pytest.fixture(scope="module")
def by_bytes() -> LLTokenizer:
    return LLTokenizer(json.dumps(tokenizer_json()), n_vocab=VOCAB_SIZE, eos_token=[END])


def judge(constraint: Constraint | Composite) -> str:
    """The grammar, but any escape will do: runtimes' own llguidance has no options to forbid one."""
    source = grammar_source(constraint)
    if isinstance(constraint, Grammar | Choice):
        return source

    def without_options(members: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in members.items() if not name.startswith("json_allow")}

    return json.dumps(json.loads(source, object_hook=without_options))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_an_answer_holds_to_its_constraint(
    session: Session, subject: BackendSubject, by_bytes: LLTokenizer, name: str
) -> None:
    if "guidance" in session.backend.lacks:
        pytest.skip(session.backend.lacks["guidance"])
    guidance = guidance_of(CONSTRAINTS[name])
    sampling = replace(subject.lively, seed=5, max_tokens=60)
    answer = session.ask((12, 40, 33, 65), sampling, eos_token_ids=subject.eos_token_ids, guidance=guidance)
    matcher = LLMatcher(by_bytes, judge(CONSTRAINTS[name]), log_level=0)
    text = subject.decode(answer.token_ids).encode()
    assert matcher.try_consume_tokens(list(text)) == len(text) > 0, text
    if answer.finish_reason is FinishReason.STOP:
        assert matcher.is_accepting(), text
