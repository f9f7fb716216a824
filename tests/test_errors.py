"""Every error has its answer in every dialect: the status that its tree's drawing says, headers and body."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.exceptions import HTTPException, TooManyRequestsException

from vmm_adapters import errors as adapter_errors
from vmm_server import errors
from vmm_server.api.errors import (
    ANSWERS,
    ANTHROPIC_TYPES,
    OPENAI_TYPES,
    anthropic_body,
    body_for,
    headers_of,
    ollama_body,
    openai_body,
    status_of,
)
from vmm_server.logs import request_id

SAMPLES: dict[type[Exception], Exception] = {
    errors.ContextLengthExceeded: errors.ContextLengthExceeded(limit=4096, asked=5000, param="messages"),
    errors.HostNotAllowed: errors.HostNotAllowed("evil.test"),
    errors.OriginNotAllowed: errors.OriginNotAllowed("https://evil.test"),
    errors.InvalidModelName: errors.InvalidModelName("a b"),
    errors.UnsupportedCapability: errors.UnsupportedCapability("bert", "chat"),
    errors.ModelNotFound: errors.ModelNotFound("nobody"),
    errors.ModelArriving: errors.ModelArriving("smollm2"),
    errors.PreviousResponseNotFound: errors.PreviousResponseNotFound("resp_1"),
    errors.RequestCancelled: errors.RequestCancelled(),
    errors.ResponseNotFound: errors.ResponseNotFound("resp_1"),
    errors.BlobNotFound: errors.BlobNotFound("sha256:00"),
    errors.FileNotFound: errors.FileNotFound("file-1"),
    errors.BatchNotFound: errors.BatchNotFound("batch_1"),
    errors.Overloaded: errors.Overloaded(retry_after_s=3),
    errors.DeadlineUnreachable: errors.DeadlineUnreachable(timeout_ms=100, expected_ms=900, retry_after_s=3),
    errors.DeadlineExceeded: errors.DeadlineExceeded(),
    errors.RateLimited: errors.RateLimited("60 requests a minute", retry_after_s=3),
    errors.PlacementFailed: errors.PlacementFailed("the device CPU failed: it burnt down"),
    errors.ShuttingDown: errors.ShuttingDown(),
    errors.DigestMismatch: errors.DigestMismatch("weights", expected="a" * 64, actual="b" * 64),
}
"""Errors whose constructor takes more than a message."""

WORDS = """
AdapterError             500 no      api             api
AddressInUse             500 no      api             api
BatchNotFound            404 no      not_found       not_found       - batch_id
BlobNotFound             404 no      not_found       not_found       - digest
ContextLengthExceeded    400 no      invalid_request invalid_request context_length_exceeded messages
CorruptFile              500 no      api             api
DeadlineExceeded         504 no      api             timeout         deadline_exceeded
DeadlineUnreachable      503 after-3 api             overloaded
DeviceLost               500 no      api             api
DigestMismatch           502 no      api             api
FileNotFound             404 no      not_found       not_found       - file_id
GenerationFailed         500 yes     api             api
HostNotAllowed           403 no      permission      permission
ImportFailed             500 no      api             api
InvalidCard              500 no      api             api
InvalidModelName         400 no      invalid_request invalid_request - model
InvalidRequest           400 no      invalid_request invalid_request
LoadTimeout              503 after-5 api             overloaded
ModelArriving            503 after-5 api             overloaded      - model
ModelLoadFailed          500 no      api             api
ModelNotFound            404 no      not_found       not_found       model_not_found model
ModelReplaced            503 after-1 api             overloaded
OriginNotAllowed         403 no      permission      permission
OutOfMemory              500 no      api             api
Overloaded               503 after-3 api             overloaded
PermissionDenied         403 no      permission      permission      insufficient_permissions
PlacementFailed          500 yes     api             api
PreviousResponseNotFound 400 no      invalid_request invalid_request previous_response_not_found previous_response_id
RateLimited              429 after-3 rate_limit      rate_limit      rate_limit_exceeded
RequestCancelled         499 no      invalid_request invalid_request
ResponseNotFound         404 no      not_found       not_found       - response_id
RuntimeFailed            500 no      api             api
RuntimeMissing           500 no      api             api
SettingsError            500 no      api             api
ShuttingDown             503 after-5 api             overloaded
SourceError              502 yes     api             api
SourceNotFound           404 no      not_found       not_found
StoreError               507 no      api             api
Unauthenticated          401 no      authentication  authentication  invalid_api_key
UnsupportedArchitecture  500 no      api             api
UnsupportedCapability    400 no      invalid_request invalid_request - model
UnsupportedModel         500 no      api             api
UnsupportedParameter     400 no      invalid_request invalid_request unsupported_parameter
VMMError                 500 no      api             api
"""
"""Class, status, whether to try again, OpenAI's and Anthropic's type without `_error`, OpenAI's code and param."""
EXPECTED = {row.split()[0]: row.split()[1:] for row in WORDS.strip().splitlines()}


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def sample(kind: type[Exception]) -> Any:
    return SAMPLES.get(kind) or kind("it broke")


def by_name(root: type[Exception]) -> list[type[Exception]]:
    """Also those that a module beside `errors.py` defines for itself."""
    package = root.__module__.partition(".")[0]
    return sorted((kind for kind in set(family(root)) if kind.__module__.startswith(package)), key=lambda k: k.__name__)


VMM_ERRORS = by_name(errors.VMMError)
ALL_ERRORS = VMM_ERRORS + by_name(adapter_errors.AdapterError)
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
    assert any(base in ANSWERS for base in kind.__mro__[: kind.__mro__.index(errors.VMMError)]), "give it a row"


def test_nothing_is_drawn_that_does_not_exist() -> None:
    assert set(DRAWN) == {kind.__name__ for kind in VMM_ERRORS} - {"VMMError"}


def test_every_error_is_expected_below_and_nothing_else() -> None:
    assert EXPECTED.keys() == {kind.__name__ for kind in ALL_ERRORS}


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_is_answered_in_the_words_of_each_dialect(kind: type[Exception]) -> None:
    status, retry, openai_type, anthropic_type, *code_and_param = EXPECTED[kind.__name__]
    code, param = [None if word == "-" else word for word in [*code_and_param, "-", "-"][:2]]
    error = sample(kind)
    hint = {"hint": error.hint} if error.hint else {}
    assert status_of(error) == int(status)
    assert openai_body(error) == {
        "error": {"message": error.message, "type": f"{openai_type}_error", "param": param, "code": code} | hint
    }
    assert ollama_body(error) == {"error": error.message} | hint
    told = "prompt is too long: 5000 tokens > 4096 maximum" if code == "context_length_exceeded" else error.message
    assert anthropic_body(error) == {
        "type": "error",
        "error": {"type": f"{anthropic_type}_error", "message": told} | hint,
        "request_id": "-",
    }
    pause = re.fullmatch(r"after-(\d+)", retry)
    expected = {"x-should-retry": "false" if retry == "no" else "true"}
    expected |= {"www-authenticate": "Bearer"} if status == "401" else {}
    assert headers_of(error) == expected | ({"retry-after": pause[1]} if pause else {})


@pytest.mark.parametrize(
    ("status", "openai_type", "anthropic_type", "retry"),
    [
        (400, "invalid_request_error", "invalid_request_error", "false"),
        (401, "authentication_error", "authentication_error", "false"),
        (403, "permission_error", "permission_error", "false"),
        (404, "not_found_error", "not_found_error", "false"),
        (405, "invalid_request_error", "invalid_request_error", "false"),
        (408, "invalid_request_error", "invalid_request_error", "true"),
        (413, "invalid_request_error", "request_too_large", "false"),
        (429, "rate_limit_error", "rate_limit_error", "true"),
        (500, "api_error", "api_error", "false"),
        (503, "api_error", "overloaded_error", "false"),
        (504, "api_error", "timeout_error", "false"),
    ],
)
def test_the_frameworks_errors_are_named_by_their_status(
    status: int, openai_type: str, anthropic_type: str, retry: str
) -> None:
    error = HTTPException(status_code=status, detail="what it says")
    openai: Any = openai_body(error)
    anthropic: Any = anthropic_body(error)
    assert (openai["error"]["type"], anthropic["error"]["type"]) == (openai_type, anthropic_type)
    assert headers_of(error)["x-should-retry"] == retry
    assert openai["error"]["message"] == ("what it says" if status < 500 else "internal server error")


def test_a_framework_errors_own_headers_are_kept() -> None:
    error = TooManyRequestsException(headers={"retry-after": "7"})
    assert headers_of(error) == {"retry-after": "7", "x-should-retry": "true"}


def test_anthropic_bodies_carry_the_id_of_the_request() -> None:
    token = request_id.set("req-1")
    try:
        assert anthropic_body(errors.Overloaded())["request_id"] == "req-1"
    finally:
        request_id.reset(token)


def test_each_path_has_its_dialect() -> None:
    assert body_for("/v1/messages") is body_for("/v1/messages/count_tokens") is anthropic_body
    assert body_for("/v1") is body_for("/v1/chat/completions") is body_for("/v1/messagesX") is openai_body
    assert body_for("/api") is body_for("/api/chat") is ollama_body
    assert body_for("/") is body_for("/v12") is body_for("/apis") is body_for("/health") is None


def test_a_foreign_exception_says_nothing_of_our_insides() -> None:
    error = RuntimeError("secret/path.py")
    assert status_of(error) == 500
    assert ollama_body(error) == {"error": "internal server error"}
    assert headers_of(error) == {"x-should-retry": "false"}


PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text()


@pytest.mark.parametrize("status", [*sorted({*OPENAI_TYPES, *ANTHROPIC_TYPES}), 400, 405, 500, 502, 507])
def test_the_page_on_errors_tells_each_type(status: int) -> None:
    error = HTTPException(status_code=status)
    bodies: list[Any] = [openai_body(error), anthropic_body(error)]
    label = status if {status} & {*OPENAI_TYPES, *ANTHROPIC_TYPES} else f"other {status // 100}xx"
    assert "| {} | `{}` | `{}` |\n".format(label, *(body["error"]["type"] for body in bodies)) in PAGE


def test_the_page_on_errors_tells_what_may_be_tried_again() -> None:
    (sentence,) = re.findall(r"It is `true` for (.*)\.\n", PAGE)
    assert set(re.findall(r"\w+", sentence)) - {"and"} == {
        kind.__name__ for kind, answer in ANSWERS.items() if answer.retry
    }


@pytest.mark.parametrize("kind", [kind for kind in ALL_ERRORS if getattr(kind, "code", None)])
def test_the_page_on_errors_tells_each_code(kind: type[errors.VMMError]) -> None:
    assert re.search(rf"^\| `{kind.__name__}` \|.*code `{kind.code}`", PAGE, re.M)
