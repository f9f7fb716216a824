"""Processes that are killed, and processes that get into each other's way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
GGUF = b"GGUF" + bytes(range(256)) * 400


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("doing", ["create", "delete", "upload", "pull"])
def test_killed_twenty_times_nothing_is_ever_half_visible(tmp_path: Path, web: Any, doing: str) -> None:
    url = web.serve("/w.gguf", GGUF * 30, etag='"1"')
    with start("kill_rounds.py", tmp_path / "store", doing, 20, 1, url) as process:
        rounds = result(process)
    assert len(rounds) == 20
    assert all(seen["models"] >= 1 for seen in rounds)
    if doing == "create":
        assert max(seen["models"] for seen in rounds) == 3
    if doing == "pull":
        assert web.requests


def test_processes_that_pull_create_copy_and_delete_one_model(tmp_path: Path, web: Any) -> None:
    url = web.serve("/w.gguf", GGUF, etag='"1"')
    with (
        start("contend.py", tmp_path / "store", url, 2, 1) as one,
        start("contend.py", tmp_path / "store", url, 2, 2) as other,
    ):
        counts = [result(one), result(other)]
    for done in counts:
        assert done["pull"] > 3
        assert done["delete"] > 3
