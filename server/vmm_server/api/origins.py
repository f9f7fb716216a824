"""Who may ask from a browser: the origins of pages (CORS), and the names that this server goes by.

Any page can have its visitor's browser send requests to this machine. Two checks keep out those that have no business
here. The origin of a page, which the browser tells, must be an allowed one. And where the server listens on this
machine alone, the `Host` header must name this machine: the owner of a site can point its name at 127.0.0.1 (DNS
rebinding), and its pages are then of the same origin as this server.

Sources: the Fetch standard, "CORS protocol"; what is built in is what Ollama allows (envconfig/config.go and
server/routes.go).
"""

import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from litestar.types import Message

from vmm_server.api.refusals import STARTS, refuse
from vmm_server.errors import HostNotAllowed, OriginNotAllowed, VMMError
from vmm_server.settings import Settings

LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for scheme in ("http", "https")
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for port in ("", ":*")
    ),
    *("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"),
)
LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.internal")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
STAINLESS = "x-stainless-"
"""How the headers begin in which OpenAI's and Anthropic's clients tell of themselves."""
REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "X-Request-Id", "OpenAI-Beta"),
    *(
        "X-VMM-Device",
        "X-VMM-Backend",
        "X-VMM-Variant",
        "X-VMM-Priority",
        "X-VMM-Timeout-Ms",
        "Traceparent",
        "Tracestate",
    ),
    *("X-Api-Key", "Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access"),
    *(
        STAINLESS + name
        for name in (
            *("arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version"),
            *("poll-helper", "retry-count", "runtime", "runtime-version", "timeout"),
        )
    ),
)
MAX_AGE_S = 12 * 60 * 60
"""For so long a browser need not ask again whether it may."""

_HOST = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<name>[\w.-]*))(?::\d*)?", re.ASCII)
_HEADER_NAME = re.compile(r"[\w-]{1,100}", re.ASCII)

Headers = list[tuple[bytes, bytes]]
Address = IPv4Address | IPv6Address


class Guard:
    """The checks of one server, around everything that it answers."""

    def __init__(
        self, settings: Settings, *, machine_name: str, is_own: Callable[[Address], bool] | None = None
    ) -> None:
        """`is_own` stands in for `is_own_address`."""
        self._is_own = is_own or is_own_address
        self._machine_name = machine_name
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Allow from now on what these say."""
        self._allows_all = "*" in settings.origins
        self._origins = _one_of((*settings.origins, *LOCAL_ORIGINS))
        names = (*settings.allowed_hosts, *LOCAL_NAMES, self._machine_name)
        self._names = _one_of(names) if is_loopback(settings.host) else None

    async def __call__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any
    ) -> None:
        """Run one ASGI connection, or refuse it. Browsers let any page open a WebSocket, and ask nobody before: only
        its origin tells."""
        if scope["type"] not in STARTS:
            await app(scope, receive, send)
            return
        hosts, origins = (_values(scope["headers"], name) for name in (b"host", b"origin"))
        origin = next((one for one in origins if not _is_same(one, hosts)), None)
        try:
            self._check(hosts, origins)
        except VMMError as error:
            await refuse(scope, error, send)
            return
        if origin is None or scope["type"] == "websocket":
            await app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            asked = ",".join(_values(scope["headers"], b"access-control-request-headers"))
            headers = [*self._allowed(origin), *_preflight(asked)]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, self._allowing(origin, send))

    def allows_host(self, host: str) -> bool:
        """Whether a `Host` header is one that this server goes by. None at all is what no browser sends."""
        if self._names is None or not host:
            return True
        match = _HOST.fullmatch(host)
        name = host if match is None else match["bracketed"] or match["name"] or ""
        if (address := _address(name)) is not None:
            local = address.is_loopback or address.is_private or address.is_unspecified
            return local or self._names.fullmatch(str(address)) is not None or self._is_own(address)
        if match is None or match["name"] is None:
            return False
        return not name or self._names.fullmatch(name.removesuffix(".")) is not None

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of an origin may ask here."""
        return self._allows_all or self._origins.fullmatch(origin) is not None

    def _check(self, hosts: Sequence[str], origins: Sequence[str]) -> None:
        for host in hosts:
            if not self.allows_host(host):
                raise HostNotAllowed(host)
        for origin in origins:
            if not _is_same(origin, hosts) and not self.allows_origin(origin):
                raise OriginNotAllowed(origin)

    def _allowed(self, origin: str) -> Headers:
        """No credentials are ever allowed: `*` hides nothing from anybody."""
        if self._allows_all:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]

    def _allowing(self, origin: str, send: Any) -> Callable[[Message], Awaitable[None]]:
        async def send_allowing(message: Message) -> None:
            if message["type"] == "http.response.start":
                exposed = (b"access-control-expose-headers", b"*")
                message["headers"] = [*message["headers"], *self._allowed(origin), exposed]
            await send(message)

        return send_allowing


def is_loopback(host: str) -> bool:
    """Whether a server that binds this address or name listens on this machine alone."""
    if (address := _address(host)) is None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError:  # it cannot be bound either
            return False
        address = _address(str(found[0][4][0]))
    return address is not None and address.is_loopback


def is_own_address(address: Address) -> bool:
    """Whether it is an address of this machine: no other can be bound."""
    try:
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _preflight(asked: str) -> Headers:
    """What a browser asks before the request itself; `asked` lists the headers it wants to send."""
    names = [name.strip() for name in asked.split(",")]
    family = [name for name in names if name.lower().startswith(STAINLESS) and _HEADER_NAME.fullmatch(name)]
    return [
        (b"access-control-allow-methods", ", ".join(METHODS).encode()),
        (b"access-control-allow-headers", ", ".join(dict.fromkeys([*REQUEST_HEADERS, *family])).encode()),
        (b"access-control-max-age", str(MAX_AGE_S).encode()),
    ]


def _one_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """`*` in a pattern stands for anything."""
    return re.compile("|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in patterns), re.IGNORECASE)


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name and value.strip()]


def _is_same(origin: str, hosts: Sequence[str]) -> bool:
    """Whether the page came from this server itself."""
    return any(origin.lower() == f"{scheme}://{host}".lower() for scheme in ("http", "https") for host in hosts)


@lru_cache(maxsize=64)  # clients say the same host with each request
def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
