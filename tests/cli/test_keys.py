"""`vmm keys`, and the commands that talk to a server which asks for one."""

import io
import json
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tests.cli.test_live import Server, end, start

from vmm_server.cli import main
from vmm_server.cli.client import Client
from vmm_server.errors import SettingsError, VMMError
from vmm_server.keys import KEYS_FILE, read_keys

Run = Callable[..., str]


@pytest.fixture
def own_home(tmp_path: Path, home: Path, no_environment: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone, with the models of the module's."""
    (tmp_path / "models").symlink_to(home / "models")
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return tmp_path


@pytest.fixture
def run(own_home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; what it printed."""

    def run(*words: str, code: int = 0) -> str:
        assert main([*words]) == code
        output = capsys.readouterr()
        return output.out if code == 0 else output.err

    return run


def test_the_secret_alone_is_on_stdout(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "team-a", "--max-concurrent", "2"]) == 0
    output = capsys.readouterr()
    (key,) = read_keys(own_home / KEYS_FILE)
    assert re.fullmatch(r"vmm-[\w-]{43}\n", output.out)
    assert output.out.startswith(key.prefix)
    assert output.out.strip() not in output.err
    assert "inference; 2 at a time" in output.err
    assert "from now on every request needs one" in output.err
    assert main(["keys", "create", "team-b"]) == 0
    assert "every request" not in capsys.readouterr().err


def test_keys_may_lie_elsewhere(own_home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMM_KEYS_FILE", str(own_home / "mounted.toml"))
    run("keys", "create", "a")
    assert [key.name for key in read_keys(own_home / "mounted.toml")] == ["a"]
    assert not (own_home / KEYS_FILE).exists()


def test_flags_become_limits(own_home: Path, run: Run) -> None:
    run(
        *("keys", "create", "a", "--scope", "models", "--scope", "metrics", "--weight", "2.5", "--priority", "-3"),
        *("--requests-per-minute", "6", "--tokens-per-minute", "700", "--max-concurrent", "8", "--expires", "30d"),
    )
    (key,) = read_keys(own_home / KEYS_FILE)
    assert (sorted(key.scopes), key.weight, key.priority) == (["metrics", "models"], 2.5, -3)
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent) == (6, 700, 8)
    assert key.expires_at == key.created_at + timedelta(days=30)


def test_a_list_shows_no_more_than_the_beginning_of_a_secret(run: Run) -> None:
    secret = run("keys", "create", "a", "--expires", "90m").strip()
    run("keys", "create", "b", "--scope", "admin")
    run("keys", "revoke", "b")
    header, first, second = run("keys", "list").splitlines()
    assert header.split()[:3] == ["ID", "NAME", "SECRET"]
    assert secret[:10] in first
    assert secret[10:20] not in first
    assert first.endswith("expires 1 hour from now")
    assert second.endswith("revoked")
    listed = json.loads(run("keys", "list", "--json"))
    assert [key["name"] for key in listed] == ["a", "b"]
    assert "sha256" not in listed[0]
    assert datetime.fromisoformat(listed[1]["revoked_at"]).tzinfo


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("create", "two words"), 1, "name: must be"),
        (("create", "a", "--scope", "root"), 2, "--scope"),
        (("create", "a", "--expires", "soon"), 2, "30d"),
        (("create", "a", "--expires", "0d"), 2, "more than 0"),
        (("create", "a", "--expires", "999999d"), 2, "36500d"),
        (("create", "a", "--weight", "0"), 1, "weight: "),
        (("create", "a", "--priority", "101"), 2, "--priority"),
        (("create", "a", "--max-concurrent", "0"), 2, "--max-concurrent"),
        (("revoke", "nobody"), 1, "there is no key 'nobody'"),
    ],
)
def test_what_cannot_be_is_told(run: Run, own_home: Path, words: tuple[str, ...], code: int, told: str) -> None:
    assert told in run("keys", *words, code=code)
    assert not (own_home / KEYS_FILE).exists()


def test_a_server_for_others_does_not_start_without_keys(run: Run) -> None:
    told = run("serve", "--host", "0.0.0.0", "--port", "0", "--default-model", "", code=2)
    assert "no keys" in told
    assert "vmm keys create" in told
    assert "allow_anonymous" in told


def test_a_server_does_not_start_with_keys_that_it_cannot_read(run: Run, own_home: Path) -> None:
    (own_home / KEYS_FILE).write_text("[[keys]]\nname = 7\n")
    assert "keys.toml, line " in run("serve", "--port", "0", "--default-model", "", code=2)


@pytest.fixture
def guarded(run: Run, own_home: Path) -> tuple[Server, str]:
    secret = run("keys", "create", "a").strip()
    return start(own_home), secret


def test_commands_send_the_key_of_the_environment(
    run: Run, guarded: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, secret = guarded
    try:
        assert server.process.stdout is not None
        _, shown = server.process.stdout.readline(), server.process.stdout.readline()
        assert "try:  curl" in shown
        assert "Bearer $VMM_API_KEY" in shown
        told = run("run", "echo", "hello", "--host", server.url, code=1)
        assert "without a key" in told
        assert "hint: set VMM_API_KEY" in told
        monkeypatch.setenv("OLLAMA_API_KEY", secret)
        assert run("run", "echo", "hello", "--host", server.url) == "hello\n"
        monkeypatch.setenv("VMM_API_KEY", "vmm-another")
        assert "not known here" in run("run", "echo", "hello", "--host", server.url, code=1)
        monkeypatch.setenv("VMM_API_KEY", f" {secret}\n")
        assert run("run", "echo", "hello", "--host", server.url) == "hello\n"
        assert "needs a key with the scope models" in run("rm", "echo", "--host", server.url, code=1)
    finally:
        end(server)


def test_a_server_for_the_occasion_knows_who_started_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("keys", "create", "a")
    monkeypatch.setenv("VMM_PORT", "9")  # the discard port: nobody listens
    assert run("run", "echo", "hello") == "hello\n"


@pytest.mark.parametrize("key", ["clé", "a\nb", "a\x00"])
def test_a_key_that_no_header_can_carry_is_told(
    key: str, no_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" not in key:
        monkeypatch.setenv("VMM_API_KEY", key)
        with pytest.raises(SettingsError, match="VMM_API_KEY"):
            Client("http://127.0.0.1:9")
    with pytest.raises(SettingsError):
        Client("http://127.0.0.1:9", api_key=key)


def test_no_key_is_no_header(no_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(401, json={"error": "no"})

    monkeypatch.setenv("VMM_API_KEY", " ")
    with Client("http://127.0.0.1:9", transport=httpx.MockTransport(answer)) as client:
        assert client.answers()  # somebody is there, and another server must not be started beside it
        with pytest.raises(VMMError, match="no") as caught:
            client.installed()
    assert caught.value.hint is not None
    assert "authorization" not in seen[0]
