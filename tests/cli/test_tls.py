"""https by certificate files."""

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from tests.cli.test_live import Server, end, start

from vmm_server.cli import main
from vmm_server.cli.client import server_url
from vmm_server.cli.tls import renew, server_context
from vmm_server.errors import SettingsError


class Files:
    """A certificate of an authority of its own, and its key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue()

    def issue(self) -> None:
        """Another one in place of the first."""
        self.issued = self.authority.issue_cert("127.0.0.1", "localhost")
        self.issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(part.bytes() for part in self.issued.cert_chain_pems))

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-certificate", str(self.certificate), "--tls-key", str(self.key)

    @property
    def settings(self) -> dict[str, object]:
        return {"tls_certificate": self.certificate, "tls_key": self.key}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_server_speaks_https_and_the_commands_trust_whom_they_are_told_to(
    files: Files, home: Path, no_environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server: Server = start(home, *files.flags)
    try:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(files.ca))
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        with (
            httpx.Client(verify=trusting, trust_env=False) as client,
            client.stream("POST", f"{server.url}/api/chat", json=chat) as reply,
        ):
            assert '"done":true' in reply.read().decode()
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http"), trust_env=False)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        assert main(["ps", "--host", server.url]) == 1
        told = capsys.readouterr().err
        assert "cannot be trusted" in told
        assert "SSL_CERT_FILE" in told
        monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
        assert main(["ps", "--host", server.url]) == 0
        assert "echo:latest" in capsys.readouterr().out
    finally:
        end(server)


def test_the_commands_of_the_same_settings_ask_by_https(files: Files, settings: Any) -> None:
    assert server_url(None, settings(port=8443, **files.settings)) == "https://127.0.0.1:8443"
    assert server_url("other:80", settings(**files.settings)) == "http://other:80"


def test_without_files_there_is_plain_http(settings: Any) -> None:
    assert server_context(settings()) is None


def encrypted(files: Files) -> bytes:
    key = serialization.load_pem_private_key(files.issued.private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


@pytest.mark.parametrize(
    ("spoil", "param", "said"),
    [
        (lambda files: files.certificate.unlink(), "tls_certificate", "server.pem: No such file"),
        (lambda files: files.key.unlink(), "tls_key", "server.key: No such file"),
        (lambda files: files.certificate.write_text("junk"), "tls_certificate", "holds no certificate"),
        (lambda files: files.key.write_text("junk"), "tls_key", "holds no private key"),
        (lambda files: files.certificate.write_bytes(files.key.read_bytes()), "tls_certificate", "holds no cert"),
        (lambda files: trustme.CA().issue_cert("a").private_key_pem.write_to_path(files.key), "tls_key", "is not the"),
        (lambda files: files.key.write_bytes(encrypted(files)), "tls_key", "has a password"),
    ],
)
def test_files_that_are_wrong_are_named(files: Files, settings: Any, spoil: Any, param: str, said: str) -> None:
    spoil(files)
    with pytest.raises(SettingsError, match=said) as caught:
        server_context(settings(**files.settings))
    assert caught.value.param == param


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_the_two_files_go_together(files: Files, settings: Any, missing: str) -> None:
    given = {name: path for name, path in files.settings.items() if name != missing}
    with pytest.raises(SettingsError, match=f"{missing}.*go together") as caught:
        server_context(settings(**given))
    assert caught.value.param == missing


def shown(context: ssl.SSLContext, files: Files) -> bytes | None:
    """The certificate that a client gets to see, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cafile=str(files.ca))
    client = trusting.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    left = {client, server}
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            left.discard(side)
    assert not left
    return client.getpeercert(binary_form=True)


def test_renewed_files_are_shown_to_those_who_come_then(
    files: Files, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configured = settings(**files.settings)
    context = server_context(configured)
    assert context is not None
    first = shown(context, files)
    files.issue()
    assert shown(context, files) == first
    renew(context, configured)
    second = shown(context, files)
    assert second != first
    files.issue()
    files.key.write_text("half a file")
    renew(context, configured)
    assert shown(context, files) == second
    assert "the certificate stays as it was" in caplog.text
    assert "tls_key" in caplog.text
