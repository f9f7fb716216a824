"""A server in this process, for `vmm run` where none answers: its own thread, loopback, a free port."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vmm_server.app import create_app
from vmm_server.cli.listener import bind, configure_logging, http_server, listen, url_of
from vmm_server.settings import Settings


class Embedded(NamedTuple):
    """Where it is, and a key that it knows."""

    url: str
    api_key: str


@contextmanager
def embedded_server(settings: Settings) -> Iterator[Embedded]:
    """A server that lives as long as the block. Models load when they are asked for."""
    configure_logging("warning")
    logging.getLogger("vmm_adapters.cpu").setLevel(logging.INFO)  # says what the first answer on a machine waits for
    changes = {"host": "127.0.0.1", "port": 0, "default_model": "", "calibrate": "off"}
    settings = settings.model_copy(update=changes)
    with bind(settings.host, settings.port) as listener:
        app = create_app(settings)
        server = http_server(app)
        listen(listener)  # a client may connect before the thread is there to answer

        def run() -> None:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run, name="embedded-server")
        thread.start()
        try:
            yield Embedded(url_of(listener), app.state.parts.keys.add_own())
        finally:
            server.should_exit = True
            thread.join()
