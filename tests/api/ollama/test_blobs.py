"""`/api/blobs/sha256:<hex>`: uploads of any size, kept when they are what was promised."""

import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

CONTENT = b"weights" * 1000


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_an_upload_is_201_then_200(start_server: Any) -> None:
    client, path = start_server().client, f"/api/blobs/{digest_of(CONTENT)}"
    missing = client.head(path)
    assert (missing.status_code, missing.content) == (404, b"")
    assert client.get(path).json()["error"] == f'blob "{digest_of(CONTENT)}" not found'
    first = client.post(path, content=CONTENT)
    assert (first.status_code, first.content) == (201, b"")
    found = client.head(path)
    assert (found.status_code, found.content) == (200, b"")
    again = client.post(path, content=CONTENT)
    assert (again.status_code, again.content) == (200, b"")
    assert client.head(path.replace("sha256:", "sha256-")).status_code == 200


def test_an_upload_in_chunks_may_be_larger_than_any_json(start_server: Any) -> None:
    server, piece = start_server(), bytes(1024 * 1024)
    num_pieces = server.parts.settings.max_body_size // len(piece) + 2
    hasher = hashlib.sha256()
    for _ in range(num_pieces):
        hasher.update(piece)

    def pieces() -> Iterator[bytes]:
        for _ in range(num_pieces):
            yield piece

    path = f"/api/blobs/sha256:{hasher.hexdigest()}"
    assert server.client.post(path, content=pieces()).status_code == 201
    assert server.client.post(path, content=pieces()).status_code == 200  # read to its end, or the client would fail
    assert server.parts.store.blob(hasher.hexdigest()).stat().st_size == num_pieces * len(piece)


def test_what_was_not_promised_is_not_kept(start_server: Any) -> None:
    server, wanted = start_server(), digest_of(b"other")
    answer = server.client.post(f"/api/blobs/{wanted}", content=CONTENT)
    assert answer.status_code == 400
    assert answer.json()["error"] == f"digest mismatch, expected {wanted}, got {digest_of(CONTENT)}"
    assert answer.headers["x-should-retry"] == "false"
    assert server.client.head(f"/api/blobs/{wanted}").status_code == 404
    assert list(server.parts.store.blobs_dir.iterdir()) == []


@pytest.mark.parametrize("digest", ["x", "sha256:xyz", "sha256:" + "0" * 63, "md5:" + "0" * 64, "..%2f..%2fetc"])
def test_a_digest_that_is_none_is_400(live_server: Any, digest: str) -> None:
    assert live_server.client.head(f"/api/blobs/{digest}").status_code in (400, 404)
    answer = live_server.client.post(f"/api/blobs/{digest}", content=b"x")
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]


def test_a_client_that_leaves_in_the_middle_leaves_nothing(start_server: Any) -> None:
    server = start_server()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /api/blobs/{digest_of(CONTENT)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CONTENT)}\r\n"
        connection.sendall(head.encode() + b"\r\n" + CONTENT[:100])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # nothing: the server has seen that the rest will not come
    assert server.client.head(f"/api/blobs/{digest_of(CONTENT)}").status_code == 404
    assert server.client.post(f"/api/blobs/{digest_of(CONTENT)}", content=CONTENT).status_code == 201
    assert [path.name for path in server.parts.store.blobs_dir.iterdir()] == [digest_of(CONTENT).replace(":", "-")]


def test_a_full_disk_is_said_before_anything_is_read(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server()
    monkeypatch.setattr(server.parts.store, "_free_bytes", lambda _: 10)
    answer = server.client.post(f"/api/blobs/{digest_of(CONTENT)}", content=CONTENT)
    assert answer.status_code == 507
    assert "not enough disk space" in answer.json()["error"]
