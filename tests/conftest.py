"""Fixtures of every test: settings in a temporary home, a clock that stands still, the default model."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.settings import Settings

hypothesis.settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no-deadline")

CACHE = Path(__file__).parents[1] / ".cache" / "vmm"
"""Kept between runs, and shared with compat_tests: the home of the real model."""


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


@pytest.fixture(scope="session")
def smollm2() -> InstalledModel:
    """The default model, pulled once into `.cache/vmm` as `vmm pull smollm2` does. For `runtime` tests only."""
    store = Store(CACHE / "models")
    registry = Registry(store, read_cards(()))

    async def pull() -> None:
        async for _ in Puller(store, registry).pull("smollm2"):
            pass

    asyncio.run(pull())
    return registry.resolve("smollm2")


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: InstalledModel) -> Path:
    """The file that was fetched for it."""
    return Store(CACHE / "models").blob(smollm2.digest)
