"""Servers under test as child processes: started, timed until they answer, weighed, stopped."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready."""

    name: str
    port: int
    ready_s: float
    process: subprocess.Popen[bytes]
    log: Path
    """What it writes to stderr."""

    def resident_bytes(self) -> int:
        """Resident memory now: of the process, children included."""
        total, pids = 0, [self.process.pid]
        while pids:
            pid = pids.pop()
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue
            total += next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS")), 0)
            pids += map(int, children)
        return total


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(name: str, command: list[str], port: int, health: str, environment: dict[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as stderr:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=stderr
            )
        with _stopping(process):
            _wait_until_ready(name, process, f"http://127.0.0.1:{port}{health}", log)
            yield Server(name, port, time.perf_counter() - started, process, log)


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start: {log.read_bytes()[-2000:].decode(errors='replace')}")
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)


@contextmanager
def _stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def vmm_server(
    home: Path,
    model: str,
    kv_cache_bytes: int,
    *,
    num_threads: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`vmm serve` with its data in `home`; `settings` are variables of its environment."""
    port = free_port()
    command = [sys.executable, "-m", "vmm_server", "serve", "--port", str(port)]
    environment = {
        "VMM_HOME": str(home),
        "VMM_DEFAULT_MODEL": model,
        "VMM_KV_CACHE_SIZE": str(kv_cache_bytes),
        "VMM_LOG_LEVEL": "warning",
        "VMM_CALIBRATE": "off",
        **({} if num_threads is None else {"VMM_NUM_THREADS": str(num_threads)}),
        **(settings or {}),
    }
    with _running("vmm", command, port, "/health/ready", environment) as server:
        yield server


@contextmanager
def llama_server(
    gguf: Path, context_length: int, num_slots: int, arguments: Sequence[str] = ()
) -> Iterator[Server | None]:
    """`llama-server` on the same file with all cores; `None` when it is not on the PATH."""
    binary = shutil.which("llama-server")
    if binary is None:
        yield None
        return
    port = free_port()
    command = [binary, "-m", str(gguf), "--port", str(port), "-c", str(context_length), "-np", str(num_slots)]
    command += ["-t", str(os.cpu_count()), "--kv-unified", "--cache-ram", "0", "--no-webui", *arguments]
    with _running("llama-server", command, port, "/health", {}) as server:
        yield server
