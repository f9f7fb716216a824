import json
from pathlib import Path

import pytest

from vmm_server.cli import main


def test_the_names_that_can_be_pulled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    assert main(["list", "--available"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "NAME"
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert main(["list", "--available", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert len(cards) == len(lines)
    assert {"smollm2:135m", "llama3.2:1b"} <= {card["id"] for card in cards}


def test_what_is_not_installed_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    for command, hint in (
        (["show", "llama3.2"], "vmm pull llama3.2:latest"),
        (["show", "hf.co/org/repo:Q8_0"], "vmm pull hf.co/org/repo:Q8_0"),
        (["pull", "lama3.2"], "did you mean llama3.2:1b"),
        (["pull", "llama3.2:9b"], "there is llama3.2:1b, llama3.2:3b"),
        (["pull", "zzzzz"], "vmm list --available"),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert f"model '{command[1]}' not found" in error
        assert hint in error
