import os
from pathlib import Path

import pytest

from vmm_server.errors import SettingsError
from vmm_server.settings import read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("VMM_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VMM_HOME", str(tmp_path))


def test_flags_beat_the_environment_beats_the_file_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert read_settings().max_queue == 512
    (tmp_path / "vmm.toml").write_text("max_queue = 1\nport = 1000\n")
    assert (read_settings().max_queue, read_settings().port) == (1, 1000)
    monkeypatch.setenv("VMM_MAX_QUEUE", "2")
    assert read_settings().max_queue == 2
    assert read_settings(max_queue=3, port=None).max_queue == 3


def test_a_size_is_written_as_people_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMM_MEMORY_BUDGET", "2GiB")
    assert read_settings().memory_budget == 2 << 30


@pytest.mark.parametrize(
    ("toml", "named"),
    [("port = 'x'", "port"), ("port = 70000", "port"), ("colour = 1", "colour"), ("keep_alive = '5x'", "keep_alive")],
)
def test_a_wrong_setting_is_named(tmp_path: Path, toml: str, named: str) -> None:
    (tmp_path / "vmm.toml").write_text(toml)
    with pytest.raises(SettingsError, match=named):
        read_settings()


def test_a_broken_file_is_an_error_not_a_default(tmp_path: Path) -> None:
    (tmp_path / "vmm.toml").write_text("port = ")
    with pytest.raises(SettingsError, match=r"vmm\.toml"):
        read_settings()
