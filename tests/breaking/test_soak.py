"""The soak, short: see `bench.soak`. `make soak` runs it for twenty minutes."""

from pathlib import Path

import pytest
from bench.soak import Folders, Plan, soak

from vmm_server.errors import ModelNotFound
from vmm_server.models.compiled import shared_compiled_dir
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel, Store

CACHE = Path(__file__).parents[2] / ".cache" / "vmm"


@pytest.mark.runtime
def test_nothing_is_left_of_mixed_traffic(
    smollm2: InstalledModel, kernel_cache: Path, tmp_path: Path, no_environment: None
) -> None:
    shared_compiled_dir(tmp_path).parent.mkdir(parents=True, exist_ok=True)
    shared_compiled_dir(tmp_path).symlink_to(kernel_cache)
    store = CACHE / "models"
    try:
        encoder: str | None = Registry(Store(store)).resolve("all-minilm").name
    except ModelNotFound:
        encoder = None
    plan = Plan(
        length_s=24,
        warm_up_s=12,
        reload_s=3,
        unload_s=5,
        report_s=6,
        max_growth=0.25,  # so short a warm-up has not touched all that stays
    )
    assert not soak(plan, Folders(store, tmp_path), smollm2.name, encoder)
