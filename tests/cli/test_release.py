"""`vmm release`, in the store; and the commands that docs/operations.md shows."""

import json
import re
import shlex
from pathlib import Path

import pytest

from vmm_server.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
NAME = "smollm2:135m"


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, home: Path, no_environment: None) -> None:
    monkeypatch.setenv("VMM_HOME", str(home))


def shown(capsys: pytest.CaptureFixture[str], *name: str) -> dict[str, dict[str, int]]:
    capsys.readouterr()
    assert main(["release", *name, "--json"]) == 0
    return {release["name"]: release["shares"] for release in json.loads(capsys.readouterr().out)}


def test_the_commands_of_the_page_do_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {NAME}\nSYSTEM Be kind.\n")
    monkeypatch.chdir(tmp_path)
    assert main(["cp", "echo", NAME]) == 0
    section = PAGE.partition("## Versions and canaries\n")[2]
    commands = re.findall(r"^    vmm (.*)$", section.partition("\n\n")[0], re.M)
    states = []
    for command in commands:
        assert main(shlex.split(command)) == 0, command
        states.append(shown(capsys))
    v1, v2 = f"{NAME}@v1", f"{NAME}@v2"
    assert states[-6:] == [
        {NAME: {v1: 100}},
        {NAME: {v1: 90, v2: 10}},
        {NAME: {v2: 100}},
        {NAME: {v2: 100}, "chat:latest": {v2: 100}},
        {NAME: {v2: 100}, "chat:latest": {v2: 100}},
        {"chat:latest": {v2: 100}},
    ]
    assert main(["release", "chat"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["chat:latest", v2, "100", "%"]
    assert main(["rm", v2]) == 1
    assert "chat:latest" in capsys.readouterr().err
    assert main(["release", "chat", "--clear"]) == 0
    assert main(["rm", v1, v2, NAME]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["echo", "v1", "v2"], "'v1' has no share"),
        (["echo", "v1=90", "v1=10"], "named twice"),
        (["echo", "v1=x"], "'v1=x' has no share"),
        (["--clear"], "--clear takes one name"),
        (["echo", "v1", "--clear"], "--clear takes one name"),
    ],
)
def test_what_is_written_wrong_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["echo", "v1"], "model 'echo:latest@v1' not found"),
        (["echo", "echo=90"], "all together 100"),
        (["nobody"], "nobody is not released"),
        (["nobody", "--clear"], "nobody:latest is not released"),
        (["echo@v1", "echo"], "a plain name is released"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", *arguments]) == 1
    assert words in capsys.readouterr().err
