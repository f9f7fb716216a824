"""Keys: what a file may say, who is found, and what a running server sees of changes."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidRequest, SettingsError, StoreError
from vmm_server.keys import LOOK_EVERY_S, SCOPES, SECRET_PREFIX, KeyRing, read_keys


class Clock(Protocol):
    def __call__(self) -> float: ...
    def advance(self, seconds: float) -> None: ...


class Calendar:
    """A time of day that stands still."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.toml"


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def ring(path: Path, clock: Clock, calendar: Calendar) -> KeyRing:
    return KeyRing(path, now=calendar, clock=clock)


def test_without_a_file_nobody_needs_a_key(ring: KeyRing, path: Path) -> None:
    assert not ring.is_required
    assert ring.find("ollama") is None
    assert not path.parent.exists()


def test_a_secret_is_told_once_and_kept_as_its_hash_alone(ring: KeyRing, path: Path) -> None:
    key, secret = ring.create("team-a")
    assert secret.startswith(SECRET_PREFIX)
    assert len(secret) == len(SECRET_PREFIX) + 43  # 32 bytes
    assert ring.find(secret) == key
    assert ring.get(key.id) == key
    assert secret not in path.read_text()
    assert secret.startswith(key.prefix)
    assert key.sha256 not in repr(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_comes_back_as_it_was_made(ring: KeyRing, path: Path, calendar: Calendar) -> None:
    limits = {"weight": 2.5, "priority": -7, "requests_per_minute": 60, "tokens_per_minute": 10**6, "max_concurrent": 4}
    made = [
        ring.create("a", scopes=("models", "inference"), lifetime=timedelta(days=30), **limits)[0],
        ring.create("b@example.org", scopes=("admin",))[0],
    ]
    found = read_keys(path)
    assert [*found] == made
    assert found[0].expires_at == calendar.now + timedelta(days=30)
    assert found[0].scopes == {"inference", "models"}
    assert found[1].max_concurrent is None


def test_the_only_key_that_a_secret_finds_is_its_own(ring: KeyRing) -> None:
    (first, secret), (second, other) = ring.create("first"), ring.create("second")
    assert ring.find(secret) == first
    assert ring.find(other) == second
    for wrong in ("", secret[:-1], secret + "A", secret.lower(), first.id, first.name, first.prefix, first.sha256):
        assert ring.find(wrong) is None


@given(secret=st.text())
def test_any_text_may_be_sent_as_a_secret(secret: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ring = KeyRing(tmp_path_factory.getbasetemp() / "any.toml")
    if not ring.keys:
        ring.create("only")
    assert ring.find(secret) is None


def test_a_key_expires(ring: KeyRing, calendar: Calendar) -> None:
    key, secret = ring.create("guest", lifetime=timedelta(hours=1))
    calendar.now += timedelta(minutes=59, seconds=59)
    assert ring.find(secret)
    calendar.now += timedelta(seconds=1)
    assert ring.find(secret) is None
    assert ring.get(key.id) is None


def test_a_running_server_sees_new_keys_and_revoked_ones_within_a_second(
    ring: KeyRing, path: Path, clock: Clock
) -> None:
    command = KeyRing(path)
    _, secret = command.create("a")
    assert not ring.is_required
    clock.advance(LOOK_EVERY_S)
    assert ring.is_required
    assert ring.find(secret)
    command.revoke("a")
    clock.advance(0.9 * LOOK_EVERY_S)
    assert ring.find(secret)
    clock.advance(0.1 * LOOK_EVERY_S)
    assert ring.find(secret) is None


def test_revoking_the_last_key_lets_nobody_in(ring: KeyRing, path: Path) -> None:
    key, _ = ring.create("a")
    assert ring.revoke(key.id).revoked_at
    assert ring.is_required
    assert KeyRing(path).is_required  # nor after a restart


def test_losing_the_file_lets_nobody_in_until_the_server_is_started_anew(
    ring: KeyRing, path: Path, clock: Clock
) -> None:
    _, secret = ring.create("a")
    path.unlink()
    clock.advance(LOOK_EVERY_S)
    assert ring.find(secret) is None
    assert ring.is_required
    assert not KeyRing(path).is_required


def test_a_name_can_be_taken_again_once_its_key_is_revoked(ring: KeyRing) -> None:
    first, _ = ring.create("a")
    with pytest.raises(InvalidRequest, match="there is a key 'a' already") as caught:
        ring.create("a")
    assert caught.value.param == "name"
    ring.revoke("a")
    second, _ = ring.create("a")
    assert ring.revoke("a").id == second.id
    assert [key.id for key in ring.keys] == [first.id, second.id]
    for gone in ("a", first.id, "nobody"):
        with pytest.raises(InvalidRequest, match=f"there is no key '{gone}'"):
            ring.revoke(gone)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "two words"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("root",)}, "scopes"),
        ({"weight": 0.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"priority": -101}, "priority"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"max_conccurent": 1}, "max_conccurent"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    ring: KeyRing, path: Path, wrong: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ring.create(**({"name": "a"} | wrong))  # type: ignore[arg-type]
    assert caught.value.param == param
    assert not path.exists()


GOOD = """\
[[keys]]
id = "key-0123456789ab"
name = "a"
prefix = "vmm-abc"
sha256 = "{}"
created_at = 2026-11-22T12:00:00Z
scopes = ["inference"]
"""


def good(number: int) -> str:
    text = GOOD.format(f"{number:064x}")
    return text.replace("key-0123456789ab", f"key-{number:012x}").replace('"a"', f'"a{number}"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[keys]\n", "line 1"),
        ("\xff", "keys.toml"),
        ("[keys]\n", "keys"),
        ("[other]\n", "other"),
        (good(1) + "weight = -1\n", "line 8: weight: "),
        (good(1) + "\n" + good(2) + 'max_concurrent = "many"\n', "line 16: max_concurrent: "),
        (good(1) + "\n" + good(2).replace("scopes", "scope"), "line 9: scopes: field required"),
        (good(1) + "\n" + good(2) + "max_conccurent = 1\n", "line 16: max_conccurent: "),
        (good(1).replace("Z", ""), "line 6: created_at: "),
        (good(1).replace('"inference"', '"everything"'), "line 7: scopes: "),
        (good(1).replace("name", "# name"), "name: field required"),
        (good(1) + good(2).replace('"a2"', '"a1"'), "name: 2 keys have 'a1'"),
        (good(1) + good(1).replace('"a1"', '"a2"'), "id: 2 keys have"),
    ],
)
def test_a_broken_file_is_refused_with_line_and_field_and_a_server_keeps_what_it_had(
    ring: KeyRing, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    _, secret = ring.create("a")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        KeyRing(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    with pytest.raises(SettingsError):
        ring.reload()
    for _ in range(3):
        clock.advance(LOOK_EVERY_S)
        assert ring.find(secret)
    assert [said in record.getMessage() for record in caplog.records] == [True]  # once, not with every request
    for change in (lambda: ring.create("b"), lambda: ring.revoke("a")):
        with pytest.raises(SettingsError):
            change()
    assert path.read_bytes() == text.encode("latin-1")


def test_limits_can_be_changed_by_hand(ring: KeyRing, path: Path, clock: Clock) -> None:
    _, secret = ring.create("a")
    path.write_text(path.read_text() + "tokens_per_minute = 5\n")
    clock.advance(LOOK_EVERY_S)
    found = ring.find(secret)
    assert found is not None
    assert found.tokens_per_minute == 5


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ring = KeyRing(tmp_path / "other" / "keys.toml")
    (tmp_path / "other").write_text("")
    with pytest.raises(StoreError, match=r"keys\.toml"):
        ring.create("a")


@pytest.mark.parametrize("scope", SCOPES)
def test_admin_may_do_everything_and_the_others_their_own(ring: KeyRing, scope: str) -> None:
    key, _ = ring.create(scope, scopes=(scope,))
    for needed in SCOPES:
        assert key.allows((needed,)) is (scope in ("admin", needed))
    assert key.allows(("models", "inference")) is (scope != "metrics")
