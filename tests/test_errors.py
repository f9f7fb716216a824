"""Every error has a status, the one that its tree's drawing says, and a body in both dialects."""

import re
from collections.abc import Iterator

import pytest

from vmm_adapters import errors as adapter_errors
from vmm_server import errors
from vmm_server.api.errors import STATUS, headers_of, ollama_body, openai_body, status_of

SAMPLES: dict[type[Exception], Exception] = {
    errors.ContextLengthExceeded: errors.ContextLengthExceeded(limit=4096, asked=5000, param="messages"),
    errors.InvalidModelName: errors.InvalidModelName("a b"),
    errors.UnsupportedCapability: errors.UnsupportedCapability("bert", "chat"),
    errors.ModelNotFound: errors.ModelNotFound("nobody"),
    errors.RequestCancelled: errors.RequestCancelled(),
    errors.Overloaded: errors.Overloaded(retry_after_s=3),
    errors.ShuttingDown: errors.ShuttingDown(),
    errors.DigestMismatch: errors.DigestMismatch("weights", expected="a" * 64, actual="b" * 64),
}
"""Errors whose constructor takes more than a message."""


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def sample(kind: type[Exception]) -> Exception:
    return SAMPLES.get(kind) or kind("it broke")


VMM_ERRORS = sorted(set(family(errors.VMMError)), key=lambda kind: kind.__name__)
ADAPTER_ERRORS = sorted(set(family(adapter_errors.AdapterError)), key=lambda kind: kind.__name__)
DRAWN = {
    name: None if status == "-" else int(status)
    for name, status in re.findall(r"── (\w+) +(\d{3}|-)", errors.__doc__ or "")
}


@pytest.mark.parametrize("kind", VMM_ERRORS)
def test_every_error_answers_with_the_status_drawn_in_its_tree(kind: type[Exception]) -> None:
    if kind is errors.VMMError:
        assert status_of(sample(kind)) == 500
        return
    assert kind.__name__ in DRAWN, "draw it at the top of errors.py"
    assert status_of(sample(kind)) == (DRAWN[kind.__name__] or 500)
    assert any(base in STATUS for base in kind.__mro__[: kind.__mro__.index(errors.VMMError)]), "give it a row"


def test_nothing_is_drawn_that_does_not_exist() -> None:
    assert set(DRAWN) == {kind.__name__ for kind in VMM_ERRORS} - {"VMMError"}


@pytest.mark.parametrize("kind", [*VMM_ERRORS, *ADAPTER_ERRORS])
def test_every_error_has_a_body_in_both_dialects(kind: type[Exception]) -> None:
    error = sample(kind)
    body = openai_body(error)["error"]
    assert isinstance(body, dict)
    assert {"message", "type", "param", "code"} <= body.keys()
    assert body["message"] == ollama_body(error)["error"] != ""
    assert status_of(error) >= 400


def test_openai_bodies_name_type_field_and_code() -> None:
    assert openai_body(SAMPLES[errors.ModelNotFound]) == {
        "error": {
            "message": "model 'nobody' not found",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
            "hint": "vmm pull nobody",
        }
    }
    too_long = openai_body(SAMPLES[errors.ContextLengthExceeded])["error"]
    assert isinstance(too_long, dict)
    assert (too_long["type"], too_long["param"], too_long["code"]) == (
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
    )


def test_clients_are_told_when_to_retry_and_when_not() -> None:
    assert headers_of(errors.Overloaded(retry_after_s=3)) == {"retry-after": "3", "x-should-retry": "true"}
    assert headers_of(errors.ShuttingDown())["x-should-retry"] == "true"
    assert headers_of(errors.ModelLoadFailed("no room")) == {"x-should-retry": "false"}
    assert headers_of(errors.CorruptFile("truncated")) == {"x-should-retry": "false"}


def test_a_foreign_exception_says_nothing_of_our_insides() -> None:
    error = RuntimeError("secret/path.py")
    assert status_of(error) == 500
    assert ollama_body(error) == {"error": "internal server error"}
