"""A `vmm serve` in a process of its own, with the echo model; and what it says of itself."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench.servers import Server, vmm_server
from bench.vitals import Vitals, look
from tests.conftest import MakeSettings

from vmm_adapters.echo import write_echo_model

CONTEXT_LENGTH = 16384
SETTLED_S = 60.0


@dataclass(frozen=True)
class Running:
    """A server, and a client of it."""

    server: Server
    client: httpx.Client

    @property
    def port(self) -> int:
        return self.server.port

    def look(self) -> Vitals:
        return look(self.client)

    def settled(self, is_so: Callable[[Vitals], bool] = lambda _: True) -> Vitals:
        """The state once nothing is under way, and `is_so`."""
        until = time.monotonic() + SETTLED_S
        while True:
            vitals = self.look()
            if vitals.is_idle and is_so(vitals):
                return vitals
            assert time.monotonic() < until, vitals
            time.sleep(0.1)

    def ask(self) -> None:
        """A fresh request, answered as it should be."""
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": False}
        answer = self.client.post("/api/chat", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["message"]["content"] == "hello"

    def errors(self) -> list[str]:
        """Lines of the log that say something is wrong."""
        lines = self.server.log.read_text().splitlines()
        return [line for line in lines if any(word in line for word in (" ERROR ", " CRITICAL ", "Traceback"))]


Serve = Callable[..., Running]


@pytest.fixture(scope="session", autouse=True)
def _many_descriptors() -> None:
    """As many as the system lets us have; children inherit them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture
def serve(installed: Callable[..., None], settings: MakeSettings, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that stop when the test ends: `serve(max_queue="1000")`."""
    folder = tmp_path / "long"
    write_echo_model(folder, context_length=CONTEXT_LENGTH)
    config = (folder / "genai_config.json").read_text()
    installed("echo:latest", context_length=CONTEXT_LENGTH, files={"genai_config.json": config})
    with ExitStack() as stack:

        def start(**changes: Any) -> Running:
            variables = {f"VMM_{name.upper()}": value for name, value in changes.items()}
            server = stack.enter_context(vmm_server(settings().home, "echo", 64 << 20, settings=variables))
            base_url = f"http://127.0.0.1:{server.port}"
            client = stack.enter_context(httpx.Client(base_url=base_url, timeout=60, trust_env=False))
            return Running(server, client)

        yield start
