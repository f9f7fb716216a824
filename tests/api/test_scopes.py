"""The table of scopes: all routes are in it, and the page for operators has it as it is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.routes import HTTPRoute, WebSocketRoute

from vmm_server.api.scopes import ANYTHING_ELSE, RULES, WEBSOCKET, Rule, rule_for

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
PUBLIC = ("/", "/health", "/api/vmm/dashboard")
"""The last is a page without any figures: it asks its reader for the key that it opens `/api/vmm/events` with."""
PATHS = [rule.path for rule in RULES]


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of all that an app answers; parts that stand for something are filled in."""
    for route in app.routes:
        path = re.sub(r"{[^}]*}", "x", route.path_format)
        if isinstance(route, WebSocketRoute):
            yield WEBSOCKET, path
        elif isinstance(route, HTTPRoute):
            yield from ((method, path) for method in sorted(route.methods - {"OPTIONS"}))
        else:
            raise AssertionError(f"{route} is of a kind that nobody has thought of")


def test_somebody_has_thought_of_every_route(make_app: Any) -> None:
    found = [*routes(make_app())]
    assert len(found) > 40
    assert [route for route in found if rule_for(*route) is ANYTHING_ELSE] == []


def test_the_page_has_the_table_as_it_is() -> None:
    written = set()
    for row in re.findall(r"^\| `/.*\|$", PAGE.partition("| Routes | Methods |")[2].partition("\n\n")[0], re.M):
        paths, methods, scopes, counts = (cell.strip() for cell in row.strip("|").split("|"))
        named = () if scopes == "none" else tuple(scopes.split(", "))
        for path in re.findall(r"`([^`]+)`", paths):
            written |= {(path, method, named, counts) for method in methods.split(", ")}
    assert written == {(rule.path, method, rule.scopes, held(rule)) for rule in RULES for method in rule.methods}


def held(rule: Rule) -> str:
    """What is held against the quotas of a key."""
    return "each message" if rule.by_message else "yes" if rule.runs else "no"


def test_nothing_but_health_the_root_and_an_empty_page_is_public() -> None:
    assert {rule.path for rule in RULES if not rule.scopes} == {*PUBLIC}
    assert all(rule.methods == ("GET",) for rule in RULES if not rule.scopes)


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/health/live", ()),
        ("POST", "/health/live", ("admin",)),
        ("GET", "/healthy", ("admin",)),
        ("GET", "//", ("admin",)),
        ("GET", "//metrics", ("admin",)),
        ("GET", "/metrics", ("metrics",)),
        ("GET", "/metrics/x", ("metrics",)),
        ("GET", "", ("admin",)),
        ("POST", "/v1/vision/detect", ("inference",)),
        (WEBSOCKET, "/v1/vision/stream", ("inference",)),
        (WEBSOCKET, "/v1/vision", ("admin",)),
        ("POST", "/v1/responses/x/cancel", ("inference",)),
        ("GET", "/v1/models/org/name:tag", ("inference", "models")),
        ("DELETE", "/v1/models/x", ("admin",)),
        ("GET", "/api/generate", ("admin",)),
        ("POST", "/api/generated", ("admin",)),
        ("POST", "/API/pull", ("admin",)),
        ("POST", "/api/vmm/anything", ("admin",)),
        ("POST", "/nowhere", ("admin",)),
    ],
)
def test_what_is_not_in_the_table_needs_admin(method: str, path: str, scopes: tuple[str, ...]) -> None:
    assert rule_for(method, path).scopes == scopes


@given(
    st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", WEBSOCKET, "get", ""]),
    st.sampled_from(PATHS) | st.just(""),
    st.text("/.%avhelt12 _-\\\0é", max_size=12),
)
def test_no_path_is_open_but_those_of_rules(method: str, root: str, rest: str) -> None:
    rule = rule_for(method, root + rest)
    if rule is not ANYTHING_ELSE:
        assert method in rule.methods
        assert root + rest == rule.path or (root + rest).startswith(rule.path.rstrip("/") + "/")
    if not rule.scopes:
        assert (root + rest) in PUBLIC or (root + rest).startswith(("/health/", "/api/vmm/dashboard/"))
