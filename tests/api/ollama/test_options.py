"""`options`: every one of Ollama's has a type and a meaning, or is known to change no answer."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from vmm_server.api.body import parse_body
from vmm_server.api.ollama.convert import generate_request
from vmm_server.api.ollama.options import ignored_fields
from vmm_server.api.ollama.wire import GenerateBody, Options
from vmm_server.api.placement import PlacementFields
from vmm_server.errors import InvalidRequest
from vmm_server.requests import GenerateRequest

HONOURED = {
    "num_ctx": 64,
    "num_keep": 9,
    "seed": 7,
    "num_predict": 3,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.5,
    "repeat_last_n": 32,
    "temperature": 0.25,
    "repeat_penalty": 1.25,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "stop": ["x"],
}
HARMLESS = {
    "num_batch": 2,
    "num_gpu": 1,
    "main_gpu": 0,
    "use_mmap": True,
    "num_thread": 8,
    "draft_num_predict": 4,
}
"""They say where and how to run."""
GONE = {
    "numa": True,
    "low_vram": True,
    "f16_kv": False,
    "vocab_only": True,
    "use_mlock": True,
    "logits_all": True,
    "embedding_only": True,
    "num_gqa": 8,
    "penalize_newline": True,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "tfs_z": 1.0,
}
"""Of older versions, with the values that ask for nothing."""


def body(**fields: object) -> GenerateBody:
    return parse_body(json.dumps({"model": "m", "prompt": "hi", "raw": True} | fields).encode(), GenerateBody)


def asked(**options: object) -> GenerateRequest:
    return generate_request(body(options=options))


def test_ollamas_whole_struct_is_known() -> None:
    """`Options` and `Runner` in Ollama's api/types.go; the others are of older versions, or ours."""
    others = {"mirostat", "tfs_z", "penalize_newline", *PlacementFields.model_fields}
    assert {*HONOURED, *HARMLESS} == Options.model_fields.keys() - others


@pytest.mark.parametrize("name", HONOURED)
def test_what_is_honoured_changes_the_request(name: str) -> None:
    assert asked(**{name: HONOURED[name]}) != asked()


@pytest.mark.parametrize(("name", "value"), [*HARMLESS.items(), *GONE.items(), ("unheard_of", {"a": 1})])
def test_what_is_harmless_changes_nothing(name: str, value: object) -> None:
    assert asked(**{name: value}) == asked()
    assert ignored_fields(body(options={name: value})) == ()


@pytest.mark.parametrize("name", [*HONOURED, *HARMLESS])
def test_null_is_the_default(name: str) -> None:
    assert asked(**{name: None}) == asked()


@pytest.mark.parametrize("name", [*HONOURED, *HARMLESS])
def test_a_wrong_type_is_refused_by_name(name: str) -> None:
    for wrong in ({"a": 1}, [1], "lots" if name != "stop" else 5):
        with pytest.raises(InvalidRequest) as refused:
            asked(**{name: wrong})
        assert (refused.value.param or "").startswith(f"options.{name}")
        assert f"options.{name}" in refused.value.message


@pytest.mark.parametrize("name", [name for name, value in (HONOURED | HARMLESS).items() if type(value) is int])
def test_whole_numbers_may_be_written_with_a_point(name: str) -> None:
    assert asked(**{name: 8.0}) == asked(**{name: 8})
    with pytest.raises(InvalidRequest, match=f"options.{name}"):
        asked(**{name: 8.5})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"options": {"mirostat": 2, "mirostat_tau": 3.0}}, "options.mirostat"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"penalize_newline": False}}, "options.penalize_newline"),
        ({"shift": True}, "shift"),
        ({"shift": True, "options": {"mirostat": 1}}, "options.mirostat, shift"),
        ({"shift": False, "options": GONE}, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_says_what_it_does_not_heed(live_server: Any, fields: Any, told: str | None, stream: bool) -> None:
    answer = live_server.client.post("/api/generate", json={"model": "echo", "prompt": "a", "stream": stream} | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-vmm-ignored") == told


def test_the_example_of_ollamas_documentation_is_answered(live_server: Any) -> None:
    options = HONOURED | HARMLESS | {"stop": ["\n", "user:"], "num_ctx": 1024, "penalize_newline": True, "numa": False}
    answer = live_server.client.post(
        "/api/generate", json={"model": "echo", "prompt": "a", "stream": False, "options": options}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["eval_count"] <= 3


Post = Callable[..., httpx.Response]


@pytest.fixture
def generate(live_server: Any) -> Post:
    def send(**options: object) -> httpx.Response:
        body = {"model": "echo", "prompt": "abcdef", "stream": False, "options": options}
        response: httpx.Response = live_server.client.post("/api/generate", json=body)
        return response

    return send


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_predict": 2}, "ab"),
        ({"num_predict": -1}, "abcdef"),
        ({"num_predict": -2}, "abcdef"),
        ({"stop": ["d"]}, "abc"),
        ({"stop": "d"}, "abc"),
        ({"repeat_last_n": 0, "repeat_penalty": 100}, "abcdef"),
    ],
)
def test_options_reach_the_model(generate: Post, options: dict[str, object], text: str) -> None:
    assert generate(temperature=0, **options).json()["response"] == text


def test_a_seed_repeats_and_a_random_one_does_not(generate: Post) -> None:
    def said(seed: int) -> str:
        return str(generate(seed=seed, temperature=5, top_k=0, top_p=1, num_predict=12).json()["response"])

    assert said(5) == said(5)
    assert len({said(-1) for _ in range(5)}) > 1
