"""The commands against real servers of the echo model, over loopback."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from vmm_server.cli import main
from vmm_server.cli.client import Client
from vmm_server.cli.conversation import Conversation, Session

DEAD = "127.0.0.1:9"  # the discard port: nobody listens


@dataclass(frozen=True)
class Server:
    """A `vmm serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in os.environ:
        if name.startswith(("VMM_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VMM_HOME", str(home))
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def start(home: Path, *flags: str) -> Server:
    command = [
        sys.executable,
        "-m",
        "vmm_server",
        "serve",
        "--port",
        "0",
        "--home",
        str(home),
        "--default-model",
        "echo",
        "--calibrate",
        "off",
    ]
    process = subprocess.Popen(
        [*command, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    found = re.search(r"https?://[^ ,]+", process.stdout.readline())
    assert found
    return Server(process, found.group())


def end(server: Server) -> None:
    server.process.kill()
    assert server.process.stdout is not None
    server.process.stdout.close()
    server.process.wait()


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Server]:
    """A server that several tests share."""
    server = start(home)
    yield server
    end(server)


@pytest.fixture
def own(home: Path) -> Iterator[Server]:
    """A server that a test may stop."""
    server = start(home)
    yield server
    end(server)


def test_serve_says_what_runs_where_and_how_to_try_it(own: Server) -> None:
    assert own.process.stdout is not None
    assert own.process.stdout.readline() == "echo:latest runs on echo/CPU (backend/device)\n"
    tip = own.process.stdout.readline()
    command = tip.removeprefix("try:  ").strip()
    assert command.startswith(f"curl {own.url}/api/generate -d '")
    body = json.loads(command.partition("-d '")[2].removesuffix("'"))
    reply = httpx.post(f"{own.url}/api/generate", json=body | {"stream": False})
    assert reply.json()["response"] == "Why is the sky blue?"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answer_finish_and_leaves_with_zero(own: Server, number: signal.Signals) -> None:
    body = {"model": "echo", "prompt": "a", "raw": True, "options": {"num_predict": 2000}}
    with httpx.stream("POST", f"{own.url}/api/generate", json=body, timeout=60) as response:
        lines = response.iter_lines()
        received = [json.loads(next(lines))]
        own.process.send_signal(number)
        received += [json.loads(line) for line in lines]
    assert received[-1]["done"]
    assert received[-1]["eval_count"] == 2000
    assert own.process.wait(30) == 0


def test_run_prints_the_answer_alone(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "echo", "Hello", "there", "--host", running.url]) == 0
    assert capsys.readouterr().out == "Hello there\n"


def test_run_verbose_tells_the_timings_on_stderr(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "echo", "Hello", "--verbose", "-o", "num_predict=3", "--host", running.url]) == 0
    output = capsys.readouterr()
    assert output.out == "Hel\n"
    assert re.search(r"eval count: +3 tokens", output.err)


def test_run_without_a_server_embeds_one(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm_server", "run", "echo", "--host", DEAD],
        input="from a pipe",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "from a pipe\n"
    assert done.stderr == ""


def test_run_of_an_unknown_model_fails_with_a_hint(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nonsense", "hello", "--host", running.url]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "error: model 'nonsense' not found" in output.err
    assert "\nhint: " in output.err


def test_run_tells_a_wrong_option(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "echo", "hello", "-o", "num_predict=many", "--host", running.url]) == 1
    assert "num_predict" in capsys.readouterr().err


def test_run_where_it_is_told_to(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "echo", "hello", "--device", "cpu", "--host", running.url]) == 0
    assert capsys.readouterr().out == "hello\n"
    for prompt in ("hello", ""):
        assert main(["run", "echo", prompt, "--device", "NPU", "--backend", "openvino", "--host", running.url]) == 1
        told = capsys.readouterr().err
        assert "cannot run on backend openvino, device NPU here; placements (backend/device): echo/CPU" in told
        assert "leave out options." in told


def test_run_keeps_a_form(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    schema = (
        '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
    )
    assert main(["run", "echo", "not json", "--format", schema, "-o", "num_predict=50", "--host", running.url]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["a"]


def test_run_refuses_what_the_model_cannot_do(
    running: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["run", "echo", f"What is this? {picture}", "--host", running.url]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert '"echo" does not support vision' in output.err
    assert main(["run", "echo", "Hello", "--think", "--host", running.url]) == 1
    assert "think" in capsys.readouterr().err


def test_run_of_an_empty_prompt_loads(own: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "echo", "--host", own.url]) == 0
    assert main(["run", "echo", "", "--keepalive", "1h", "--host", own.url]) == 0
    assert capsys.readouterr().out == ""
    assert main(["ps", "--host", own.url]) == 0
    assert "59 minutes from now" in capsys.readouterr().out


def test_a_conversation_is_saved_as_a_model(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(running.url) as client:
        conversation = Conversation(client, Session("echo", system="Be kind.", options={"num_predict": 3}))
        conversation.answer("Hello")
        conversation.save("mine")
        shown = client.show("mine")
        assert [message["content"] for message in shown["messages"]] == ["Hello", "Hel"]
        assert shown["system"] == "Be kind."
        conversation.load("mine")
        conversation.session.options = {}
        conversation.answer("Goodbye")
        client.delete("mine")
    assert capsys.readouterr().out == "Hel\nGoo\n"


def test_ps_and_stop(own: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--host", own.url]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "PLACEMENT"]
    assert row.startswith("echo:latest    eeeeeeeeeeee    ")
    assert "100% CPU" in row
    assert row.endswith("  echo/CPU")
    assert main(["ps", "--json", "--host", own.url]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "echo:latest"
    assert main(["stop", "echo", "--host", own.url]) == 0
    assert main(["ps", "--json", "--host", own.url]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_list_and_show_need_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("echo:latest    eeeeeeeeeeee    1.0 KB    ")
    assert main(["show", "echo"]) == 0
    assert re.search(r"^    context length +4096$", capsys.readouterr().out, re.M)
    assert main(["show", "echo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "echo:latest"
    assert shown["sampling"] == {"temperature": 0}
    assert datetime.fromisoformat(shown["modified_at"])


def test_serve_fails_where_the_default_model_is_unknown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--default-model", "nonsense"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "error: model 'nonsense' not found\nhint: " in output.err


def test_bench_measures_and_shows_what_was_kept(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--host", running.url, "--calibrate", "echo"]) == 0
    output = capsys.readouterr()
    assert output.err == "measuring echo/CPU (1 of 1)\nmeasured echo/CPU\n"
    header, row = output.out.splitlines()
    assert header.split()[0] == "PLACEMENT"
    assert re.fullmatch(r"echo/CPU +\d\S* +\d\S* +\d\S* +\S+ s +\S+ \w?B +1 stream, 16 streams, long prompt", row)
    assert main(["bench", "--host", running.url, "echo"]) == 0
    assert capsys.readouterr().out == output.out
    assert main(["bench", "--host", running.url, "echo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["placements"][0]["profile"]["decode_1"] > 0
    assert main(["bench", "--host", running.url, "nonsense"]) == 1
    assert "model 'nonsense' not found" in capsys.readouterr().err
