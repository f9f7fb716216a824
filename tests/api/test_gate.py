"""Keys around the routes: who gets in, whose request it then is, and what those hear who do not."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import LiveServer, servers_in
from tests.api.test_scopes import routes
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from vmm_server.admission import Admission
from vmm_server.api.gate import KEY_PROTOCOL, MAX_SECRETS, Gate, check_exposure
from vmm_server.api.scopes import WEBSOCKET, rule_for
from vmm_server.callers import MIN_PRIORITY, Caller, caller
from vmm_server.errors import SettingsError
from vmm_server.keys import KEYS_FILE, LOOK_EVERY_S, Key, KeyRing

CHAT = "/v1/chat/completions"
Headers = list[tuple[bytes, bytes]]


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """What a connection came to."""

    status: int
    headers: dict[str, str]
    asked_by: Caller | None
    """`None`: no route was reached."""


@dataclass
class House:
    """A gate before routes that all answer 200, or accept."""

    folder: Path
    max_pending: int = 100
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.keys = KeyRing(self.folder / KEYS_FILE, clock=self.clock)
        self.admission = Admission(max_pending=self.max_pending, clock=self.clock)
        self.gate = Gate(self.keys, self.admission, clock=self.clock)

    def key(self, name: str = "a", **fields: Any) -> tuple[Key, str]:
        return self.keys.create(name, **fields)

    def ask(self, headers: Mapping[str, str] | Headers, path: str = CHAT, method: str = "POST", **scope: Any) -> Answer:
        """One request; header values may be there several times, as a list of pairs."""
        sent: list[Any] = []
        seen: list[Caller] = []
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()] if isinstance(headers, Mapping) else headers

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(caller.get())
            start = {"type": "websocket.accept"} if scope["type"] == "websocket" else {"type": "http.response.start"}
            await send(start | {"status": 200, "headers": []})

        async def send(message: Any) -> None:
            sent.append(message)

        kind = {"type": "websocket"} if method == WEBSOCKET else {"type": "http", "method": method}
        connection = kind | {"path": path, "headers": pairs} | scope
        asyncio.run(self.gate(app, connection, None, send))
        assert caller.get() == Caller()
        started = sent[0]
        shown = {name.decode(): value.decode() for name, value in started["headers"]}
        if "subprotocol" in started:
            shown["subprotocol"] = started["subprotocol"]
        return Answer(started["status"], shown, seen[0] if seen else None)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("headers", [{}, bearer("ollama"), bearer("vmm-unknown"), {"x-api-key": "unused"}])
def test_without_keys_everybody_may_do_everything(house: House, headers: dict[str, str]) -> None:
    for method, path in [("POST", CHAT), ("DELETE", "/api/delete"), ("GET", "/metrics"), ("POST", "/nowhere")]:
        answer = house.ask(headers, path, method)
        assert answer.status == 200
        assert answer.asked_by is not None
        assert (answer.asked_by.tenant, answer.asked_by.priority) == ("", 0)
        assert answer.asked_by.best_priority == MIN_PRIORITY


def test_the_first_key_shuts_out_everybody_else_at_once(house: House) -> None:
    assert house.ask({}).status == 200
    _, secret = KeyRing(house.folder / KEYS_FILE).create("another-process")
    house.clock.now += LOOK_EVERY_S
    assert house.ask({}).status == 401
    assert house.ask(bearer(secret)).status == 200
    KeyRing(house.folder / KEYS_FILE).revoke("another-process")
    house.clock.now += LOOK_EVERY_S
    assert house.ask(bearer(secret)).status == 401


def test_a_key_may_come_in_any_of_the_usual_ways(house: House) -> None:
    key, secret = house.key()
    ways: list[dict[str, str]] = [
        bearer(secret),
        {"authorization": f"bearer   {secret} "},
        {"x-api-key": secret},
        {"x-api-key": "another", "authorization": f"Bearer {secret}"},
        {"x-api-key": secret, "authorization": "Bearer unused"},
    ]
    for headers in ways:
        asked_by = house.ask(headers).asked_by
        assert asked_by is not None, headers
        assert asked_by.tenant == key.id
    for headers in ({"authorization": secret}, {"authorization": f"Basic {secret}"}, {"cookie": secret}, bearer("")):
        assert house.ask(headers).status == 401, headers
    assert house.ask({}, scheme="http", query_string=f"key={secret}".encode()).status == 401


def test_nobody_tries_many_keys_with_one_request(house: House) -> None:
    _, secret = house.key()
    tries = [(b"x-api-key", f"vmm-{number}".encode()) for number in range(MAX_SECRETS - 1)]
    assert house.ask([*tries, (b"x-api-key", secret.encode())]).status == 200
    assert house.ask([*tries, (b"x-api-key", b"one more"), (b"x-api-key", secret.encode())]).status == 401


def test_a_websocket_of_a_browser_has_its_key_in_a_subprotocol(house: House) -> None:
    _, secret = house.key()
    url, key_protocol = "/v1/vision/stream", KEY_PROTOCOL + secret
    for offered, chosen in [(["realtime", key_protocol], "realtime"), ([key_protocol, "realtime"], "realtime")]:
        answer = house.ask({}, url, WEBSOCKET, subprotocols=offered)
        assert (answer.status, answer.headers["subprotocol"]) == (200, chosen)
    assert house.ask({}, url, WEBSOCKET, subprotocols=[key_protocol]).headers["subprotocol"] == key_protocol
    assert house.ask(bearer(secret), url, WEBSOCKET, subprotocols=["a"]).headers["subprotocol"] == "a"
    assert "subprotocol" not in house.ask(bearer(secret), url, WEBSOCKET, subprotocols=[]).headers
    assert house.ask({}, url, WEBSOCKET, subprotocols=["realtime", KEY_PROTOCOL + "vmm-x"]).status == 401
    assert house.ask({}, url, WEBSOCKET, subprotocols=["realtime", secret]).status == 401


def test_a_scope_opens_its_routes_and_no_others(house: House) -> None:
    secrets = {scope: house.key(scope, scopes=(scope,))[1] for scope in ("inference", "models", "metrics", "admin")}
    open_to = {
        ("POST", CHAT): {"inference"},
        ("GET", "/v1/models"): {"inference", "models"},
        ("POST", "/api/pull"): {"models"},
        ("GET", "/metrics"): {"metrics"},
        ("POST", "/api/vmm/reload"): set(),
        ("GET", "/nowhere"): set(),
        ("GET", CHAT): set(),
        ("OPTIONS", CHAT): set(),
        ("GET", "/api/version"): {"inference", "models", "metrics"},
    }
    for (method, path), scopes in open_to.items():
        for scope, secret in secrets.items():
            expected = 200 if scope in {*scopes, "admin"} else 403
            assert house.ask(bearer(secret), path, method).status == expected, (method, path, scope)
    assert house.admission.stats.num_rejected["permission_denied", house.keys.keys[0].id] > 0


def test_health_and_the_root_need_no_key_and_a_key_does_no_harm(house: House) -> None:
    _, secret = house.key()
    for path in ("/", "/health", "/health/live", "/health/ready"):
        for headers in ({}, bearer("wrong"), bearer(secret)):
            assert house.ask(headers, path, "GET").status == 200


def test_a_caller_is_what_its_key_says(house: House) -> None:
    key, secret = house.key(weight=3, priority=5)
    asked_by = house.ask(bearer(secret)).asked_by
    assert asked_by is not None
    assert (asked_by.tenant, asked_by.weight, asked_by.priority, asked_by.deadline_at) == (key.id, 3, 5, None)
    asked_by.charge(7)
    assert house.admission.stats.num_tokens == {key.id: 7}


@pytest.mark.parametrize(("value", "priority"), [("5", 5), ("6", 6), ("100", 100), (" +42 ", 42)])
def test_a_request_may_ask_to_go_later(house: House, value: str, priority: int) -> None:
    _, secret = house.key(priority=5)
    asked_by = house.ask(bearer(secret) | {"x-vmm-priority": value}).asked_by
    assert asked_by is not None
    assert (asked_by.priority, asked_by.best_priority) == (priority, 5)


@pytest.mark.parametrize("value", ["4", "-100", "101", "1e1", "5.0", "high", "٦", "1" * 5000, "5,6", "--5"])
def test_it_may_not_ask_to_go_earlier_nor_for_what_is_no_priority(house: House, value: str) -> None:
    _, secret = house.key(priority=5)
    answer = house.ask(bearer(secret) | {"x-vmm-priority": value})
    assert (answer.status, answer.asked_by) == (400, None)


def test_what_is_said_twice_must_be_the_same(house: House) -> None:
    for header, one, other in [(b"x-vmm-priority", b"5", b"6"), (b"x-vmm-timeout-ms", b"5", b"6")]:
        assert house.ask([(header, one), (header, one)]).status == 200
        assert house.ask([(header, one), (header, other)]).status == 400


def test_without_keys_a_request_may_ask_for_any_priority(house: House) -> None:
    asked_by = house.ask({"x-vmm-priority": "-100"}).asked_by
    assert asked_by is not None
    assert asked_by.priority == -100


def test_a_timeout_is_a_deadline_on_the_clock(house: House) -> None:
    asked_by = house.ask({"x-vmm-timeout-ms": "1500"}).asked_by
    assert asked_by is not None
    assert asked_by.deadline_at == house.clock.now + 1.5
    for value in ("0", "-1", "1.5", "soon", "86400001"):
        assert house.ask({"x-vmm-timeout-ms": value}).status == 400, value
    assert house.ask({"x-vmm-timeout-ms": "86400000"}).status == 200
    assert house.ask({"x-vmm-timeout-ms": "5"}, "/v1/vision/stream", WEBSOCKET).status == 400


def test_where_no_model_runs_these_headers_say_nothing(house: House) -> None:
    asked_by = house.ask({"x-vmm-timeout-ms": "soon", "x-vmm-priority": "high"}, "/v1/models", "GET").asked_by
    assert asked_by is not None
    assert asked_by.deadline_at is None


def test_quotas_are_told_and_held(house: House) -> None:
    _, secret = house.key(requests_per_minute=2, tokens_per_minute=600)
    first = house.ask(bearer(secret))
    quotas = {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit")}
    assert quotas == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "0s",
    }
    assert house.ask(bearer(secret), "/v1/models", "GET").headers == {}  # where nothing counts, nothing is taken
    assert house.ask(bearer(secret)).status == 200
    refused = house.ask(bearer(secret))
    assert (refused.status, refused.asked_by) == (429, None)
    assert refused.headers["retry-after"] == "30"
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    house.clock.now += 30
    assert house.ask(bearer(secret)).status == 200


def test_too_much_at_a_time_is_503_for_whoever_comes_then(tmp_path: Path) -> None:
    house = House(tmp_path, max_pending=1)
    with house.admission.enter(None):
        refused = house.ask({})
        assert (refused.status, refused.asked_by) == (503, None)
        assert int(refused.headers["retry-after"]) >= 1
        assert house.ask({}, "/v1/models", "GET").status == 200
        assert house.ask({}, "/v1/vision/stream", WEBSOCKET).status == 503
    assert house.ask({}).status == 200
    assert house.admission.stats.num_pending == 0


def test_a_socket_whose_messages_count_does_not_count_itself(house: House) -> None:
    _, secret = house.key(max_concurrent=1, weight=3)
    answer = house.ask(bearer(secret) | {"x-vmm-priority": "7"}, "/v1/stream", WEBSOCKET)
    assert answer.asked_by is not None
    assert (answer.asked_by.weight, answer.asked_by.priority) == (3, 7)
    assert house.admission.stats.num_admitted == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_what_others_can_reach_needs_keys_or_a_word(house: House, settings: Any, host: str) -> None:
    with pytest.raises(SettingsError, match="no keys") as caught:
        check_exposure(settings(host=host), house.keys)
    assert caught.value.hint is not None
    assert "vmm keys create" in caught.value.hint
    assert "allow_anonymous" in caught.value.hint
    check_exposure(settings(host=host, allow_anonymous=True), house.keys)
    with pytest.raises(SettingsError, match=r"keys_file: there is no gone\.toml"):
        check_exposure(settings(keys_file="gone.toml"), house.keys)
    check_exposure(settings(host="127.0.0.1"), house.keys)
    house.key()
    check_exposure(settings(host=host), house.keys)


# Over a real socket.


@dataclass
class Guarded:
    server: LiveServer
    secrets: dict[str, str]

    def ask(self, method: str, path: str, secret: str | None = None) -> int:
        """The status; of a WebSocket, that of the handshake."""
        headers = {} if secret is None else bearer(secret)
        if method != WEBSOCKET:
            return self.server.client.request(method, path, headers=headers, content=b"{").status_code
        try:
            with connect(f"ws://127.0.0.1:{self.server.port}{path}", proxy=None, additional_headers=headers):
                return 101
        except InvalidStatus as error:
            return error.response.status_code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server with a key of each scope."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = KeyRing(folder / "home" / KEYS_FILE)
    secrets = {scope: keys.create(scope, scopes=(scope,))[1] for scope in ("inference", "models", "metrics", "admin")}
    with servers_in(folder) as start:
        yield Guarded(start(), secrets)


@pytest.fixture(scope="module")
def all_routes(guarded: Guarded) -> list[tuple[str, str]]:
    """Those that there are, and some that there are not."""
    found = [*routes(guarded.server.app)]
    assert len(found) > 40
    assert any(method == WEBSOCKET for method, _ in found)
    others = [("HEAD", "/api/tags"), ("POST", "/chat/completions"), ("GET", "/nowhere"), ("PUT", "/api/chat")]
    return [*found, *others, ("OPTIONS", CHAT), (WEBSOCKET, "/nowhere"), ("GET", "/v1/models/")]


def test_without_a_key_no_route_answers_but_the_public_ones(
    guarded: Guarded, all_routes: list[tuple[str, str]]
) -> None:
    public = set()
    for method, path in all_routes:
        for secret in (None, "vmm-wrong"):
            status = guarded.ask(method, path, secret)
            if status != 401:
                public.add((method, path))
    assert public - {("GET", "/api/vmm/dashboard")} == {
        ("GET", path) for path in ("/", *(f"/health{rest}" for rest in ("", "/live", "/ready", "/startup")))
    }


def test_a_key_for_inference_manages_nothing(guarded: Guarded, all_routes: list[tuple[str, str]]) -> None:
    for method, path in all_routes:
        canonical = "/v1" + path if path == "/chat/completions" else path
        scopes = rule_for("GET" if method == "HEAD" else method, canonical).scopes
        if scopes and "inference" not in scopes:
            assert guarded.ask(method, path, guarded.secrets["inference"]) == 403, (method, path)


def test_each_scope_reaches_its_routes(guarded: Guarded) -> None:
    reached = {"inference": "/v1/models", "models": "/api/vmm/profiles", "metrics": "/metrics", "admin": "/metrics"}
    for scope, path in reached.items():
        assert guarded.ask("GET", path, guarded.secrets[scope]) == 200
    assert guarded.ask(WEBSOCKET, "/v1/vision/stream", guarded.secrets["inference"]) == 101
    assert guarded.ask("POST", "/api/pull", guarded.secrets["models"]) == 400  # the route's own words
    assert guarded.ask("GET", "/nowhere", guarded.secrets["admin"]) == 404
    assert guarded.ask("HEAD", "/") == 200


def test_a_browser_opens_a_socket_with_its_key_in_a_subprotocol(guarded: Guarded) -> None:
    url = f"ws://127.0.0.1:{guarded.server.port}/v1/vision/stream"
    offered = [Subprotocol("realtime"), Subprotocol(KEY_PROTOCOL + guarded.secrets["inference"])]
    with connect(url, proxy=None, subprotocols=offered) as socket:
        assert socket.subprotocol == "realtime"
    with pytest.raises(InvalidStatus) as refused, connect(url, proxy=None, subprotocols=offered[:1]):
        raise AssertionError
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", CHAT, "/nowhere"])
def test_refusals_are_in_the_words_of_the_route(guarded: Guarded, path: str) -> None:
    client, secrets = guarded.server.client, guarded.secrets
    for headers, status, kind, code in [
        ({}, 401, "authentication_error", "invalid_api_key"),
        (bearer(secrets["metrics"]), 403, "permission_error", "insufficient_permissions"),
    ]:
        response = client.post(path, headers=headers, json={})
        assert response.status_code == status
        assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-request-id"]
        message = said(response, path, kind, code)
        assert ("key" if status == 401 else "metrics") in message


def said(response: httpx.Response, path: str, kind: str, code: str) -> str:
    """The message, in whatever dialect it is."""
    if path == "/nowhere":
        return response.text
    body = response.json()
    if path == "/api/chat":
        return str(body["error"])
    error = body["error"]
    assert error["type"] == kind
    assert path == "/v1/messages" or error["code"] == code
    return str(error["message"])


def test_a_page_may_ask_before_and_read_its_refusal(guarded: Guarded) -> None:
    page = {"origin": "http://localhost:3000"}
    preflight = guarded.server.client.options(CHAT, headers=page | {"access-control-request-method": "POST"})
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = guarded.server.client.post(CHAT, headers=page, json={})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == page["origin"]


def test_a_response_is_there_for_its_own_tenant_alone(guarded: Guarded) -> None:
    client, mine, others = (
        guarded.server.client,
        bearer(guarded.secrets["inference"]),
        bearer(guarded.secrets["admin"]),
    )
    made = client.post("/v1/responses", headers=mine, json={"model": "echo", "input": "hello"}).json()["id"]
    assert client.get(f"/v1/responses/{made}", headers=others).status_code == 404
    assert client.delete(f"/v1/responses/{made}", headers=others).status_code == 404
    assert client.get(f"/v1/responses/{made}/input_items", headers=others).status_code == 404
    goes_on = {"model": "echo", "input": "again", "previous_response_id": made}
    refused = client.post("/v1/responses", headers=others, json=goes_on)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert client.post("/v1/responses", headers=mine, json=goes_on).status_code == 200
    assert client.get(f"/v1/responses/{made}", headers=mine).status_code == 200


def tokens_of(guarded: Guarded, name: str) -> int:
    key_id = next(key.id for key in guarded.server.parts.keys.keys if key.name == name)
    return guarded.server.parts.admission.stats.num_tokens.get(key_id, 0)


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hello"}]}, ("prompt_tokens", "completion_tokens")),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "n": 3}, ("prompt_tokens", "completion_tokens")),
        (
            "/v1/completions",
            {"prompt": ["one", "two words"], "max_tokens": 5},
            ("prompt_tokens", "completion_tokens"),
        ),
        ("/v1/responses", {"input": "hello"}, ("input_tokens", "output_tokens")),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 9},
            ("input_tokens", "output_tokens"),
        ),
    ],
)
def test_a_key_is_charged_what_its_answers_say(
    guarded: Guarded, path: str, body: dict[str, Any], fields: tuple[str, str]
) -> None:
    before = tokens_of(guarded, "inference")
    response = guarded.server.client.post(
        path, headers=bearer(guarded.secrets["inference"]), json={"model": "echo", **body}
    )
    usage = response.json()["usage"]
    assert tokens_of(guarded, "inference") - before == sum(usage[name] for name in fields) > 0


def test_a_body_may_ask_to_go_later_and_not_earlier(guarded: Guarded) -> None:
    client, headers = guarded.server.client, bearer(guarded.secrets["inference"])
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": False}

    def ask(path: str, body: dict[str, Any], **more: str) -> httpx.Response:
        return client.post(path, headers=headers | {re.sub("_", "-", k): v for k, v in more.items()}, json=chat | body)

    assert ask(CHAT, {"priority": 7}).status_code == 200
    assert ask(CHAT, {"priority": 7}, x_vmm_priority="7").status_code == 200
    assert ask("/api/chat", {"options": {"priority": 7.0}}).status_code == 200
    refusals: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
        (CHAT, {"priority": -1}, {}, "priority"),
        (CHAT, {"priority": 101}, {}, "priority"),
        (CHAT, {"priority": 7}, {"x_vmm_priority": "8"}, "priority"),
        ("/v1/messages", {"priority": -1, "max_tokens": 3}, {}, "priority"),
        ("/api/chat", {"options": {"priority": -1}}, {}, "options.priority"),
    ]
    for path, body, more, where in refusals:
        refused = ask(path, body, **more)
        assert refused.status_code == 400, (path, body)
        assert where in refused.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "words", "input": ["one", "two words"]}),
        ("/v1/rerank", {"model": "pairs", "query": "a", "documents": ["b", "c d"]}),
    ],
)
def test_vectors_and_scores_cost_the_tokens_of_their_texts(
    encoder_server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    before = encoder_server.parts.admission.stats.num_tokens.get("", 0)
    usage = encoder_server.client.post(path, json=body).json()["usage"]
    assert encoder_server.parts.admission.stats.num_tokens[""] - before == usage["total_tokens"] > 0
