"""Fixtures of every test: settings in a temporary home, a clock that stands still."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from vmm_server.settings import Settings


class MakeSettings(Protocol):
    """Settings that come from nothing but the test."""

    def __call__(self, **changes: object) -> Settings: ...


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path, no_environment: None) -> MakeSettings:
    def make(**changes: object) -> Settings:
        return Settings.model_validate({"home": tmp_path / "home", "default_model": "", **changes})

    return make


@dataclass
class FakeClock:
    """Seconds that pass only when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
