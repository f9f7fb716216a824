"""openai-python: the class of exception that each kind of failure becomes, and what it carries."""

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello"}]


def post(client: openai.OpenAI, path: str, body: object) -> None:
    client.post(path, body=body, cast_to=object)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("path", "body", "expected", "code"),
    [
        ("/chat/completions", {"messages": HELLO}, openai.BadRequestError, None),
        ("/chat/completions", {"model": "none", "messages": HELLO}, openai.NotFoundError, "model_not_found"),
        ("/completions", {"model": "none", "prompt": "a"}, openai.NotFoundError, "model_not_found"),
        ("/embeddings", {"model": "none", "input": "a"}, openai.NotFoundError, "model_not_found"),
        ("/responses", {"model": "none", "input": "a"}, openai.NotFoundError, "model_not_found"),
        ("/nonsense", {}, openai.NotFoundError, None),
    ],
)
def test_statuses_become_classes(
    client: openai.OpenAI, path: str, body: object, expected: type[openai.APIStatusError], code: str | None
) -> None:
    with pytest.raises(expected) as caught:
        post(client, path, body)
    assert caught.value.code == code
    assert caught.value.request_id
    assert caught.value.body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("temperature", -1),
        ("top_p", 2),
        ("logit_bias", {"x": 1}),
        ("stop", 5),
        ("presence_penalty", 9),
        ("tool_choice", "maybe"),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "xml"}),
        ("messages", [{"role": "wizard", "content": "?"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        ("stream", "yes"),
        ("reasoning_effort", "very"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, scripted: str, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        post(client, "/chat/completions", {"model": scripted, "messages": HELLO, field: value})
    assert (caught.value.param or "").startswith(field)
    assert caught.value.type == "invalid_request_error"


def test_what_changes_nothing_here_is_ignored(client: openai.OpenAI, scripted: str) -> None:
    reply = client.chat.completions.create(
        model=scripted,
        messages=[{"role": "user", "content": "Hello"}],
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        extra_body={"nonsense": {"deeply": ["nested"]}},
    )
    assert reply.choices[0].message.content == "Hello"


def test_what_cannot_succeed_is_not_tried_again(base_url: str) -> None:
    """The client retries unless it is told not to; a wrong request is sent once."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=2) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("none")
        assert "x-stainless-retry-count" in caught.value.request.headers
        assert caught.value.request.headers["x-stainless-retry-count"] == "0"


def test_every_answer_has_a_request_id(client: openai.OpenAI, scripted: str) -> None:
    replies = [
        client.chat.completions.with_raw_response.create(
            model=scripted, messages=[{"role": "user", "content": "Hello"}]
        )
        for _ in range(2)
    ]
    ids = {reply.request_id for reply in replies}
    assert None not in ids
    assert len(ids) == 2
