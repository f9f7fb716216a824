"""Every command and snippet of docs/vision.md runs as it stands, with models that see what the tests draw."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import LiveServer, servers_in
from tests.api.fake_vision import box, install_fakes, png_of

PAGE = (Path(__file__).parents[2] / "docs" / "vision.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
COMMANDS = [line for language, code in FENCED.findall(PAGE) if language == "sh" for line in code.splitlines()]
ADDRESS = "127.0.0.1:11434"


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Has the page's models."""
    with pytest.MonkeyPatch.context() as patch, servers_in(tmp_path_factory.mktemp("page")) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
            patch.delenv(name)
        server = start()
        install_fakes(server.parts.store, server.parts.registry.resolve("echo"), **NAMES)
        yield server


@pytest.fixture
def run_in(page_server: LiveServer, tmp_path: Path) -> Callable[[str], str]:
    """Runs a command or a script beside `cat.jpg` and `box.png`."""
    (tmp_path / "cat.jpg").write_bytes(png_of(box(), "JPEG"))
    (tmp_path / "box.png").write_bytes(png_of(box()))

    def run(*command: str) -> str:
        environment = os.environ | {"VMM_HOME": str(tmp_path / "user"), "OLLAMA_HOST": page_server.url}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return lambda text: run(*told(text.replace(ADDRESS, f"127.0.0.1:{page_server.port}")))


NAMES = {"detector": "yolox:nano", "classifier": "efficientnet:lite0", "clip": "clip:vit-b32"}


def told(text: str) -> list[str]:
    """A line for the shell, or a script for Python."""
    if text.startswith("curl "):
        return ["sh", "-c", text.replace("curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", 1)]
    if text.startswith("vmm "):
        return ["sh", "-c", text.replace("vmm ", f"'{sys.executable}' -m vmm_server ", 1)]
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
    elif command.startswith("curl"):
        assert '"object":"list"' in answer
    else:
        assert "cat" in answer


def test_the_stream_answers_every_frame(run_in: Callable[[str], Any]) -> None:
    (script,) = [code for language, code in FENCED.findall(PAGE) if "websockets" in code]
    lines = run_in(script).splitlines()
    assert '"object":"stream"' in lines[0]
    assert ['"object":"detections"' in line for line in lines[1:]] == [True] * 3
