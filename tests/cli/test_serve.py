"""`vmm serve` as a process of its own: how it starts, reads its files again, and ends."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_server.cli import main

WAIT_S = 60
STREAM = {"model": "echo", "prompt": "a", "raw": True, "options": {"num_predict": 4000}}


class Process:
    """A `vmm serve`, and a connection to it."""

    def __init__(self, home: Path, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VMM_", "OLLAMA_"))}
        command = [sys.executable, "-m", "vmm_server", "serve", "--port", str(self.port), "--home", str(home)]
        self.log = home / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--calibrate", "off", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # no terminal: a hang-up is a reload
            )
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)

    def until(self, what: Callable[[], Any]) -> Any:
        """What it gives once it is true."""
        for _ in range(WAIT_S * 50):
            try:
                if found := what():
                    return found
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            threading.Event().wait(0.02)
        raise TimeoutError(self.log.read_text())

    def ready(self) -> "Process":
        self.until(lambda: self.client.get("/health/ready").is_success)
        return self

    def end(self) -> None:
        self.client.close()
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*flags: str, model: str = "echo") -> Process:
        started.append(Process(home, "--default-model", model, *flags))
        return started[-1]

    yield start
    for process in started:
        process.end()


def test_it_answers_before_it_is_ready_and_says_why(serve: Callable[..., Process], tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)  # a fetch that takes as long as the test likes
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "slow.toml").write_text(
        'id = "slow:1b"\ntitle = "Slow"\nlicense = "MIT"\norigin = "a test"\nfamily = "llama"\n'
        'parameter_size = "1B"\nquantization = "Q4_1"\ncontext_length = 512\n'
        f'[source]\nuri = "file:{pipe}"\n'
    )
    server = serve("--card-dirs", str(cards), model="slow:1b")
    assert server.until(lambda: server.client.get("/health/live").is_success)
    assert server.until(lambda: server.client.get("/health").json()["reason"] != "loading slow:1b")
    for path in ("/health/startup", "/health/ready", "/health"):
        waiting = server.client.get(path)
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading", "reason": "fetching slow:1b"})
    refused = server.client.post("/api/chat", json={"model": "slow:1b", "messages": []})
    assert (refused.status_code, refused.json()["error"]) == (503, "model 'slow:1b' is still being fetched")
    assert int(refused.headers["retry-after"]) > 0
    answer = server.client.post("/api/generate", json={"model": "echo", "prompt": "others work", "stream": False})
    assert answer.json()["response"] == "others work"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT_S) == 0


def test_a_default_model_that_is_nowhere_ends_the_start(serve: Callable[..., Process]) -> None:
    server = serve(model="nobody:1b")
    assert server.process.wait(WAIT_S) == 1
    assert "nobody:1b" in server.log.read_text()
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""


def test_requests_that_take_too_long_end_with_one_error_and_it_leaves_with_zero(serve: Callable[..., Process]) -> None:
    server = serve("--shutdown-timeout-s", "0").ready()
    with server.client.stream("POST", "/api/generate", json=STREAM) as response:
        lines = response.iter_lines()
        said = [json.loads(next(lines))]
        server.process.send_signal(signal.SIGTERM)
        said += [json.loads(line) for line in lines]
    assert said[-1] == {"error": "the server is shutting down"}
    assert not any("error" in line for line in said[:-1])
    assert server.process.wait(WAIT_S) == 0


def test_a_second_signal_ends_it_now(serve: Callable[..., Process]) -> None:
    server = serve("--shutdown-timeout-s", "600").ready()

    def slowly() -> Iterator[bytes]:
        yield b'{"model": '
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.client.get("/health/ready").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(WAIT_S)
        yield b'"echo"}'

    with pytest.raises(httpx.TransportError), httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
        client.post("/api/generate", content=slowly())
    assert server.process.returncode == 128 + signal.SIGTERM


def test_a_hang_up_reads_the_settings_again(serve: Callable[..., Process], home: Path) -> None:
    file = home / "vmm.toml"
    try:
        file.write_text('ollama_version = "1.1.1"')
        server = serve().ready()

        def version() -> str:
            return str(server.client.get("/api/version").json()["version"])

        assert version() == "1.1.1"
        file.write_text('ollama_version = "2.2.2"\nmax_queue = 1')
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: version() == "2.2.2")
        assert "changed: ollama_version; for models loaded from now on: max_queue" in server.log.read_text()
        file.write_text('ollama_version = "3.3.3"\nmax_queue = "many"')
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: "nothing was read again" in server.log.read_text())
        assert f"{file}: setting max_queue" in server.log.read_text()
        assert version() == "2.2.2"
    finally:
        file.unlink()


def take_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_is_closed_ends_it(home: Path) -> None:
    terminal, inside = os.openpty()
    command = [sys.executable, "-m", "vmm_server", "serve", "--port", "0", "--home", str(home), "--default-model", ""]
    process = subprocess.Popen(
        [*command, "--calibrate", "off"],
        stdin=inside,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    assert process.stdout is not None
    try:
        os.close(inside)
        assert "listens on" in process.stdout.readline()
        os.close(terminal)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_status_and_reload_are_commands(
    serve: Callable[..., Process], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve().ready()
    assert main(["status", "--host", server.url]) == 0
    first, requests, keys, header, row = capsys.readouterr().out.splitlines()
    assert first.startswith("VMM ")
    assert first.endswith(": ready")
    assert requests == "requests: 0 running, 0 waiting; errors so far: 0"
    assert keys.startswith("keys: none")
    assert header.split() == ["MODEL", "PLACEMENT", "SIZE", "RUNNING", "WAITING", "KV", "CACHE"]
    assert row.split()[:2] == ["echo:latest", "echo/CPU"]
    assert main(["status", "--json", "--host", server.url]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    assert main(["reload", "--host", server.url]) == 0
    assert "cards and 0 keys" in capsys.readouterr().out
    file = home / "vmm.toml"
    try:
        file.write_text("max_queue = 'many'")
        assert main(["reload", "--host", server.url]) == 1
        assert f"error: {file}: setting max_queue" in capsys.readouterr().err
    finally:
        file.unlink()
