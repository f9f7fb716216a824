import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from vmm_adapters.card import EmbeddingRecipe
from vmm_adapters.echo import END, EchoRunner, write_echo_model
from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.errors import LoadTimeout, ModelLoadFailed, Overloaded, ShuttingDown
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.loading import ReadyModel, load_key, load_model, model_format
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import Settings

MB = 1 << 20
ECHO = Placement("echo", "CPU")
Install = Callable[..., InstalledModel]


class Runner(EchoRunner):
    """An echo runner one can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def close(self) -> None:
        super().close()
        self.closed.set()


class Machine:
    """Loads echo models that claim to take as much memory as their card says; counts, holds and fails loads."""

    def __init__(self, folder: Path) -> None:
        write_echo_model(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.loads: list[tuple[str, int]] = []
        self.is_loading = threading.Event()
        self.may_load = threading.Event()
        self.may_load.set()
        self.failure: ModelLoadFailed | None = None
        self.now = 1000.0
        self.runners: dict[str, Runner] = {}

    def load(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> ReadyModel:
        self.loads.append((model.name, kv_cache_bytes))
        self.is_loading.set()
        assert self.may_load.wait(10)
        if self.failure:
            raise self.failure
        runner = self.runners[model.name] = Runner()
        engine = Engine(
            runner, self.tokenizer, eos_token_ids=frozenset({END}), options=EngineOptions(), context_length=512
        )
        return ReadyModel(
            engine=engine,
            tokenizer=self.tokenizer,
            token_bytes=TokenBytes(self.tokenizer),
            template=None,
            format=model_format(model, None, Spelling(self.tokenizer)),
            spell=Spelling(self.tokenizer),
            placement=placement,
            context_length=512,
            vocab_size=runner.vocab_size,
            memory_bytes=model.size_bytes + kv_cache_bytes,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "echo")


@pytest.fixture
def with_pool(machine: Machine, tmp_path: Path) -> Callable[..., None]:
    """Run `body(pool)` on an event loop and close the pool; flags become settings."""

    def run(body: Callable[[ModelPool], Coroutine[Any, Any, None]], **flags: Any) -> None:
        async def bounded() -> None:
            settings = Settings(home=tmp_path, **flags)
            placer = Placer(settings, MachineReader().read, clock=lambda: machine.now)
            pool = ModelPool(settings, machine.load, placer, clock=lambda: machine.now)
            try:
                await asyncio.wait_for(body(pool), 60)
            finally:
                machine.may_load.set()
                await pool.aclose()

        asyncio.run(bounded())

    return run


@pytest.fixture
def model(install: Install) -> Callable[..., InstalledModel]:
    def make(name: str, megabytes: int = 1) -> InstalledModel:
        digest = name.encode().hex().ljust(64, "0")
        return install(f"{name}:latest", digest=digest, size_bytes=megabytes * MB, key=name)

    return make


def names(pool: ModelPool) -> set[str]:
    return {loaded.model.name for loaded in pool.loaded()}


def test_two_requests_for_a_cold_model_load_it_once(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        first, second = await asyncio.gather(pool.acquire(model("a"), None), pool.acquire(model("a"), None))
        assert first.loaded is second.loaded
        assert first.loaded.num_leases == 2
        assert len(machine.loads) == 1

    with_pool(body)


def test_the_pool_knows_whether_a_request_would_have_to_wait_for_a_load(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        assert not pool.is_loaded(model("a"), ANYWHERE)
        (await pool.acquire(model("a"), None)).release()
        assert pool.is_loaded(model("a"), ANYWHERE)
        assert not pool.is_loaded(model("b"), ANYWHERE)
        assert not pool.is_loaded(model("a"), Wanted(device="GPU"))
        await pool.unload(model("a"))
        assert not pool.is_loaded(model("a"), ANYWHERE)

    with_pool(body)


def test_models_created_from_one_another_share_one_engine(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        parent = model("a")
        child = replace(parent, name="b:latest", digest="c" * 64, system="Be brief.")
        first, second = await asyncio.gather(pool.acquire(parent, None), pool.acquire(child, None))
        assert first.loaded is second.loaded
        assert len(machine.loads) == 1
        assert first.loaded.name == "b:latest", "/api/ps shows the name that was asked for last"

    with_pool(body)


@pytest.mark.parametrize(
    "difference",
    [
        {"context_length": 32},
        {"folder": Path("/elsewhere")},
        {"tool_format": "mistral"},
        {"reasoning_format": "gpt-oss"},
        {"embedding": EmbeddingRecipe(prompts={"query": "Q: "})},
        {"capabilities": ("embedding",)},
        {"weights": "d" * 64},
    ],
)
def test_models_share_an_engine_only_if_it_would_be_the_same(
    difference: dict[str, Any], model: Callable[..., InstalledModel]
) -> None:
    assert load_key(replace(model("a"), **difference)) != load_key(model("a"))
    hash(load_key(replace(model("a"), **difference)))


def test_a_client_that_gives_up_does_not_stop_a_load_that_others_wait_for(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        machine.may_load.clear()
        impatient = asyncio.create_task(pool.acquire(model("a"), None))
        patient = asyncio.create_task(pool.acquire(model("a"), None))
        assert await asyncio.to_thread(machine.is_loading.wait, 10)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        machine.may_load.set()
        lease = await patient
        assert lease.loaded.num_leases == 1

    with_pool(body)


def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_later(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        machine.failure = ModelLoadFailed("no")
        tasks = [asyncio.create_task(pool.acquire(model("a"), None)) for _ in range(2)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["no", "no"]
        assert pool.loaded() == []
        machine.failure = None
        await pool.acquire(model("a"), None)
        assert len(machine.loads) == 2

    with_pool(body)


def test_an_idle_model_leaves_when_its_keep_alive_is_over_and_a_leased_one_stays(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        idle = await pool.acquire(model("idle"), KeepAlive(60))
        busy = await pool.acquire(model("busy"), KeepAlive(60))
        pinned = await pool.acquire(model("pinned"), KeepAlive(None))
        idle.release()
        pinned.release()
        assert await pool.expire() == 60
        machine.now += 59
        assert await pool.expire() == 1
        machine.now += 1
        assert await pool.expire() is None
        assert names(pool) == {"busy:latest", "pinned:latest"}
        assert machine.runners["idle:latest"].is_closed
        busy.release()
        machine.now += 3600
        await pool.expire()
        assert names(pool) == {"pinned:latest"}

    with_pool(body)


def test_centuries_are_for_ever(machine: Machine, model: Callable[..., InstalledModel], with_pool: Any) -> None:
    async def body(pool: ModelPool) -> None:
        reaper = asyncio.create_task(pool.run())
        (await pool.acquire(model("a"), KeepAlive(1e15))).release()
        await asyncio.sleep(0)
        assert pool.loaded()[0].expires_at(pool.now()) - datetime.now(UTC) > timedelta(days=36500)
        assert not reaper.done()
        reaper.cancel()
        await asyncio.gather(reaper, return_exceptions=True)

    with_pool(body)


def test_the_clock_starts_when_the_last_lease_is_returned(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        first = await pool.acquire(model("a"), KeepAlive(10))
        second = await pool.acquire(model("a"), KeepAlive(10))
        first.release()
        first.release()  # a second release is not counted
        machine.now += 100
        assert await pool.expire() is None
        second.release()
        assert await pool.expire() == 10

    with_pool(body)


def test_keep_alive_zero_unloads_at_the_release(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        reaper = asyncio.create_task(pool.run())
        (await pool.acquire(model("stays"), KeepAlive(60))).release()
        lease = await pool.acquire(model("a"), KeepAlive(0))
        lease.release()
        assert await asyncio.to_thread(machine.runners["a:latest"].closed.wait, 10)
        assert names(pool) == {"stays:latest"}
        reaper.cancel()
        await asyncio.gather(reaper, return_exceptions=True)

    with_pool(body)


def test_unload_waits_for_the_last_lease(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        lease = await pool.acquire(model("a"), None)
        assert await pool.unload(model("a"))
        assert names(pool) == {"a:latest"}
        lease.release()
        await pool.expire()
        assert pool.loaded() == []
        assert not await pool.unload(model("a"))

    with_pool(body)


def test_room_is_made_by_the_least_recently_used_idle_model_only(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        held = await pool.acquire(model("held", 200), None)
        for name in ("old", "new"):
            (await pool.acquire(model(name, 200), None)).release()
            machine.now += 1
        (await pool.acquire(model("big", 200), None)).release()
        assert names(pool) == {"held:latest", "new:latest", "big:latest"}
        held.release()

    with_pool(body, memory_budget=1000 * MB, kv_cache_size=100 * MB)


def test_a_model_that_nearly_fits_gets_fewer_kv_blocks(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        await pool.acquire(model("held", 100), None)
        await pool.acquire(model("tight", 100), None)
        assert machine.loads == [("held:latest", 300 * MB), ("tight:latest", 100 * MB)]

    with_pool(body, memory_budget=600 * MB, kv_cache_size=300 * MB)


def test_a_model_that_cannot_fit_says_what_it_needs(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        (await pool.acquire(model("idle", 100), None)).release()
        with pytest.raises(ModelLoadFailed, match=r"'big:latest': it needs 664 MB, 400 of 600 MB are free$"):
            await pool.acquire(model("big", 600), None)
        assert names(pool) == {"idle:latest"}, "nobody leaves in vain"

    with_pool(body, memory_budget=600 * MB, kv_cache_size=100 * MB)


def test_a_pinned_model_stays_and_the_refusal_names_it(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        await pool.load(model("kept", 200), KeepAlive(None))
        (await pool.acquire(model("kept", 200), None)).release()  # says nothing of how long
        with pytest.raises(ModelLoadFailed, match=r"held by kept:latest \(300 MB, pinned\)"):
            await pool.acquire(model("big", 300), None)
        assert names(pool) == {"kept:latest"}
        await pool.load(model("kept", 200), KeepAlive(60))
        (await pool.acquire(model("big", 300), None)).release()
        assert names(pool) == {"big:latest"}

    with_pool(body, memory_budget=600 * MB, kv_cache_size=100 * MB)


def test_a_server_that_never_unloads_idle_models_still_makes_room(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        (await pool.acquire(model("a"), None)).release()
        assert await pool.expire() is None
        (await pool.acquire(model("b"), None)).release()
        assert names(pool) == {"b:latest"}

    with_pool(body, keep_alive="-1", max_loaded_models=1)


async def until(condition: Callable[[], bool]) -> None:
    """Let others run; `with_pool` bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


def why_not_yet(pool: ModelPool) -> list[str]:
    return [load.why_not_yet for load in pool._loads.values()]


def test_a_load_waits_while_the_models_in_its_way_are_in_use(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        held = await pool.acquire(model("held", 300), KeepAlive(3600))
        waiting = asyncio.create_task(pool.acquire(model("next", 300), None))
        await until(lambda: any("held by held:latest" in why for why in why_not_yet(pool)))
        again = await pool.acquire(model("held", 300), None)  # is there, so it need not wait
        held.release()
        await asyncio.sleep(0)
        assert not waiting.done()
        again.release()
        (await waiting).release()
        assert names(pool) == {"next:latest"}

    with_pool(body, memory_budget=600 * MB, kv_cache_size=100 * MB)


def test_a_request_waits_so_long_and_no_longer(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        held = None
        while held is None:
            with suppress(LoadTimeout):  # a load that was too slow goes on
                held = await pool.acquire(model("held", 300), None)
        with pytest.raises(LoadTimeout, match=r"waited 0\.02 s for 'next:latest': it needs 364 MB, .* in use"):
            await pool.acquire(model("next", 300), None)
        held.release()
        await until(lambda: not pool._loads)
        assert "next:latest" not in [name for name, _ in machine.loads], "nobody waits for it any more"
        assert names(pool) == {"held:latest"}

    with_pool(body, memory_budget=600 * MB, kv_cache_size=100 * MB, load_timeout_s=0.02)


def test_a_load_that_has_waited_goes_before_new_requests_for_the_models_in_its_way(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        small = await pool.acquire(model("small", 50), None)
        machine.now += 1
        held = await pool.acquire(model("held", 300), None)
        waiting = asyncio.create_task(pool.acquire(model("next", 300), None))
        await until(lambda: any("held by" in why for why in why_not_yet(pool)))
        machine.now += 4.9
        (await pool.acquire(model("held", 300), None)).release()  # the load is patient, for a time
        machine.now += 0.05
        small.release()
        small = await pool.acquire(model("small", 50), None)  # since when `held` is the least recently used
        machine.now += 0.1
        aside = [asyncio.create_task(pool.acquire(model("held", 300), None)) for _ in range(2)]
        (await pool.acquire(model("small", 50), None)).release()  # is not in its way
        held.again().release()  # a request that has begun need not wait
        await asyncio.sleep(0)
        assert not any(task.done() for task in (waiting, *aside))
        with pytest.raises(Overloaded):
            await pool.acquire(model("held", 300), None)
        held.release()
        (await waiting).release()
        for task in aside:
            (await task).release()
        small.release()
        assert [name for name, _ in machine.loads].count("held:latest") == 2

    with_pool(body, memory_budget=600 * MB, kv_cache_size=64 * MB, max_sequences=1, max_queue=1)


def test_requests_that_stand_aside_go_on_when_the_load_is_given_up(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        held = await pool.acquire(model("held"), None)
        waiting = asyncio.create_task(pool.acquire(model("next"), None))
        await until(lambda: any("held by" in why for why in why_not_yet(pool)))
        machine.now += 5
        aside = asyncio.create_task(pool.acquire(model("held"), None))
        await asyncio.sleep(0)
        assert not aside.done()
        waiting.cancel()
        again = await aside
        assert again.loaded is held.loaded
        assert names(pool) == {"held:latest"}

    with_pool(body, max_loaded_models=1)


def test_standing_aside_has_an_end(machine: Machine, model: Callable[..., InstalledModel], with_pool: Any) -> None:
    async def body(pool: ModelPool) -> None:
        held = None
        while held is None:
            with suppress(LoadTimeout):  # a load that was too slow goes on
                held = await pool.acquire(model("held"), None)
        waiting = [asyncio.create_task(pool.acquire(model("next"), None))]
        await until(lambda: any("held by" in why for why in why_not_yet(pool)))
        machine.now += 5
        aside = asyncio.create_task(pool.acquire(model("held"), None))
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(pool.acquire(model("next"), None)))  # the load outlives it
        with pytest.raises(LoadTimeout, match=r"waited 0\.02 s for 'held:latest': it has to make room"):
            await aside
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, LoadTimeout) for error in ended)

    with_pool(body, max_loaded_models=1, load_timeout_s=0.02)


def test_a_load_that_has_begun_goes_on_when_all_have_left(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        machine.may_load.clear()
        leaving = asyncio.create_task(pool.acquire(model("a"), KeepAlive(None)))
        assert await asyncio.to_thread(machine.is_loading.wait, 10)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        machine.may_load.set()
        await until(lambda: names(pool) == {"a:latest"})
        (loaded,) = pool.loaded()
        assert loaded.num_leases == 0
        assert await pool.expire() == 300

    with_pool(body)


def test_no_more_requests_wait_for_a_load_than_may_wait_for_the_model(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        machine.may_load.clear()
        waiting = [asyncio.create_task(pool.acquire(model("a"), None)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.acquire(model("a"), None)
        machine.may_load.set()
        assert len({id((await task).loaded) for task in waiting}) == 1

    with_pool(body, max_sequences=1, max_queue=2)


def test_the_next_load_cannot_take_the_place_before_those_who_waited_had_their_turn(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        async def use(name: str) -> None:
            (await pool.acquire(model(name), KeepAlive(0))).release()

        await asyncio.gather(*(use(name) for name in "abcabc"))
        assert [name for name, _ in machine.loads] == ["a:latest", "b:latest", "c:latest"]

    with_pool(body, max_loaded_models=1)


def test_a_value_replaces_an_earlier_one_and_none_does_not(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        for keep_alive, expected in [
            (None, 300),
            (KeepAlive(None), None),
            (None, None),
            (KeepAlive(60), 60),
            (None, 60),
        ]:
            (await pool.acquire(model("a"), keep_alive)).release()
            assert await pool.expire() == expected
        await pool.load(model("a"), KeepAlive(7))
        assert await pool.expire() == 7
        await pool.load(model("a"), KeepAlive(0))
        assert await pool.expire() is None
        assert pool.loaded() == []

    with_pool(body)


def test_no_more_models_than_allowed(machine: Machine, model: Callable[..., InstalledModel], with_pool: Any) -> None:
    async def body(pool: ModelPool) -> None:
        (await pool.acquire(model("a"), None)).release()
        await pool.load(model("b"), KeepAlive(None))
        assert names(pool) == {"b:latest"}
        with pytest.raises(ModelLoadFailed, match="1 of 1 models are loaded; held by b:latest"):
            await pool.acquire(model("c"), None)

    with_pool(body, max_loaded_models=1)


def test_the_list_begins_with_what_stays_longest(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        for name, seconds in (("short", 1.0), ("pinned", None), ("long", 100.0)):
            (await pool.acquire(model(name), KeepAlive(seconds))).release()
        loaded = pool.loaded()
        assert [entry.model.name for entry in loaded] == ["pinned:latest", "long:latest", "short:latest"]
        far, soon = loaded[0].expires_at(pool.now()), loaded[2].expires_at(pool.now())
        assert far - datetime.now(UTC) > timedelta(days=36500)
        assert abs(soon - datetime.now(UTC)) < timedelta(seconds=2)

    with_pool(body)


def test_a_closed_pool_loads_nothing(machine: Machine, model: Callable[..., InstalledModel], with_pool: Any) -> None:
    async def body(pool: ModelPool) -> None:
        await pool.acquire(model("a"), None)
        await pool.aclose()
        assert machine.runners["a:latest"].is_closed
        with pytest.raises(ShuttingDown):
            await pool.acquire(model("a"), None)

    with_pool(body)


def test_a_load_that_ends_while_the_pool_closes_is_closed_too(
    machine: Machine, model: Callable[..., InstalledModel], with_pool: Any
) -> None:
    async def body(pool: ModelPool) -> None:
        machine.may_load.clear()
        waiting = asyncio.create_task(pool.acquire(model("a"), None))
        assert await asyncio.to_thread(machine.is_loading.wait, 10)
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        machine.may_load.set()
        await closing
        assert machine.runners["a:latest"].is_closed
        with pytest.raises(ShuttingDown):
            await waiting

    with_pool(body)


def test_loading_reads_the_folder(tmp_path: Path, install: Install) -> None:
    write_echo_model(tmp_path / "echo")
    model = install("echo:latest", folder=tmp_path / "echo", context_length=100)
    ready = load_model(model, ECHO, 1 * MB, Settings(home=tmp_path, context_length=80))
    try:
        assert (ready.context_length, str(ready.placement)) == (80, "echo/CPU")
        assert ready.template is not None
        assert ready.token_bytes(65) == b"A"
    finally:
        asyncio.run(ready.engine.aclose())


def test_a_folder_without_a_tokenizer_is_refused_in_words(tmp_path: Path, install: Install) -> None:
    write_echo_model(tmp_path / "echo")
    (tmp_path / "echo" / "tokenizer.json").unlink()
    echo = install("echo:latest", folder=tmp_path / "echo", source="upload:echo.gguf")
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json is missing") as refused:
        load_model(echo, ECHO, 1 * MB, Settings(home=tmp_path))
    assert refused.value.hint == "create echo:latest again from its files"


def test_a_model_of_another_kind_than_its_manifest_says(machine: Machine, install: Install, with_pool: Any) -> None:
    async def body(pool: ModelPool) -> None:
        for source, mend in (("upload:m.gguf", "create m:latest again"), ("hf:a/b", "vmm pull hf:a/b --name m:latest")):
            with pytest.raises(ModelLoadFailed, match="is not what its manifest says") as refused:
                await pool.acquire(install("m:latest", source=source), None, ReadyEncoder)
            assert (refused.value.hint or "").startswith(mend)

    with_pool(body)
