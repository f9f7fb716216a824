"""Measurements of a model's placements, asked for and behind, over a pool of echo models with scripted speeds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_adapters.echo import END, EchoRunner, write_echo_model
from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.errors import (
    GenerationFailed,
    ModelLoadFailed,
    ShuttingDown,
    UnsupportedCapability,
    UnsupportedParameter,
)
from vmm_server.models.calibration import Calibrated, Calibrating, Calibrator
from vmm_server.models.loading import ReadyModel, model_format
from vmm_server.models.machine import MachineReader
from vmm_server.models.measuring import Speeds
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import Placement, Profile
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.requests import ANYWHERE, Wanted
from vmm_server.settings import Settings

MB = 1 << 20
CPU, GENAI, CUDA = (
    Placement("openvino", "CPU"),
    Placement("onnxruntime-genai", "CPU"),
    Placement("onnxruntime-genai", "CUDA.0"),
)
SPEEDS = {CPU: Speeds(50, 200, 1000), GENAI: Speeds(40, 100, 500), CUDA: Speeds(45, 900, 9000)}


def device(name: str, kind: DeviceKind, *adapters: str) -> Device:
    return Device(name, kind, "a maker", name, uses=tuple(AdapterUse(adapter, name) for adapter in adapters))


MACHINE = Machine(
    devices=(
        device("CPU", DeviceKind.CPU, "openvino", "onnxruntime-genai"),
        device("CUDA.0", DeviceKind.GPU, "onnxruntime-genai"),
    ),
    packages={},
)


@dataclass
class World:
    """A pool, and a calibrator whose measurements take no time unless `during` does something."""

    pool: ModelPool
    placer: Placer
    clock: Any
    load: "Loader"
    during: Callable[[ReadyModel], Awaitable[object]] | None = None
    measured: list[Placement] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    calibrator: Calibrator = field(init=False)

    def __post_init__(self) -> None:
        self.calibrator = Calibrator(self.pool, self.placer, measure=self.measure, pause=self.pause)

    async def measure(self, ready: ReadyModel) -> Speeds:
        self.measured.append(ready.placement)
        if self.during:
            await self.during(ready)
        return SPEEDS[ready.placement]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    async def calibrate(self, model: InstalledModel, wanted: Wanted = ANYWHERE) -> list[Calibrated]:
        return [event async for event in self.calibrator.calibrate(model, wanted) if isinstance(event, Calibrated)]

    async def use(self, model: InstalledModel, wanted: Wanted = ANYWHERE) -> None:
        """A request that comes and ends at once."""
        (await self.pool.acquire(model, None, wanted=wanted)).release()

    def loaded(self) -> list[Placement]:
        return [loaded.placement for loaded in self.pool.loaded()]


class Loader:
    """Each load takes 2 s of the clock; `failures` has the words of those that fail."""

    def __init__(self, folder: Path, clock: Any) -> None:
        write_echo_model(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._clock = clock
        self.loads: list[Placement] = []
        self.failures: dict[Placement, str] = {}

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> ReadyModel:
        self.loads.append(placement)
        self._clock.advance(2.0)
        if placement in self.failures:
            raise ModelLoadFailed(self.failures[placement])
        runner, tokenizer = EchoRunner(), self._tokenizer
        spell = Spelling(tokenizer)
        return ReadyModel(
            engine=Engine(
                runner, tokenizer, eos_token_ids=frozenset({END}), options=EngineOptions(), context_length=512
            ),
            tokenizer=tokenizer,
            token_bytes=TokenBytes(tokenizer),
            template=None,
            format=model_format(model, None, spell),
            spell=spell,
            placement=placement,
            context_length=512,
            vocab_size=runner.vocab_size,
            memory_bytes=model.size_bytes + kv_cache_bytes,
        )


Body = Callable[[World], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, clock: Any) -> Run:
    """Run `body(world)` on an event loop, at most 20 s; flags become settings."""

    @asynccontextmanager
    async def world(**flags: Any) -> AsyncIterator[World]:
        settings = Settings.model_validate(
            {"home": tmp_path, "memory_budget": 1000 * MB, "kv_cache_size": 64 * MB, **flags}
        )
        placer = Placer(settings, MachineReader(lambda: MACHINE).read, clock=clock)
        load = Loader(tmp_path / "echo", clock)
        pool = ModelPool(settings, load, placer, clock=clock)
        try:
            yield World(pool, placer, clock, load)
        finally:
            await pool.aclose()

    def run(body: Body, **flags: Any) -> None:
        async def bounded() -> None:
            async with world(**flags) as made:
                await asyncio.wait_for(body(made), 60)

        asyncio.run(bounded())

    return run


@pytest.fixture
def model(install: Callable[..., InstalledModel]) -> InstalledModel:
    return make(install, "a")


def make(install: Callable[..., InstalledModel], name: str, **fields: Any) -> InstalledModel:
    digest = name.encode().hex().ljust(64, "0")
    return install(f"{name}:latest", digest=digest, adapter="openvino", key=name, **{"size_bytes": 100 * MB} | fields)


def test_every_placement_is_loaded_measured_kept_and_unloaded(run: Run, model: InstalledModel, tmp_path: Path) -> None:
    async def body(world: World) -> None:
        events = [event async for event in world.calibrator.calibrate(model)]
        assert events[::2] == [Calibrating(placement, n, 3) for n, placement in enumerate((CPU, GENAI, CUDA), 1)]
        profile = Profile(50, 200, 1000, load_s=2.0, memory_bytes=164 * MB)
        assert events[1] == Calibrated(CPU, profile)
        assert world.measured == world.load.loads == [CPU, GENAI, CUDA]
        assert world.loaded() == []
        again = Placer(Settings.model_validate({"home": tmp_path}), MachineReader(lambda: MACHINE).read)
        await again.know_machine()
        assert again.profiles(model)[CPU] == profile
        assert again.profiles(model).keys() == {CPU, GENAI, CUDA}

    run(body)


def test_what_was_loaded_stays_and_keeps_the_time_that_its_load_took(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model)
        world.clock.advance(50)
        found = await world.calibrate(model)
        assert world.loaded() == [CPU]
        assert world.load.loads == [CPU, GENAI, CUDA]
        assert [each.profile.load_s for each in found if each.profile] == [2.0] * 3

    run(body)


@pytest.mark.parametrize(
    ("wanted", "settings", "expected"),
    [
        (Wanted("cpu"), {}, [CPU, GENAI]),
        (Wanted(backend="onnxruntime-genai"), {}, [GENAI, CUDA]),
        (Wanted("CUDA", "onnxruntime-genai"), {}, [CUDA]),
        (Wanted(), {"backend": "openvino"}, [CPU]),
        (Wanted("CPU"), {"device": "CUDA.0"}, [CPU, GENAI]),
    ],
)
def test_only_what_is_wanted_is_measured(
    run: Run, model: InstalledModel, wanted: Wanted, settings: dict[str, str], expected: list[Placement]
) -> None:
    async def body(world: World) -> None:
        assert [each.placement for each in await world.calibrate(model, wanted)] == expected
        assert [row.placement for row in (await world.calibrator.report(model, wanted)).rows] == expected

    run(body, **settings)


def test_a_placement_that_is_not_here_is_refused_before_anything_is_loaded(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        with pytest.raises(UnsupportedParameter, match="placements"):
            await world.calibrate(model, Wanted("NPU"))
        assert world.load.loads == []

    run(body)


def test_encoders_are_not_measured(run: Run, install: Callable[..., InstalledModel]) -> None:
    async def body(world: World) -> None:
        with pytest.raises(UnsupportedCapability, match="encoders of texts are not measured"):
            await world.calibrate(make(install, "words", capabilities=("embedding",)))

    run(body)


def test_what_answers_whole_is_measured_for_its_own_work(run: Run, install: Callable[..., InstalledModel]) -> None:
    async def body(world: World) -> None:
        seen = make(install, "seen", capabilities=("detection",))
        report = await world.calibrator.report(seen)
        assert report.choices.keys() == {"1 at a time", "16 at a time"}
        assert {str(row.placement) for row in report.rows} == {"openvino/CPU"}

    run(body)


def test_what_fails_has_its_reason_and_the_others_decide_without_it(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        async def fail(ready: ReadyModel) -> None:
            if ready.placement == GENAI:
                raise GenerationFailed("no kernel")

        world.load.failures[CUDA] = "no driver"
        world.during = fail
        found = {each.placement: each for each in await world.calibrate(model)}
        assert found[GENAI] == Calibrated(GENAI, reason="no kernel")
        assert found[CUDA] == Calibrated(CUDA, reason="no driver")
        assert world.loaded() == []
        report = await world.calibrator.report(model)
        assert [(row.placement, row.reason) for row in report.rows] == [
            (CPU, None),
            (GENAI, "no kernel"),
            (CUDA, "no driver"),
        ]
        assert report.is_measured
        assert set(report.choices.values()) == {CPU}
        world.clock.advance(10_000)
        later = await world.placer.placements(model, ANYWHERE)
        assert later[0] == CPU, "what failed was never measured: no reason to go back to rules of thumb"
        assert set(later) == {CPU, GENAI, CUDA}
        world.load.failures, world.during = {}, None
        assert all(each.profile for each in await world.calibrate(model))
        assert (await world.calibrator.report(model, Wanted("CPU"))).is_measured

    run(body)


def test_the_report_says_where_the_router_sends_what(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        before = await world.calibrator.report(model)
        assert not before.is_measured
        assert [(row.profile, row.reason) for row in before.rows] == [(None, None)] * 3
        await world.calibrate(model)
        report = await world.calibrator.report(model)
        assert report.is_measured
        assert report.choices == {"1 stream": CUDA, "16 streams": CUDA, "long prompt": CUDA}
        on_cpu = await world.calibrator.report(model, Wanted("CPU"))
        assert set(on_cpu.choices.values()) == {CPU}

    run(body)


def test_a_measurement_that_others_disturbed_is_repeated(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model)

        async def disturb(ready: ReadyModel) -> None:
            if len(world.measured) <= 2:
                await world.use(model, Wanted("CPU", "openvino"))

        world.during = disturb
        (found,) = await world.calibrate(model, Wanted("CPU", "onnxruntime-genai"))
        assert found.profile
        assert world.measured == [GENAI] * 3
        assert world.pauses == [1.0, 1.0]

    run(body)


def test_a_measurement_that_is_always_disturbed_is_given_up(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        async def disturb(ready: ReadyModel) -> None:
            await world.use(model, Wanted("CPU", "openvino"))

        world.during = disturb
        (found,) = await world.calibrate(model, Wanted("CPU", "openvino"))
        assert found == Calibrated(CPU, reason="other requests ran on CPU meanwhile")
        assert world.measured == [CPU] * 5

    run(body)


def test_what_others_do_on_another_device_disturbs_nothing(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model, Wanted("CUDA.0"))

        async def elsewhere(ready: ReadyModel) -> None:
            await world.use(model, Wanted("CUDA.0"))

        world.during = elsewhere
        assert all(each.profile for each in await world.calibrate(model, Wanted("CPU")))
        assert world.measured == [CPU, GENAI]

    run(body)


def test_nothing_is_measured_while_a_request_runs_on_the_device(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        lease = await world.pool.acquire(model, None, wanted=Wanted("CPU", "openvino"))
        (found,) = await world.calibrate(model, Wanted("CPU", "onnxruntime-genai"))
        assert found.reason == "other requests ran on CPU meanwhile"
        assert world.measured == []
        lease.release()

    run(body)


async def until_measuring(world: World, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start `work`; returns in the middle of its next measurement, which ends only when it is cancelled."""
    begun = asyncio.Event()

    async def hang(ready: ReadyModel) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.during = hang
    task = asyncio.create_task(work)
    await begun.wait()
    world.during = None
    return task


def test_a_client_that_leaves_ends_the_measurement(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        task = await until_measuring(world, world.calibrate(model))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.loaded() == []
        assert all(each.profile for each in await world.calibrate(model))

    run(body)


def test_a_shutdown_ends_the_measurement(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        task = await until_measuring(world, world.calibrate(model))
        world.calibrator.stop()
        with pytest.raises(ShuttingDown):
            await task
        assert world.loaded() == []

    run(body)


def test_behind_placements_are_measured_one_at_a_time_once_the_pool_is_idle(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        step = world.calibrator.step
        assert await step() == 5.0
        lease = await world.pool.acquire(model, None)
        world.clock.advance(100)
        assert await step() == 5.0
        lease.release()
        world.clock.advance(8)
        assert await step() == pytest.approx(2.0)
        assert world.measured == []
        for expected in (CPU, GENAI, CUDA):
            world.clock.advance(10)
            num_measured = len(world.measured)
            assert await step() == 1.0
            assert world.measured[num_measured:] == [expected]
            assert world.loaded() == [CPU]
        world.clock.advance(100)
        assert await step() == 5.0
        assert len(world.measured) == 3
        assert (await world.calibrator.report(model)).is_measured

    run(body)


def test_a_request_ends_what_is_measured_behind_and_it_is_tried_again_after_twice_the_time(
    run: Run, model: InstalledModel
) -> None:
    async def body(world: World) -> None:
        await world.use(model)
        await world.calibrate(model, Wanted("CPU", "openvino"))
        world.clock.advance(10)
        task = await until_measuring(world, world.calibrator.step())
        assert set(world.loaded()) == {CPU, GENAI}
        lease = await world.pool.acquire(model, None)
        assert lease.loaded.placement == CPU
        await task
        lease.release()
        assert world.loaded() == [CPU]
        assert GENAI not in world.placer.profiles(model)
        world.clock.advance(10)
        await world.calibrator.step()
        assert CUDA in world.placer.profiles(model), "others need not wait for it"
        world.clock.advance(19)
        assert await world.calibrator.step() == pytest.approx(1.0)
        world.clock.advance(1)
        await world.calibrator.step()
        assert GENAI in world.placer.profiles(model)

    run(body)


def test_what_is_measured_behind_makes_way_for_what_is_asked_for(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model)
        world.clock.advance(10)
        task = await until_measuring(world, world.calibrator.step())
        found = await world.calibrate(model)
        assert task.done()
        assert all(each.profile for each in found)

    run(body)


def test_no_model_leaves_for_what_is_measured_behind(
    run: Run, model: InstalledModel, install: Callable[..., InstalledModel]
) -> None:
    async def body(world: World) -> None:
        other = make(install, "b", size_bytes=700 * MB)
        await world.use(other)
        await world.use(model)
        await world.calibrate(model, Wanted("CPU", "openvino"))
        loads = list(world.load.loads)
        for _ in range(3):
            world.clock.advance(60)
            await world.calibrator.step()
        assert world.load.loads == loads
        assert {loaded.name for loaded in world.pool.loaded()} == {"a:latest", "b:latest"}
        assert (await world.calibrator.report(model)).rows[1].reason is None, "there may be room another time"

    run(body, keep_alive="-1")


def test_what_failed_behind_is_not_tried_again(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        world.load.failures[GENAI] = "no"
        await world.use(model)
        for _ in range(10):
            world.clock.advance(4000)
            await world.calibrator.step()
        assert world.load.loads.count(GENAI) == 1
        assert world.placer.profiles(model).keys() == {CPU, CUDA}

    run(body, keep_alive="-1")


@pytest.mark.parametrize("flags", [{"backend": "openvino"}, {"device": "CUDA.0"}])
def test_where_there_is_no_choice_nothing_is_measured_behind(
    run: Run, model: InstalledModel, flags: dict[str, str]
) -> None:
    async def body(world: World) -> None:
        await world.use(model)
        await world.use(model, Wanted("CPU", "onnxruntime-genai"))
        world.clock.advance(100)
        assert await world.calibrator.step() == 5.0
        assert world.measured == []

    run(body, **flags)


def test_nothing_is_begun_after_the_end(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model)
        world.clock.advance(100)
        world.calibrator.stop()
        await world.calibrator.run()
        assert world.pauses == []
        await world.calibrator.step()
        assert world.measured == []
        with pytest.raises(ShuttingDown):
            await world.calibrate(model)

    run(body)


def test_it_runs_until_it_is_stopped(run: Run, model: InstalledModel) -> None:
    async def body(world: World) -> None:
        await world.use(model)

        async def pause(seconds: float) -> None:
            await world.pause(seconds)
            if len(world.measured) == 3:
                calibrator.stop()

        calibrator = Calibrator(world.pool, world.placer, measure=world.measure, pause=pause)
        await calibrator.run()
        assert world.measured == [CPU, GENAI, CUDA]

    run(body)
