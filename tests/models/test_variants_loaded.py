"""Variants in the pool and in the loaders: who gets which, and from which folder."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.echo import write_echo_model
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.loading import load_model
from vmm_server.models.manifests import Variant
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.requests import Wanted
from vmm_server.settings import Settings

from .fake_machine import MB, FakeMachine, FakeReady, model

ORIGINAL, INT8, INT4 = Wanted("CPU", variant=""), Wanted("CPU", variant="int8"), Wanted("CPU", variant="int4")
Ask = Callable[[Wanted], Coroutine[Any, Any, str]]


def with_variants(megabytes: int, **sizes: int) -> InstalledModel:
    variants = tuple(
        Variant(name, Path(f"/{name}"), size * MB, "d" * 64, "onnx", name, "") for name, size in sizes.items()
    )
    return model("a", megabytes, variants=variants)


class Damaged(FakeMachine):
    """Loads variants alone."""

    def load(self, wanted: InstalledModel, placement: Placement, kv_cache_bytes: int) -> FakeReady:
        if not placement.variant:
            raise ModelLoadFailed("a bad file")
        return super().load(wanted, placement, kv_cache_bytes)


def run(
    tmp_path: Path,
    one: InstalledModel,
    body: Callable[[Ask, FakeMachine], Coroutine[Any, Any, None]],
    machine: FakeMachine | None = None,
) -> None:
    """`body(ask, machine)`, with 1000 MB of memory; `ask(wanted)` tells the variant that a request got."""

    async def bounded() -> None:
        here = machine or FakeMachine()
        settings = Settings.model_validate({"home": tmp_path, "memory_budget": 1000 * MB, "kv_cache_size": 64 * MB})
        pool = ModelPool(settings, here.load, here.placer(settings), clock=here.clock)

        async def ask(wanted: Wanted) -> str:
            lease = await pool.acquire(one, None, FakeReady, wanted=wanted)
            lease.release()
            return lease.loaded.placement.variant

        try:
            await asyncio.wait_for(body(ask, here), 60)
        finally:
            await pool.aclose()

    asyncio.run(bounded())


def test_what_one_asks_for_by_name_is_not_for_all(tmp_path: Path) -> None:
    async def body(ask: Ask, machine: FakeMachine) -> None:
        assert await ask(INT4) == "int4"
        assert await ask(Wanted("CPU")) == "", "the model itself fits"
        assert await ask(INT4) == "int4"
        assert len(machine.ready) == 2

    run(tmp_path, with_variants(300, int4=100), body)


def test_what_does_not_fit_goes_to_the_largest_variant_that_does(tmp_path: Path) -> None:
    async def body(ask: Ask, machine: FakeMachine) -> None:
        assert await ask(INT4) == "int4"
        assert await ask(Wanted("CPU")) == "int8"
        assert await ask(INT8) == "int8", "it is there"
        assert len(machine.ready) == 2
        with pytest.raises(ModelLoadFailed, match="no room"):
            await ask(ORIGINAL)

    run(tmp_path, with_variants(5000, int8=500, int4=250), body)


def test_what_cannot_be_loaded_leaves_its_place_to_a_variant(tmp_path: Path) -> None:
    async def body(ask: Ask, machine: FakeMachine) -> None:
        for _ in range(2):
            assert await ask(Wanted("CPU")) == "int8"
        assert len(machine.ready) == 1

    run(tmp_path, with_variants(300, int8=200), body, Damaged())


def test_the_folder_of_the_variant_is_loaded(tmp_path: Path) -> None:
    folder, other = tmp_path / "own", tmp_path / "other"
    write_echo_model(folder, context_length=512)
    here = Variant("int8", other, 1, "d" * 64, "onnx", "int8", "")
    settings = Settings.model_validate({"home": tmp_path})
    one = model("a", folder=folder, adapter="echo", variants=(here,))
    write_echo_model(other, context_length=256)
    for variant, length in (("", 512), ("int8", 256)):
        ready = load_model(one, Placement("echo", "CPU", variant), 1 << 20, settings)
        assert ready.context_length == length
        asyncio.run(ready.aclose())
    with pytest.raises(ModelLoadFailed, match="has no variant int4 any more"):
        load_model(one, Placement("echo", "CPU", "int4"), 1 << 20, settings)
