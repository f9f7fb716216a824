"""The pool on a machine of four devices: fallback, rebalancing, memories of their own, and devices that fail."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vmm_server.errors import LoadTimeout, ModelLoadFailed
from vmm_server.models.leases import Lease
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import Placement, Work
from vmm_server.models.store import InstalledModel
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import Settings

from .fake_machine import CPU, GENAI, GPU, MB, NPU, SECOND_GPU, TOGETHER, FakeMachine, FakeReady, Hold, model

A, B, C = model("a"), model("b"), model("c")
ON_CPU, ON_GPU, ON_SECOND = Wanted(device="CPU"), Wanted(device="GPU.0"), Wanted(device="GPU.1")
SHORT = Work(num_prompt_tokens=100, num_output_tokens=100)


class Here(NamedTuple):
    """A pool, and whom it asks."""

    pool: ModelPool
    placer: Placer

    async def lease(
        self, wanted_model: InstalledModel = A, wanted: Wanted = ANYWHERE, keep_alive: KeepAlive | None = None
    ) -> Lease[FakeReady]:
        return await self.pool.acquire(wanted_model, keep_alive, FakeReady, wanted=wanted, work=SHORT)

    async def request(self, wanted: Wanted = ANYWHERE) -> Placement:
        """A request that stays with the model it went to."""
        lease = await self.lease(wanted=wanted)
        lease.ready.submit(SHORT.num_prompt_tokens, SHORT.num_output_tokens)
        lease.begun()
        return lease.loaded.placement

    def loaded(self) -> set[tuple[str, Placement]]:
        return {(each.name[0], each.placement) for each in self.pool.loaded()}

    async def settle(self) -> None:
        """Wait for loads that nobody waits for."""
        while tasks := [task for task in asyncio.all_tasks() if task.get_name().startswith(("load ", "unload "))]:
            await asyncio.gather(*tasks, return_exceptions=True)


Body = Callable[[Here], Coroutine[Any, Any, None]]


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def with_pool(machine: FakeMachine, tmp_path: Path) -> Callable[..., None]:
    def run(body: Body, **flags: Any) -> None:
        async def bounded() -> None:
            settings = Settings.model_validate(
                {"home": tmp_path, "memory_budget": 1000 * MB, "kv_cache_size": 64 * MB} | flags
            )
            placer = machine.placer(settings)
            pool = ModelPool(settings, machine.load, placer, clock=machine.clock)
            try:
                await asyncio.wait_for(body(Here(pool, placer)), 60)
            finally:
                await pool.aclose()

        asyncio.run(bounded())

    return run


# Fallback


def test_a_placement_that_fails_is_passed_over_and_left_alone(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        machine.refuses = {"CPU": "no such instruction", "GPU.0": "out of memory"}
        lease = await here.lease()
        assert lease.ready.placement == SECOND_GPU
        assert [placement for _, placement, _ in machine.loads] == [CPU, GENAI, GPU, SECOND_GPU]
        failure = here.placer.failure(A, GPU)
        assert failure is not None
        assert failure.reason == "out of memory"
        lease.release()
        await here.pool.unload(A)
        machine.loads.clear()
        (await here.lease()).release()
        assert [placement for _, placement, _ in machine.loads] == [SECOND_GPU]

    with_pool(body)


def test_where_none_takes_it_the_error_has_each_ones_reason(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        machine.refuses = {"CPU": "no such instruction", "GPU.0": "out of memory", "GPU.1": "no driver"}
        for _ in range(2):  # those that failed lately are tried again when all have
            with pytest.raises(ModelLoadFailed) as caught:
                await here.lease()
            assert set(caught.value.message.removeprefix("cannot load 'a:latest': ").split("; ")) == {
                "openvino/CPU: no such instruction",
                "onnxruntime-genai/CPU: no such instruction",
                "openvino/GPU.0: out of memory",
                "openvino/GPU.1: no driver",
            }
        assert len(machine.loads) == 8
        with pytest.raises(ModelLoadFailed, match=r"^no driver$"):
            await here.lease(wanted=ON_SECOND)

    with_pool(body)


def test_what_failed_lately_is_the_last_resort(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        await here.placer.candidates(A)
        for placement in (CPU, GENAI):
            here.placer.failed(A, placement, "once")
        machine.refuses = {"GPU.0": "no", "GPU.1": "no"}
        assert (await here.lease()).ready.placement == CPU
        assert [placement for _, placement, _ in machine.loads] == [GPU, SECOND_GPU, CPU]

    with_pool(body)


# Memories


def test_what_does_not_fit_a_gpu_goes_to_the_next_placement(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        large = model("large", 1100)
        assert (await here.lease(large)).ready.placement == TOGETHER
        assert (await here.lease(model("huge", 2100))).ready.placement == CPU
        with pytest.raises(ModelLoadFailed) as caught:
            await here.lease(model("monster", 9000))
        for placement in (GPU, SECOND_GPU, TOGETHER, CPU, GENAI):
            assert f"{placement}: no room for 'monster:latest': it needs 9064 MB, " in caught.value.message

    with_pool(body, memory_budget=4000 * MB)


def test_each_memory_has_a_budget_of_its_own(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        for wanted in (ON_CPU, ON_GPU, ON_SECOND):
            for each in (model("d", 400), model("e", 400)):
                (await here.lease(each, wanted)).release()
        assert len(here.loaded()) == 6
        (await here.lease(model("f", 400), ON_GPU)).release()
        assert ("d", GPU) not in here.loaded(), "the least recently used one of that memory"
        assert len(here.loaded()) == 6

    with_pool(body)


def test_a_model_on_both_gpus_counts_in_both(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        (await here.lease(wanted=ON_GPU)).release()
        (await here.lease(B, ON_SECOND)).release()
        (await here.lease(C, ON_CPU)).release()
        (await here.lease(model("large", 1900))).release()
        assert here.loaded() == {("l", TOGETHER), ("c", CPU)}
        (await here.lease(wanted=ON_GPU)).release()
        assert here.loaded() == {("a", GPU), ("c", CPU)}

    with_pool(body)


def test_models_are_counted_across_memories(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        on_gpu = await here.lease(A, ON_GPU)
        (await here.lease(B, ON_CPU)).release()
        (await here.lease(C, ON_SECOND)).release()
        assert here.loaded() == {("a", GPU), ("c", SECOND_GPU)}
        kept = await here.lease(C, ON_SECOND)
        with pytest.raises(LoadTimeout, match=r"2 of 2 models are loaded; held by .*a:latest \(164 MB, in use\)"):
            await here.lease(B, ON_CPU)
        on_gpu.release()
        assert (await here.lease(B, ON_CPU)).ready.placement == CPU
        assert here.loaded() == {("b", CPU), ("c", SECOND_GPU)}
        kept.release()

    with_pool(body, max_loaded_models=2, load_timeout_s=0.2)


def test_a_load_does_not_wait_for_one_placement_while_another_has_room(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        busy = await here.lease(model("busy", 900), ON_CPU)
        lease = await here.lease(model("other", 500))
        assert lease.ready.placement == GPU
        with pytest.raises(LoadTimeout, match=r"500 MB.*36 of 1000 MB are free.*held by busy:latest"):
            await here.lease(model("third", 436), ON_CPU)
        busy.release()
        assert (await here.lease(model("third", 436), ON_CPU)).ready.placement == CPU
        assert ("b", CPU) not in here.loaded()

    with_pool(body, load_timeout_s=0.2)


def test_a_load_that_waits_holds_up_requests_in_its_own_memory_only(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        on_cpu, on_gpu = await here.lease(model("busy", 900), ON_CPU), await here.lease(B, ON_GPU)
        waiting = asyncio.create_task(here.lease(model("other", 500), ON_CPU))
        await asyncio.sleep(0)
        while not machine.now > 1004:
            machine.now += 1
            await asyncio.sleep(0)
        machine.now += 10
        again = asyncio.create_task(here.lease(model("busy", 900), ON_CPU))
        assert (await here.lease(B, ON_GPU)).ready is on_gpu.ready
        assert not again.done(), "it stands aside"
        on_cpu.release()
        (await waiting).release()
        (await again).release()

    with_pool(body)


# Devices that fail


def test_what_failed_leaves_at_once_used_pinned_or_not(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        used = await here.lease(A, ON_GPU, KeepAlive(None))
        (await here.lease(B, ON_GPU, KeepAlive(None))).release()
        reaper = asyncio.create_task(here.pool.run())
        machine.lose("GPU.0")
        used.release()
        await asyncio.sleep(0)
        await here.settle()
        assert here.loaded() == set()
        assert all(each.is_closed for each in machine.ready)
        failure = here.placer.failure(B, GPU)
        assert failure is not None
        assert failure.reason == "the device GPU.0 failed: the driver was reset"
        reaper.cancel()

    with_pool(body)


def test_requests_go_elsewhere_while_a_device_is_lost_and_back_when_it_has_rested(
    machine: FakeMachine, with_pool: Any
) -> None:
    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        assert await here.request() == GPU
        machine.lose("GPU.0")
        assert await here.request() == SECOND_GPU
        await here.settle()
        assert here.loaded() == {("a", SECOND_GPU)}
        machine.find("GPU.0")
        for _ in range(20):
            assert await here.request() == SECOND_GPU
        await here.settle()
        assert ("a", GPU) not in here.loaded(), "it rests"
        machine.now += 60
        for _ in range(40):
            await here.request()
        await here.settle()
        assert ("a", GPU) in here.loaded()

    with_pool(body)


def test_a_dead_device_that_is_slow_to_go_holds_up_nobody(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        lease = await here.lease(A, ON_GPU)
        may_close = asyncio.Event()
        lease.ready.aclose = may_close.wait  # type: ignore[assignment]
        machine.lose("GPU.0")
        assert (await here.lease(model("large", 900))).ready.placement == SECOND_GPU
        may_close.set()

    with_pool(body, memory_budget=1 * MB)


# Several placements at once


def test_a_burst_is_shared_by_what_is_loaded_in_proportion(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        for wanted in (ON_CPU, ON_GPU, ON_SECOND):
            (await here.lease(wanted=wanted)).release()
        leases = [await here.lease() for _ in range(120)]  # none has been submitted when the next one comes
        counts = dict.fromkeys((CPU, GENAI, GPU, SECOND_GPU), 0)
        for lease in leases:
            counts[lease.ready.placement] += 1
            lease.ready.submit(SHORT.num_prompt_tokens, SHORT.num_output_tokens)
            lease.begun()
        assert counts[GPU] == pytest.approx(2 * counts[SECOND_GPU], abs=3), "it is twice as fast"
        assert 0 < counts[CPU] + counts[GENAI] < counts[SECOND_GPU]
        ends: dict[Placement, float] = {}
        while len(ends) < 3:
            machine.advance(1)
            ends |= {
                each.placement: machine.now for each in machine.ready if not each.queue and each.placement not in ends
            }
        assert max(ends.values()) - 1000 < 1.5 * (min(ends.values()) - 1000), "and they end at about the same time"

    with_pool(body)


def test_a_second_placement_is_loaded_when_it_pays_and_shares_the_rest(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        assert await here.request(ON_CPU) == CPU
        went = []
        for _ in range(40):
            went.append(await here.request(Wanted(backend="openvino")))
            await here.settle()
        first = went.index(GPU)
        assert set(went[:first]) == {CPU}
        queued_s = (first + 1) * (100 / 200 + 100 / 80)
        assert queued_s > 10, "the load takes 10 s"
        assert len(machine.loads) in (2, 3), "each once"
        assert went[first:].count(GPU) > 3 * went[first:].count(CPU)

    with_pool(body)


def test_nobody_leaves_for_a_second_placement(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        for wanted in (ON_GPU, ON_SECOND):
            (await here.lease(model("other", 900), wanted)).release()
        await here.request(ON_CPU)
        for _ in range(40):
            await here.request(Wanted(backend="openvino"))
            await here.settle()
        assert here.loaded() == {("a", CPU), ("o", GPU), ("o", SECOND_GPU)}

    with_pool(body)


def test_a_second_placement_stays_as_long_as_the_first_and_is_unloaded_with_it(
    machine: FakeMachine, with_pool: Any
) -> None:
    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        (await here.lease(wanted=ON_CPU, keep_alive=KeepAlive(77.0))).release()
        for _ in range(30):
            await here.request(Wanted(backend="openvino"))
        await here.settle()
        assert {each.keep_alive for each in here.pool.loaded()} == {KeepAlive(77.0)}
        assert len(here.pool.loaded()) > 1
        for each in here.pool.loaded():
            for _ in range(each.num_leases):
                here.pool._residents.give_back(each)  # the leases of `request`
        assert await here.pool.unload(A)
        await here.settle()
        assert here.loaded() == set()

    with_pool(body)


def test_a_load_for_later_makes_way_for_one_that_is_waited_for(machine: FakeMachine, with_pool: Any) -> None:
    may_load = threading.Event()
    load = machine.load

    def held(wanted: InstalledModel, placement: Placement, kv_cache_bytes: int) -> FakeReady:
        assert wanted is not B or may_load.wait(10)
        return load(wanted, placement, kv_cache_bytes)

    machine.load = held  # type: ignore[method-assign]

    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        await here.request(ON_CPU)
        first = asyncio.create_task(here.lease(B, ON_CPU))
        for _ in range(40):  # by now another placement would pay, but it is B's turn
            await here.request(Wanted(backend="openvino"))
        second = asyncio.create_task(here.lease(C, ON_CPU))
        await asyncio.sleep(0)
        may_load.set()
        (await first).release()
        (await second).release()
        await here.settle()
        assert [name for name, _, _ in machine.loads] == ["a:latest", "b:latest", "c:latest"]

    with_pool(body)


def test_what_is_unloaded_does_not_come_back_by_a_load_for_later(machine: FakeMachine, with_pool: Any) -> None:
    hold = machine.holds["GPU.0"] = Hold()

    async def body(here: Here) -> None:
        await machine.measure(here.placer, A)
        lease = await here.lease(wanted=ON_CPU)
        lease.ready.queue.extend(lease.ready.submit() for _ in range(60))
        lease.begun()
        (await here.lease(wanted=Wanted(backend="openvino"))).release()
        lease.release()
        assert await here.pool.unload(A)
        hold.may_load.set()
        await here.settle()
        await here.pool.expire()
        assert here.loaded() == set()
        assert all(each.is_closed for each in machine.ready)

    with_pool(body)


def test_an_npu_serves_those_who_ask_for_it_alone(machine: FakeMachine, with_pool: Any) -> None:
    async def body(here: Here) -> None:
        asked = await here.lease(wanted=Wanted(device="NPU"))
        assert asked.ready.placement == NPU
        assert (await here.lease()).ready.placement == CPU
        asked.release()
        assert await here.pool.unload(A, Wanted(device="NPU"))
        assert here.loaded() == {("a", CPU)}

    with_pool(body)
