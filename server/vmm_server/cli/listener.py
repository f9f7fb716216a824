"""The HTTP server, as `vmm serve` and the embedded one of `vmm run` start it."""

import asyncio
import errno
import logging
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from vmm_server.app import WEBSOCKETS, App
from vmm_server.cli.connections import PatientProtocol
from vmm_server.errors import AddressInUse, SettingsError
from vmm_server.logs import Format, configure

CLOSE_TIMEOUT_S = 2
"""After the generations are drained: what the connections get to take the last bytes."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 takes a free one.

    Binding before anything slow happens tells of a taken port at once. Raises `AddressInUse`, `SettingsError`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"host {host!r} is no address: {error.strerror}", param="host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _listen_error(error, host, port) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Take connections. Raises `AddressInUse` when another program was quicker."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(2048)
    except OSError as error:
        raise _listen_error(error, host, port) from error


def _listen_error(error: OSError, host: str, port: int) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        hint = f"take another port (--port {port + 1}, or --port 0 for a free one), or stop what listens there"
        return AddressInUse(f"port {port} on {host} is in use", param="port", hint=hint)
    if error.errno in (errno.EACCES, errno.EPERM):
        return SettingsError(f"no permission to listen on port {port}", param="port", hint="take one above 1023")
    return SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", param="host", hint="see --host")


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The address in words that a client can use."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers: it would kill the process by the signal that stopped it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        """Set once requests are answered."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller, who sets `should_exit`."""
        yield


def http_server(app: App, tls: ssl.SSLContext | None = None) -> HTTPServer:
    """uvicorn for an app, logging through `logging` alone; https with `tls`."""
    protocol = partial(PatientProtocol, client_timeout_s=app.state.parts.settings.client_timeout_s)
    return HTTPServer(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            **WEBSOCKETS,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
    )


def configure_logging(level: str, log_format: Format = "human") -> None:
    """Log to stderr, each line with the request's id."""
    configure(level, log_format)
    logging.getLogger("uvicorn.error").addFilter(is_no_refusal)


def is_no_refusal(record: logging.LogRecord) -> bool:
    """False for what uvicorn logs as an error when a WebSocket was refused with a status: it takes the handshake for
    forgotten (uvicorn 0.54, `websockets_sansio_impl`). The request's own line tells the status."""
    return record.msg != "ASGI callable returned without completing handshake."
