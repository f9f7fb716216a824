"""Keys, scopes and quotas, around all routes: whose request it is, whether it may, and whether it may now.

Where there are no keys, everybody may do everything, and whatever a client sends as one is nobody's business: many must
send some key. `Guard` stands before this one, and answers preflights, which cannot carry a key.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

from litestar.types import Message

from vmm_server.admission import Admission, tenant_of
from vmm_server.api.origins import is_loopback
from vmm_server.api.placement import PRIORITY_HEADER, TIMEOUT_HEADER, given_priority, whole_number
from vmm_server.api.refusals import STARTS, refuse
from vmm_server.api.scopes import WEBSOCKET, Rule, rule_for
from vmm_server.callers import MIN_PRIORITY, Caller, caller
from vmm_server.durations import format_duration
from vmm_server.errors import (
    InvalidRequest,
    PermissionDenied,
    SettingsError,
    Unauthenticated,
    UnsupportedParameter,
    VMMError,
)
from vmm_server.keys import Key, KeyRing
from vmm_server.request_note import note
from vmm_server.settings import Settings

MAX_TIMEOUT_MS = 24 * 60 * 60 * 1000
KEY_PROTOCOL = "openai-insecure-api-key."
"""How the subprotocol begins in which OpenAI's realtime clients send a key: a browser lets pages set no header."""
MAX_SECRETS = 4
"""Of one request: each is compared with every key."""
_HOW = "send one as `Authorization: Bearer <key>` or as `x-api-key`; `vmm keys create` makes them"


class Gate:
    """Lets in who may."""

    def __init__(self, keys: KeyRing, admission: Admission, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one of `Caller.deadline_at`."""
        self._keys = keys
        self._admission = admission
        self._clock = clock

    async def __call__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any
    ) -> None:
        """Run one ASGI connection as its caller, or refuse it."""
        if scope["type"] not in STARTS:
            await app(scope, receive, send)
            return
        rule = rule_for(scope.get("method", WEBSOCKET), scope["path"])
        key: Key | None = None
        with ExitStack() as entered:
            try:
                key = self._key(scope, rule)
                if (noted := note.get()) is not None:  # also of those that are refused
                    noted.tenant = tenant_of(key)
                if key is not None:
                    self._check_scope(key, rule)
                asking = self._caller(key, scope, rule)
                if rule.runs and not rule.by_message:
                    entered.enter_context(self._admission.enter(key, lasts=scope["type"] == "websocket"))
            except VMMError as error:
                await refuse(scope, error, send, self._quota_headers(key, rule))
                return
            token = caller.set(asking)
            try:
                await app(scope, receive, self._sending(scope, send, key, rule))
            finally:
                caller.reset(token)

    def _key(self, scope: Any, rule: Rule) -> Key | None:
        """Whose request it is. Raises `Unauthenticated` where that must be known, and is not."""
        if not self._keys.is_required:
            return None
        given = [*islice(_secrets(scope), MAX_SECRETS)]
        found = next((key for secret in given if (key := self._keys.find(secret))), None)
        if found is None and rule.scopes:
            self._admission.count_refusal("unauthenticated", None)
            if given:
                raise Unauthenticated("the key is not known here, or was revoked, or has expired", hint=_HOW)
            raise Unauthenticated("this server answers nobody without a key", hint=_HOW)
        return found

    def _check_scope(self, key: Key, rule: Rule) -> None:
        if rule.scopes and not key.allows(rule.scopes):
            self._admission.count_refusal("permission_denied", key)
            raise PermissionDenied(
                f"this needs a key with the scope {' or '.join(rule.scopes)}; "
                f"the key {key.name} has {', '.join(sorted(key.scopes))}"
            )

    def _caller(self, key: Key | None, scope: Any, rule: Rule) -> Caller:
        """The tenant, as urgent as its headers say. Raises `InvalidRequest` naming the header."""
        best = MIN_PRIORITY if key is None else key.priority
        usual = 0 if key is None else key.priority
        asked = given_priority(_values(scope, PRIORITY_HEADER), best) if rule.runs else None
        return Caller(
            tenant_of(key),
            weight=1.0 if key is None else key.weight,
            priority=usual if asked is None else asked,
            best_priority=best,
            deadline_at=self._deadline(scope) if rule.runs else None,
            charge=partial(self._admission.charge, key),
        )

    def _deadline(self, scope: Any) -> float | None:
        times = {whole_number(TIMEOUT_HEADER, value, 1, MAX_TIMEOUT_MS) for value in _values(scope, TIMEOUT_HEADER)}
        if not times:
            return None
        if scope["type"] == "websocket":
            raise UnsupportedParameter(
                f"{TIMEOUT_HEADER}: a connection that stays open has no deadline", param=TIMEOUT_HEADER
            )
        if len(times) > 1:
            raise InvalidRequest(f"{TIMEOUT_HEADER}: there are several, and they differ", param=TIMEOUT_HEADER)
        return self._clock() + times.pop() / 1000

    def _quota_headers(self, key: Key | None, rule: Rule) -> dict[str, str]:
        """What is left of the key's quotas, in OpenAI's headers."""
        headers: dict[str, str] = {}
        for quota in self._admission.quotas(key) if rule.runs else ():
            headers[f"x-ratelimit-limit-{quota.name}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{quota.name}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{quota.name}"] = format_duration(quota.full_in_s)
        return headers

    def _sending(self, scope: Any, send: Any, key: Key | None, rule: Rule) -> Callable[[Message], Awaitable[None]]:
        offered = scope.get("subprotocols", ())

        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_encoded(self._quota_headers(key, rule))]
            elif message["type"] == "websocket.accept" and offered and not message.get("subprotocol"):
                message["subprotocol"] = _chosen(offered)
            await send(message)

        return send_more


def check_exposure(settings: Settings, keys: KeyRing) -> None:
    """Raise `SettingsError` for a server that would let in everybody: one that other machines can reach, or one whose
    file of keys is gone."""
    if settings.keys_file is not None and not settings.keys_file.exists():
        raise SettingsError(
            f"setting keys_file: there is no {settings.keys_file}",
            param="keys_file",
            hint="vmm keys create NAME makes it",
        )
    if keys.is_required or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise SettingsError(
        f"host {settings.host!r}: other machines can reach it, and this server has no keys",
        param="host",
        hint="make a key with: vmm keys create NAME; or set allow_anonymous, and everybody may do everything here",
    )


def _secrets(scope: Any) -> Iterator[str]:
    """What a connection carries as keys, in the order in which they count."""
    for value in _values(scope, "authorization"):
        kind, _, secret = value.partition(" ")
        if kind.lower() == "bearer" and secret.strip():
            yield secret.strip()
    yield from _values(scope, "x-api-key")
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            yield protocol.removeprefix(KEY_PROTOCOL)


def _chosen(offered: list[str]) -> str:
    """A browser that offers protocols closes a connection on which none is chosen; the one with the key is the last
    choice."""
    return next((protocol for protocol in offered if not protocol.startswith(KEY_PROTOCOL)), offered[0])


def _values(scope: Any, name: str) -> list[str]:
    found = name.encode()
    return [text for key, value in scope["headers"] if key == found and (text := value.decode("latin-1").strip())]


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
