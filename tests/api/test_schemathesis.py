"""Requests that schemathesis makes of the served document: no failure of ours, and no answer that is not described."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from vmm_server.api.gate import TIMEOUT_HEADER

NUM_CASES = int(os.environ.get("VMM_FUZZ_CASES", "300")) // 100
"""Of each operation, of data that fit its schemas, and of data that do not."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
CHANGES = ("DELETE",)
"""Methods that take away what others need."""
BOUNDED = settings(
    max_examples=max(1, NUM_CASES),
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def names_of(operation: Any) -> list[str]:
    """The models in the examples of an operation."""
    contents = operation.definition.raw.get("requestBody", {}).get("content", {}).values()
    shown = [example["value"] for content in contents for example in content.get("examples", {}).values()]
    return sorted(
        {value["model"] for value in shown if isinstance(value, dict) and isinstance(value.get("model"), str)}
    )


def aimed(case: Case, model: str | None) -> Case:
    """The same request, to a model that is there: any other name is refused before anything else is looked at.

    And without a deadline, which would be answered as it should be: 504.
    """
    if str(case.headers.get(TIMEOUT_HEADER, "")).isdigit():
        del case.headers[TIMEOUT_HEADER]
    if model is not None and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body = {**case.body, "model": model}
    return case


def operations_of(server: Any) -> Iterator[Any]:
    document = server.client.get("/openapi.json").json()
    found = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    yield from sorted(found, key=lambda operation: operation.method.upper() in CHANGES)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_is_a_failure(example_server: Any, install_examples: Any, mode: GenerationMode) -> None:
    num_tried = 0
    for operation in operations_of(example_server):
        models = [*names_of(operation), None]

        @BOUNDED
        @given(operation.as_strategy(generation_mode=mode), st.sampled_from(models))
        def fuzz(case: Case, model: str | None) -> None:
            nonlocal num_tried
            num_tried += 1
            response = aimed(case, model).call(base_url=example_server.url)
            case.validate_response(response, checks=CHECKS)

        try:
            fuzz()
        except Unsatisfiable:  # nothing is wrong data for a path that takes any text
            assert mode is GenerationMode.NEGATIVE
        if operation.method.upper() in CHANGES:
            install_examples(example_server)
    assert num_tried > 40 * max(1, NUM_CASES)
