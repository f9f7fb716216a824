"""Who may ask, for what, and how much: the keys of one server, in `<home>/keys.toml`.

A secret is 256 random bits, and the file has its SHA-256. That is as safe as one of the slow hashes that passwords
need: those make guessing dear, and nobody guesses 256 bits. So a look-up costs a request microseconds.

Once there is a key, everybody needs one. That stays so until the server is started anew, whatever happens to the file:
revoking the last key, or losing the file, lets nobody in.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from filelock import FileLock
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from vmm_server.callers import MAX_PRIORITY, MIN_PRIORITY
from vmm_server.errors import InvalidRequest, SettingsError, StoreError
from vmm_server.models.disk import write_atomically

logger = logging.getLogger(__name__)

Scope = Literal["inference", "models", "metrics", "admin"]
"""What a key may do: run models; fetch, make and delete them; read figures; everything."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
KEYS_FILE = "keys.toml"
"""In the home folder."""
SECRET_PREFIX = "vmm-"
SHOWN_CHARACTERS = 6
"""Of a secret, in lists: enough to tell keys apart, and 36 of its 256 bits."""
LOOK_EVERY_S = 1.0
"""How often a server looks whether the file has changed, at most: so soon is a revoked key of no use any more."""
_HEAD = """\
# Keys of this server; `vmm keys` makes and revokes them. Of a secret, its SHA-256 is here and nothing else.
# Limits may be changed by hand: a running server sees it at once.
"""
_TABLE = re.compile(r"\s*\[\[\s*keys\s*\]\]")


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", name):
        raise ValueError("must be 1 to 64 letters, digits and . _ @ -, and begin with a letter or a digit")
    return name


Count = Annotated[int, Field(ge=1, le=10**12)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key, and what it may do. A limit that is `None` is none."""

    id: Annotated[str, Field(pattern=r"^key-[0-9a-f]{12}$")]
    name: Annotated[str, AfterValidator(_plain_name)]
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,16}$")]
    """How its secret begins, for people who look at lists."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)
    created_at: AwareDatetime
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Its share beside other keys of the same priority."""
    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)] = 0
    """The best that its requests may have; lower goes first."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent: Count | None = None
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def allows(self, scopes: Iterable[str]) -> bool:
        """Whether it may do what one of these scopes may."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def is_valid(self, now: datetime) -> bool:
        """Whether it was neither revoked nor has expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


_CHECK = TypeAdapter(Key)


class KeyRing:
    """The keys of one file. `find` sees within `LOOK_EVERY_S` what other processes did to it."""

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `SettingsError` for a file that cannot be read, or is wrong."""
        self._path = path
        self._now = now
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._own: Key | None = None
        self._seen: object = None
        self._looked_at = clock()
        self._is_required = False
        self.reload()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them, revoked and expired ones too, in the order they were made."""
        return self._keys

    @property
    def is_required(self) -> bool:
        """Whether a request needs a key."""
        self._look()
        return self._is_required

    def find(self, secret: str) -> Key | None:
        """The key that a secret belongs to, if it is valid. Takes the same time whatever the secret is."""
        self._look()
        digest = _digest(secret)
        known = self._keys if self._own is None else (*self._keys, self._own)
        found = [key for key in known if hmac.compare_digest(key.sha256, digest)]
        return next((key for key in found if key.is_valid(self._now())), None)

    def get(self, key_id: str) -> Key | None:
        """The key with an id, if it is valid."""
        self._look()
        return next((key for key in self._keys if key.id == key_id and key.is_valid(self._now())), None)

    def reload(self) -> None:
        """Read the file. Raises `SettingsError` naming line and field; then all stays as it was."""
        seen = _stamp(self._path)
        self._keys = read_keys(self._path)
        self._seen = seen
        self._is_required = self._is_required or bool(self._keys)

    def create(
        self, name: str, *, scopes: Iterable[str] = ("inference",), lifetime: timedelta | None = None, **limits: object
    ) -> tuple[Key, str]:
        """Make a key; returns its secret beside it, which is nowhere else. `limits` are fields of `Key`.

        Raises `InvalidRequest` naming the field, `SettingsError`, `StoreError`.
        """
        now = self._now().replace(microsecond=0)
        expires_at = None if lifetime is None else now + lifetime
        key, secret = _new_key(name, now, {"scopes": tuple(scopes), "expires_at": expires_at, **limits})
        with self._changing():
            if any(key.name == other.name for other in self._keys if other.revoked_at is None):
                hint = f"take another name, or vmm keys revoke {key.name}"
                raise InvalidRequest(f"name: there is a key {key.name!r} already", param="name", hint=hint)
            self._write((*self._keys, key))
        return key, secret

    def add_own(self) -> str:
        """A key of this process alone, which is in no file and may do everything. Returns its secret."""
        self._own, secret = _new_key("this-process", self._now(), {"scopes": ("admin",)})
        return secret

    def revoke(self, id_or_name: str) -> Key:
        """Make a key of no use. It stays in the file, so that its id is never another's.

        Raises `InvalidRequest` where there is no such key, `SettingsError`, `StoreError`.
        """
        with self._changing():
            live = [key for key in self._keys if key.revoked_at is None]
            found = next((key for key in live if id_or_name in (key.id, key.name)), None)
            if found is None:
                raise InvalidRequest(f"there is no key {id_or_name[:100]!r}", param="name", hint="vmm keys list")
            revoked = replace(found, revoked_at=self._now().replace(microsecond=0))
            self._write(tuple(revoked if key is found else key for key in self._keys))
        return revoked

    def _look(self) -> None:
        """Read the file again if it has changed. A look is one system call, and the file is small: no thread is worth
        that."""
        if self._clock() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        seen = _stamp(self._path)
        if seen == self._seen:
            return
        self._seen = seen  # what is wrong with it is said once
        try:
            self.reload()
        except SettingsError as error:
            logger.error("the keys stay as they were: %s", error.message)
        else:
            logger.info("read %d keys from %s", len(self._keys), self._path)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file, as it is now."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock"):
                self.reload()
                yield
        except OSError as error:
            hint = "see that the disk has room, and that the folder is yours to write to"
            raise StoreError(f"cannot write {self._path}: {error.strerror or error}", hint=hint) from error

    def _write(self, keys: tuple[Key, ...]) -> None:
        write_atomically(self._path, (_HEAD + "".join(map(_shown, keys))).encode(), mode=0o600)
        self.reload()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; none where there is no file. Raises `SettingsError` naming file, line and field."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:  # the latter: bytes that are no text, or TOML with the line of its mistake
        raise SettingsError(f"{path}: {error}", param=KEYS_FILE) from error
    entries = document.pop("keys", [])
    if document or not isinstance(entries, list):
        raise SettingsError(f"{path}: {next(iter(document), 'keys')!r} is no [[keys]] table", param=KEYS_FILE)
    keys = tuple(_key(entry, path, text, index) for index, entry in enumerate(entries))
    for name, values in {
        "id": [key.id for key in keys],
        "sha256": [key.sha256 for key in keys],
        "name": [key.name for key in keys if key.revoked_at is None],
    }.items():
        value, count = next(iter(Counter(values).most_common(1)), ("", 0))
        if count > 1:
            raise SettingsError(f"{path}: {name}: {count} keys have {value!r}", param=KEYS_FILE)
    return keys


def _new_key(name: str, now: datetime, more: Mapping[str, object]) -> tuple[Key, str]:
    secret = SECRET_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    given: dict[str, object] = {
        "id": f"key-{secrets.token_hex(6)}",
        "name": name,
        "prefix": secret[: len(SECRET_PREFIX) + SHOWN_CHARACTERS],
        "sha256": _digest(secret),
        "created_at": now,
    }
    try:
        return _CHECK.validate_python({**given, **more}), secret
    except ValidationError as error:
        where, message = _first(error)
        raise InvalidRequest(f"{where}: {message}", param=where) from error


def _key(entry: object, path: Path, text: str, index: int) -> Key:
    try:
        return _CHECK.validate_python(entry)
    except ValidationError as error:
        where, message = _first(error)
        line = _line_of(text, index, where)
        raise SettingsError(f"{path}, line {line}: {where}: {message}", param=where or KEYS_FILE) from error


def _first(error: ValidationError) -> tuple[str, str]:
    """The field that is wrong, and how."""
    first = error.errors(include_url=False)[0]
    return str(next(iter(first["loc"]), "")), _lower(first["msg"].removeprefix("Value error, "))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _line_of(text: str, index: int, name: str) -> int:
    """The line that a field of the key with this index is on; that of the key, where the field is missing."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _TABLE.match(line)]
    start = starts[index] if index < len(starts) else 0
    end = starts[index + 1] if index + 1 < len(starts) else len(lines)
    found = re.compile(rf"\s*{re.escape(name)}\s*=")
    return 1 + next((number for number in range(start, end) if found.match(lines[number])), start)


def _shown(key: Key) -> str:
    """A key as TOML. Its strings are ASCII, where JSON's spelling is TOML's as well."""
    values = {each.name: getattr(key, each.name) for each in fields(key)}
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
    return "\n[[keys]]\n" + "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps(sorted(value) if isinstance(value, frozenset) else value)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> object:
    """Changes whenever the file does: it is always replaced whole, so has a new inode."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
