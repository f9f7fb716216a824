"""Fixtures of every test: settings in a temporary home, a clock that stands still, the default model."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import numpy as np
import pytest
from filelock import FileLock

from vmm_adapters import catalog
from vmm_adapters.base import Resampler
from vmm_adapters.card import SamplingDefaults
from vmm_adapters.cpu.plan import Activation, Attention, DecoderPlan, DenseMatrix, Layer, Linear
from vmm_adapters.cpu.runner import CPURunner
from vmm_adapters.echo import write_echo_model
from vmm_adapters.types import RunnerOptions
from vmm_server.models.compiled import shared_compiled_dir
from vmm_server.models.loading import load_model
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.parts import Parts, build_parts
from vmm_server.settings import Settings

hypothesis.settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no-deadline")

CACHE = Path(__file__).parents[1] / ".cache" / "vmm"
"""Kept between runs, and shared with compat_tests: the home of the real model."""


Body = Callable[[Parts], Coroutine[Any, Any, None]]


class MakeSettings(Protocol):
    """Settings that come from nothing but the test."""

    def __call__(self, **changes: object) -> Settings: ...


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_", "OTEL_"))]:
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
    """The default model, pulled once into `.cache/vmm` as `vmm pull smollm2:135m` does. For `runtime` tests only."""
    store = Store(CACHE / "models")
    registry = Registry(store, read_cards(()))

    async def pull() -> None:
        async for _ in Puller(store, registry).pull("smollm2:135m"):
            pass

    asyncio.run(pull())
    return registry.resolve("smollm2:135m")  # compat_tests pull it as `smollm2` too


@pytest.fixture(scope="session")
def kernel_cache() -> Path:
    """Where the CPU adapter's kernels are kept for all tests, and for later runs; who asks first compiles them."""
    folder = shared_compiled_dir(CACHE / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    square = Linear(DenseMatrix("square", 32, 32, np.eye(32, dtype=np.float32)))
    attention = Attention((square, square, square), square, 1, 1, 32, 1.0, None)
    layer = Layer(attention, (square, square), square, Activation.SILU, None, None, None, None)
    norm = np.ones(32, np.float32)
    plan = DecoderPlan(square.matrix, 1.0, (layer,), norm, square, 1.0, None, 1e-5, 32, ())
    with FileLock(folder / "compiling.lock"):
        CPURunner(plan, RunnerOptions(kv_cache_bytes=1 << 20, num_threads=1, shared_cache_dir=folder)).close()
    return folder


@pytest.fixture(scope="session")
def resampler() -> Resampler:
    """What resizes pictures, kept with the CPU adapter's kernels."""
    folder = shared_compiled_dir(CACHE / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "pictures.lock"):
        return catalog.load_resampler("cpu", folder)


@pytest.fixture
def settings_with_kernels(settings: MakeSettings, kernel_cache: Path) -> MakeSettings:
    """`settings` whose home has the compiled kernels already."""

    def make(**changes: object) -> Settings:
        configured = settings(**changes)
        folder = shared_compiled_dir(configured.cache_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(kernel_cache)
        return configured

    return make


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: InstalledModel) -> Path:
    """The file that was fetched for it."""
    return Store(CACHE / "models").blob(smollm2.weights)


@pytest.fixture
def installed(settings: MakeSettings, tmp_path: Path) -> Callable[..., None]:
    """Installs the echo model under `name`; `fields` replace what is said of it, `files` what is in its folder."""

    def install(name: str = "echo:latest", **fields: Any) -> None:
        folder = tmp_path / name.replace(":", "-")
        write_echo_model(folder)
        for gone in fields.pop("without", ()):
            (folder / gone).unlink()
        for path, text in fields.pop("files", {}).items():
            (folder / path).write_text(text, "utf-8")
        described: dict[str, Any] = {
            "name": name,
            "aliases": (),
            "digest": name.encode().hex().ljust(64, "0"),
            "size_bytes": 1,
            "modified_at": datetime(2026, 1, 1, tzinfo=UTC),
            "adapter": "echo",
            "folder": folder,
            "format": "onnx",
            "family": "echo",
            "parameter_size": "0",
            "quantization": "F32",
            "context_length": 512,
            "embedding_length": None,
            "capabilities": ("completion",),
            "license": None,
            "title": name,
            "system": None,
            "sampling": SamplingDefaults(),
            "source": "file:/echo",
        }
        Store(settings().store_dir).install(InstalledModel(**described | fields))

    return install


@pytest.fixture
def with_parts(settings: MakeSettings) -> Callable[[Body], None]:
    """Run `body(parts)` on an event loop, at most 60 s, and close the pool."""

    def run(body: Body) -> None:
        async def bounded() -> None:
            configured = settings()
            parts = build_parts(configured, partial(load_model, settings=configured))
            try:
                await asyncio.wait_for(body(parts), 60)
            finally:
                await parts.pool.aclose()

        asyncio.run(bounded())

    return run
