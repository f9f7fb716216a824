"""Every command and snippet of docs/vision.md runs as it stands, with models that see what the tests draw."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import StartServer
from tests.api.fake_vision import box, install_fakes, png_of

PAGE = (Path(__file__).parents[2] / "docs" / "vision.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
COMMANDS = [line for language, code in FENCED.findall(PAGE) if language == "sh" for line in code.splitlines()]
ADDRESS = "127.0.0.1:11434"


@pytest.fixture
def run_in(start_server: StartServer, tmp_path: Path) -> Callable[[str], str]:
    """Runs a command or a script beside `cat.jpg` and `box.png`, against a server with the page's models."""
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"), **NAMES)
    (tmp_path / "cat.jpg").write_bytes(png_of(box(), "JPEG"))
    (tmp_path / "box.png").write_bytes(png_of(box()))

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return lambda text: run(*told(text.replace(ADDRESS, f"127.0.0.1:{server.port}")))


NAMES = {"detector": "yolox:nano", "classifier": "efficientnet:lite0", "clip": "clip:vit-b32"}


def told(text: str) -> list[str]:
    """A line for the shell, or a script for Python."""
    if text.startswith("curl "):
        return ["sh", "-c", text.replace("curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", 1)]
    return [sys.executable, "-c", text]


def test_there_is_a_command_for_every_route() -> None:
    routes = {match[1] for line in COMMANDS if (match := re.search(r"11434(/v1/vision\S*)", line))}
    tasks = ("detect", "classify", "embed", "zero-shot", "search")
    assert routes == {"/v1/vision", *(f"/v1/vision/{task}" for task in tasks)}


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(run_in: Callable[[str], Any], command: str, tmp_path: Path) -> None:
    answer = run_in(command)
    if "-o found.png" in command:
        assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert '"object":"list"' in answer


def test_the_stream_answers_every_frame(run_in: Callable[[str], Any]) -> None:
    (script,) = [code for language, code in FENCED.findall(PAGE) if "websockets" in code]
    lines = run_in(script).splitlines()
    assert '"object":"stream"' in lines[0]
    assert ['"object":"detections"' in line for line in lines[1:]] == [True] * 3
