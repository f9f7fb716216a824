from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_server.models.store import InstalledModel, Store

Install = Callable[..., InstalledModel]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def install(store: Store) -> Install:
    """Installs a small model: `install("name", files={...}, owned=True, blobs=("<hex>",), age_s=0, **fields)`."""

    def make(
        name: str,
        *,
        files: dict[str, bytes] | None = None,
        key: str = "key",
        folder: Path | None = None,
        blobs: tuple[str, ...] = (),
        revision: str | None = None,
        age_s: float = 0,
        **fields: Any,
    ) -> InstalledModel:
        store.prepare()
        folder = folder or store.models_dir / key
        folder.mkdir(exist_ok=True, parents=True)
        for path, content in (files or {"model.onnx": b"weights"}).items():
            (folder / path).write_bytes(content)
        for blob in blobs:
            store.blob(blob).write_bytes(b"blob")
        described: dict[str, Any] = {
            "name": name,
            "aliases": (),
            "digest": "ab" * 32,
            "size_bytes": 7,
            "modified_at": datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age_s),
            "adapter": "echo",
            "folder": folder,
            "format": "onnx",
            "family": "llama",
            "parameter_size": "1M",
            "quantization": "F32",
            "context_length": 64,
            "embedding_length": None,
            "capabilities": ("completion",),
            "license": None,
            "title": name,
            "system": None,
            "sampling": SamplingDefaults(),
            "source": "file:/somewhere",
        }
        return store.install(InstalledModel(**described | fields), blobs=blobs, revision=revision)

    return make
