"""Who may ask from a browser: origins, preflights, and names that were pointed at this machine."""

import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import httpx
import pytest

from vmm_server.api.origins import METHODS, REQUEST_HEADERS, Guard, is_loopback, is_own_address

EVIL = "https://evil.example"
PAGE = "http://localhost:3000"


def guard(settings: Any, **changes: object) -> Guard:
    return Guard(settings(**changes), machine_name="My-Laptop")


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost", "https://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://0.0.0.0"),
        *("app://obsidian.md", "file://", "tauri://localhost", "vscode-webview://0abc", "vscode-file://vscode-app"),
        "HTTP://LOCALHOST:1",
    ],
)
def test_this_machines_origins_may_always_ask(settings: Any, origin: str) -> None:
    assert guard(settings).allows_origin(origin)
    assert guard(settings, origins="https://a.example").allows_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        *(EVIL, "http://localhost.evil.example", "http://evil.example/http://localhost", "https://localhostess"),
        *("null", "ftp://localhost", "chrome-extension://abc", "http://127.0.0.10", "http://192.168.0.7", ""),
        *("xapp://a", "http://localhost.:3000", "http://user@localhost", "http://[::1]"),
    ],
)
def test_others_may_not(settings: Any, origin: str) -> None:
    assert not guard(settings).allows_origin(origin)


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        ("https://a.example", "https://a.example", "https://a.example:444"),
        ("https://a.example/", "https://A.example", "http://a.example"),
        ("https://*.a.example", "https://x.y.a.example", "https://a.example"),
        ("http://192.168.0.*", "http://192.168.0.7", "http://192.168.1.7"),
        ("https://a.example:*", "https://a.example:81", "https://aXexample:81"),
        ("chrome-extension://*", "chrome-extension://abcdef", "moz-extension://abcdef"),
        ("moz-extension://1-2,null", "null", "moz-extension://1-23"),
        ("*.a.example", "https://b.a.example", "https://b.example"),
        ("*", "anything://at.all", None),
    ],
)
def test_more_origins_can_be_allowed(settings: Any, setting: str, allowed: str, refused: str | None) -> None:
    assert guard(settings, origins=setting).allows_origin(allowed)
    assert refused is None or not guard(settings, origins=setting).allows_origin(refused)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:11434", "LOCALHOST", "localhost.", "a.localhost:1", "my-laptop", "MY-LAPTOP:80"),
        *("nas.local", "host.docker.internal:11434", "127.0.0.1", "127.0.0.1:11434", "127.8.9.1", "0.0.0.0:1"),
        *("192.168.1.5:80", "10.0.0.1", "172.16.0.1", "[::1]", "[::1]:11434", "::1", "[fd00::1]:80", "[::]"),
        *("[::ffff:127.0.0.1]", "", ":11434"),
    ],
)
def test_a_loopback_server_goes_by_local_names(settings: Any, host: str) -> None:
    assert guard(settings).allows_host(host)


STRANGE_HOSTS = [
    *(
        "[::ffff:8.8.8.8]",
        "evil.example",
        "evil.example:11434",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evillocalhost",
    ),
    *("local", "internal", ".", "8.8.8.8", "8.8.8.8:80", "[2606:4700::1111]:80", "[localhost]", "localhost:x"),
    *(
        "evil.example/.localhost",
        "evil.example:80.localhost",
        "evil@localhost",
        "localhost,evil.example",
        "[::1",
        "::1]",
    ),
    *("127.1", "0x7f.0.0.1", "2130706433", "evil.example\t.local", "évil.local", "my-laptop.evil.example", "*"),
]


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_it_goes_by_no_other(settings: Any, host: str) -> None:
    assert not guard(settings).allows_host(host)


def test_a_public_address_of_this_machine_is_its_own(settings: Any) -> None:
    own = Guard(settings(), machine_name="m", is_own=lambda address: str(address) in ("8.8.8.8", "2606:4700::1111"))
    for host in ("8.8.8.8", "8.8.8.8:80", "[2606:4700::1111]:80", "[::ffff:8.8.8.8]"):
        assert own.allows_host(host)
    assert not own.allows_host("8.8.4.4")
    assert is_own_address(ip_address("127.0.0.1"))
    assert not is_own_address(ip_address("192.0.2.1"))  # of documents alone (RFC 5737)


def test_more_hosts_can_be_allowed(settings: Any) -> None:
    more = guard(settings, allowed_hosts="AI.example, *.b.example,8.8.8.8, 2606:4700:0::1111")
    for host in ("ai.example:443", "x.b.example", "8.8.8.8", "8.8.8.8:80", "[2606:4700::1111]:80"):
        assert more.allows_host(host)
        assert not guard(settings).allows_host(host)
    assert not more.allows_host("b.example")
    assert guard(settings, allowed_hosts="*").allows_host("evil.example")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("*", False)),
    ],
)
def test_names_count_where_the_server_listens_on_this_machine_alone(
    settings: Any, address: str, loopback: bool
) -> None:
    assert is_loopback(address) is loopback
    assert guard(settings, host=address).allows_host("evil.example") is not loopback


def in_its_dialect(path: str, response: httpx.Response) -> str:
    """The message of an error, in the words of the path's family."""
    if path.startswith("/v1/messages"):
        body = response.json()
        assert body["type"] == "error"
        assert body["error"]["type"] == "permission_error"
        return str(body["error"]["message"])
    if path.startswith("/api"):
        return str(response.json()["error"])
    if response.headers["content-type"].startswith("application/json"):
        assert response.json()["error"]["type"] == "permission_error"
        return str(response.json()["error"]["message"])
    assert response.headers["content-type"].startswith("text/plain")
    return response.text


def routes(app: Any) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        path = re.sub(r"{[^}]*}", "x", route.path_format)
        yield from ((method, path) for method in sorted(getattr(route, "methods", ())))
    yield from (("GET", "/nowhere"), ("POST", "/v1/nowhere"), ("PUT", "/api/chat"), ("POST", "/chat/completions"))


def test_no_route_answers_a_strange_host_or_origin(live_server: Any, make_app: Any) -> None:
    def ask(**headers: str) -> httpx.Response:
        return live_server.client.request(method, path, headers=headers, content=b"{")  # type: ignore[no-any-return]

    for method, path in routes(make_app()):
        refused = ask(host="evil.example")
        assert refused.status_code == 403, (method, path)
        if method != "HEAD":
            assert in_its_dialect(path, refused) == "host 'evil.example' is not allowed"
        refused = ask(origin=EVIL)
        assert refused.status_code == 403, (method, path)
        assert not [name for name in refused.headers if name.startswith("access-control-")]
        assert refused.headers["x-request-id"]
        allowed = ask(origin=PAGE)
        assert allowed.status_code != 403, (method, path)
        assert allowed.headers.get_list("access-control-allow-origin") == [PAGE], (method, path)
        assert "Origin" in allowed.headers["vary"]


def test_a_refusal_says_what_to_set(live_server: Any) -> None:
    host = live_server.client.get("/api/tags", headers={"host": "ai.example:11434"}).json()
    assert host["error"] == "host 'ai.example:11434' is not allowed"
    assert "allowed_hosts" in host["hint"]
    origin = live_server.client.get("/v1/models", headers={"origin": EVIL}).json()["error"]
    assert origin["message"] == f"origin '{EVIL}' is not allowed"
    assert "OLLAMA_ORIGINS" in origin["hint"]


def test_a_preflight_is_answered_before_anything_else(live_server: Any) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "content-type, x-stainless-new-thing, x-strange, x-stainless-\x80"
    for path in ("/v1/chat/completions", "/api/chat", "/nowhere"):
        response = live_server.client.options(path, headers={k: v.encode("latin-1") for k, v in asked.items()})
        assert (response.status_code, response.content) == (204, b"")
        headers = response.headers
        assert headers["access-control-allow-origin"] == PAGE
        assert headers["vary"] == "Origin"
        assert headers["access-control-allow-methods"].split(", ") == list(METHODS)
        assert headers["access-control-allow-headers"].split(", ") == [*REQUEST_HEADERS, "x-stainless-new-thing"]
        assert int(headers["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in headers
    names = {name.lower() for name in REQUEST_HEADERS}
    assert {"x-vmm-device", "x-vmm-backend", "x-vmm-variant"} <= names
    assert {"authorization", "openai-beta", "x-stainless-retry-count", "x-stainless-timeout"} <= names


def test_streams_and_errors_may_be_read_by_an_allowed_page(live_server: Any) -> None:
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    for path, body in [
        ("/api/chat", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", chat | {"model": "nobody"}),
    ]:
        response = live_server.client.post(path, json=body, headers={"origin": PAGE})
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["access-control-expose-headers"] == "*"
    plain = live_server.client.post("/api/chat", json=chat)
    assert not [name for name in plain.headers if name.startswith("access-control-")]


def test_a_server_for_everybody_goes_by_any_name_but_still_asks_for_the_origin(start_server: Any) -> None:
    client = start_server({"host": "0.0.0.0", "allow_anonymous": True}).client
    own = {"host": "ai.example:11434", "origin": "https://AI.example:11434"}
    response = client.get("/api/version", headers=own)
    assert (response.status_code, response.headers.get("access-control-allow-origin")) == (200, None)
    assert client.get("/api/version", headers=own | {"origin": EVIL}).status_code == 403


def test_a_rebound_name_is_refused_though_it_is_of_the_same_origin(live_server: Any) -> None:
    rebound = {"host": "evil.example:11434", "origin": "http://evil.example:11434"}
    assert live_server.client.post("/api/chat", json={"model": "echo"}, headers=rebound).status_code == 403


def test_all_origins_may_be_allowed(start_server: Any) -> None:
    client = start_server({"origins": "*"}).client
    response = client.get("/api/version", headers={"origin": "null"})
    assert (response.headers["access-control-allow-origin"], "vary" in response.headers) == ("*", False)
    preflight = client.options("/api/chat", headers={"origin": EVIL})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /api/version HTTP/1.0\r\n", 200),  # no browser leaves it out
        ("GET /api/version HTTP/1.1\r\nHost: \r\n", 200),
        ("GET /api/version HTTP/1.1\r\nhost: LocalHost\r\n", 200),
        ("GET /api/version HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 403),
        ("GET /api/version HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n", 403),
        ("GET http://evil.example/api/version HTTP/1.1\r\nHost: evil.example\r\n", 403),
        ("GET /api/version HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: null\r\n", 403),
    ],
)
def test_odd_requests_on_the_wire(live_server: Any, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", live_server.port), timeout=10) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert connection.recv(4096).split(b" ")[1] == str(status).encode()
