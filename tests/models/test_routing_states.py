"""Models on a machine of four devices: any order of requests with any wishes, failing loads, devices that are lost
and found, measurements, releases, unloads and time.

Nothing happens by itself: a load waits until the machine ends it, and so does the closing of a model.
"""

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmm_server.errors import ModelLoadFailed, ShuttingDown, UnsupportedParameter
from vmm_server.models.leases import Lease, LoadedModel
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import NoLoad, Placement, Profile, Work, devices_of, exactly, finish_s, matches
from vmm_server.models.store import InstalledModel
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import Settings

from .fake_machine import CPU, GENAI, GPU, MB, NPU, SECOND_GPU, SPEEDS, TOGETHER, FakeMachine, FakeReady, model

BUDGET, KV = 700 * MB, 64 * MB
MODELS = {each.name[0]: each for each in (model("a", 300), model("b", 500), model("c", 800), model("d", 1200))}
"""`b` and `c` are not on one device together; `c` fits the GPUs alone, and `d` both together."""
DEVICES = ("CPU", "GPU.0", "GPU.1")
WORK = Work(num_prompt_tokens=100, num_output_tokens=100)
WISHES = (
    ANYWHERE,
    ANYWHERE,
    Wanted(device="CPU"),
    Wanted(device="GPU"),
    Wanted(device="GPU.1"),
    Wanted(device="NPU"),
    Wanted(backend="openvino"),
    Wanted(device="CPU", backend="onnxruntime-genai"),
    Wanted(needs_logits=True),
    Wanted(device="CUDA"),
)

names = st.sampled_from("aaaabcd")
wishes = st.sampled_from(WISHES)
keep_alives = st.sampled_from([None, None, None, KeepAlive(0.0), KeepAlive(10.0), KeepAlive(None)])


def is_wished(wanted: Wanted, placement: Placement) -> bool:
    if wanted.device is None:
        return placement != NPU and wanted.backend in (None, placement.adapter)
    return matches(wanted, placement)


class ByHand(ThreadPoolExecutor):
    """Runs what it is given when it is told to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: list[tuple[Future[Any], Any]] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: work(*args, **kwargs)))
        return future

    def run(self) -> None:
        future, work = self.waiting.pop(0)
        try:
            future.set_result(work())
        except ModelLoadFailed as error:
            future.set_exception(error)


@dataclass(eq=False)
class Ready(FakeReady):
    """A loaded model that closes when it is told to."""

    begin_close: Any = None
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    async def aclose(self) -> None:
        self.begin_close(self)
        await self.may_close.wait()
        await super().aclose()


@dataclass(eq=False)
class Held:
    """A lease, and whether its request was submitted."""

    name: str
    lease: Lease[Ready]
    is_submitted: bool = False


class CheckedPlacer(Placer):
    """Keeps profiles in memory, and asks the test whether each choice is right."""

    test: "Routing"

    def profiles(self, model: InstalledModel) -> Mapping[Placement, Profile]:
        return {each: SPEEDS[each] for each in self.test.measured[model.name[0]]}

    def choose(self, fitting: Sequence[LoadedModel], loaded: Collection[LoadedModel], work: Work) -> LoadedModel:
        chosen = super().choose(fitting, loaded, work)
        self.test.check_choice(chosen, fitting, work)
        return chosen


class Routing(RuleBasedStateMachine):
    """The pool and the placer against what they promise."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.executor = ByHand()
        self.loop.set_default_executor(self.executor)
        self.machine = FakeMachine()
        self.measured: dict[str, set[Placement]] = {name: set(SPEEDS if name in "ab" else ()) for name in MODELS}
        self.present: dict[tuple[str, Placement], int] = {}
        """What loads were given and is not given back yet, in bytes."""
        self.closing: list[Ready] = []
        self.held: list[Held] = []
        self.tasks: dict[asyncio.Task[None], str] = {}
        self.wished: dict[str, set[Wanted]] = {name: set() for name in MODELS}
        self.is_closed = False
        self.wrong: list[str] = []

    @initialize(
        max_loaded=st.sampled_from([0, 0, 0, 2]), loaded=st.sets(st.sampled_from((CPU, GENAI, GPU, SECOND_GPU)))
    )
    def begin_test(self, max_loaded: int, loaded: set[Placement]) -> None:
        settings = Settings.model_validate(
            {"memory_budget": BUDGET, "kv_cache_size": KV, "load_timeout_s": 0, "max_loaded_models": max_loaded}
        )
        self.max_loaded = max_loaded
        placer = CheckedPlacer(settings, self.machine.read, clock=self.machine.clock)
        placer.test = self
        self.pool = ModelPool(settings, self.load, placer, clock=self.machine.clock)
        for placement in sorted(loaded, key=str):
            self.place("a", placement)

    # What the pool is given

    def load(self, wanted: InstalledModel, placement: Placement, kv_bytes: int) -> Ready:
        name = wanted.name[0]
        assert (name, placement) not in self.present, "loaded twice"
        assert any(is_wished(wish, placement) for wish in self.wished[name]), "nobody wished it there"
        if reasons := [self.machine.refuses[each] for each in devices_of(placement) if each in self.machine.refuses]:
            raise ModelLoadFailed(reasons[0])
        num_bytes = self.present[name, placement] = wanted.size_bytes + kv_bytes
        speed = SPEEDS.get(placement, SPEEDS[CPU])
        ready = Ready(wanted, placement, num_bytes, speed, begin_close=self.begin_close)
        self.machine.ready.append(ready)
        return ready

    def begin_close(self, ready: Ready) -> None:
        in_use = any(held.lease.ready is ready for held in self.held)
        self.must(not in_use or self.is_closed or ready.failure is not None, "unloaded while in use")
        self.closing.append(ready)

    # What happens to it

    @rule(name=names, wanted=wishes, keep_alive=keep_alives)
    def request(self, name: str, wanted: Wanted, keep_alive: KeepAlive | None) -> None:
        async def work() -> None:
            lease = await self.pool.acquire(MODELS[name], keep_alive, Ready, wanted=wanted, work=WORK)
            self.must(is_wished(wanted, lease.loaded.placement), f"{wanted} got {lease.loaded.placement}")
            self.held.append(Held(name, lease))

        self.wished[name].add(wanted)
        self.begin(name, work())

    @rule(name=names, wanted=wishes)
    def burst(self, name: str, wanted: Wanted) -> None:
        for _ in range(10):
            self.request(name, wanted, None)

    @rule(name=names, wanted=wishes, keep_alive=keep_alives)
    def preload(self, name: str, wanted: Wanted, keep_alive: KeepAlive | None) -> None:
        async def work() -> None:
            await self.pool.load(MODELS[name], keep_alive, wanted)

        self.wished[name].add(wanted)
        self.begin(name, work())

    @rule(name=names, placement=st.sampled_from((CPU, GENAI, GPU, SECOND_GPU, NPU)))
    def place(self, name: str, placement: Placement) -> None:
        """A load that nothing comes between, as far as there is room."""
        wanted = exactly(placement)
        self.preload(name, wanted, None)
        while self.executor.waiting or self.closing:
            self.end_something()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.integers(1, 400))
    def submit(self, data: st.DataObject, tokens: int) -> None:
        first = data.draw(st.integers(0, len(self.held) - 1))
        for held in self.held[first : first + 5]:
            if not held.is_submitted:
                held.is_submitted = True
                if held.lease.ready.failure is None:
                    held.lease.ready.submit(WORK.num_prompt_tokens, tokens)
                held.lease.begun()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.give_back(data.draw(st.integers(0, len(self.held) - 1)))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.tasks))).cancel()
        self.settle()

    @precondition(lambda self: self.executor.waiting)
    @rule(leaves=st.booleans())
    def end_load(self, leaves: bool) -> None:
        self.executor.run()
        if leaves and self.tasks:  # in the moment in which it ends
            self.loop.call_soon(next(iter(self.tasks)).cancel)
        self.settle()

    @precondition(lambda self: self.closing)
    @rule(data=st.data())
    def end_close(self, data: st.DataObject) -> None:
        self.close(data.draw(st.integers(0, len(self.closing) - 1)))

    @precondition(lambda self: not self.machine.refuses)
    @rule(device=st.sampled_from(DEVICES))
    def lose(self, device: str) -> None:
        self.machine.refuses[device] = "the driver was reset"
        for each in self.machine.ready:
            if device in devices_of(each.placement):
                each.failure = f"the device {device} failed: the driver was reset"

    @precondition(lambda self: self.machine.refuses)
    @rule()
    def find(self) -> None:
        self.machine.refuses.clear()

    @rule(name=names, placement=st.sampled_from(tuple(SPEEDS)))
    def measure(self, name: str, placement: Placement) -> None:
        self.measured[name].add(placement)

    @rule(name=names, wanted=wishes)
    def unload(self, name: str, wanted: Wanted) -> None:
        async def work() -> None:
            await self.pool.unload(MODELS[name], wanted)

        self.begin("", work())

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 70.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        async def work() -> None:
            await self.pool.expire()

        self.machine.advance(seconds)
        self.begin("", work())

    # What holds

    def check_choice(self, chosen: LoadedModel, fitting: Sequence[LoadedModel], work: Work) -> None:
        """Nothing that was left ends sooner, by the router's own estimate and the test's own count."""
        measured = self.measured[chosen.name[0]]
        if any(each.placement not in measured for each in fitting):
            return
        ends = {each: finish_s(SPEEDS[each.placement], self.device_load(each.placement), work) for each in fitting}
        self.must(ends[chosen] <= min(ends.values()) + 1e-9, f"{chosen.placement} ends later than another one")

    def device_load(self, placement: Placement) -> NoLoad:
        devices = set(devices_of(placement))
        there = [each for each in self.pool.loaded() if devices & set(devices_of(each.placement))]
        readies = [each.ready for each in there]
        loads = [ready.load for ready in readies]
        num_prepared = sum(held.lease.ready in readies and not held.is_submitted for held in self.held)
        return NoLoad(
            sum(load.num_running for load in loads),
            sum(load.num_waiting for load in loads) + num_prepared,
            sum(load.num_pending_prompt_tokens for load in loads) + num_prepared * WORK.num_prompt_tokens,
        )

    def must(self, holds: bool, text: str) -> None:
        """For callbacks, whose exceptions go nowhere."""
        if not holds:
            self.wrong.append(text)

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.wrong

    @invariant()
    def budgets_hold(self) -> None:
        used = dict.fromkeys((*DEVICES, TOGETHER.device), 0)
        for (_, placement), num_bytes in self.present.items():
            used["CPU" if placement == NPU else placement.device] += num_bytes
        assert used["CPU"] <= BUDGET
        assert max(used["GPU.0"], used["GPU.1"]) <= 1000 * MB
        assert used["GPU.0"] + used["GPU.1"] + used[TOGETHER.device] <= 2000 * MB
        if self.max_loaded:
            assert len(self.present) <= self.max_loaded

    @invariant()
    def leases_are_counted(self) -> None:
        for loaded in self.pool.loaded():
            held = [held for held in self.held if held.lease.loaded is loaded]
            assert loaded.num_leases == len(held)
            assert loaded.num_expected == sum(not each.is_submitted for each in held)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not (self.executor.waiting or self.closing or self.held):
            assert not self.tasks

    # At the end

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.end()
        finally:
            self.loop.close()

    def end(self) -> None:
        for device in DEVICES:
            self.machine.find(device)
        self.machine.now += 10_000
        self.run_dry()
        assert not self.tasks, "all have their answer or their error"
        self.is_closed = True
        end = self.loop.create_task(self.pool.aclose())
        self.settle()
        self.run_dry()
        assert end.done()
        assert not self.present
        assert self.pool.loaded() == []
        self.nothing_went_wrong()

    def run_dry(self) -> None:
        """End what there is to end; those who hold something give it back."""
        while self.executor.waiting or self.closing or self.held:
            if self.executor.waiting or self.closing:
                self.end_something()
            else:
                self.give_back(0)

    # Helpers

    def end_something(self) -> None:
        if self.executor.waiting:
            self.executor.run()
            self.settle()
        else:
            self.close(0)

    def give_back(self, index: int) -> None:
        held = self.held.pop(index)
        held.lease.release()
        held.lease.release()
        self.settle()

    def close(self, index: int) -> None:
        ready = self.closing.pop(index)
        del self.present[ready.model.name[0], ready.placement]
        self.machine.ready.remove(ready)
        ready.may_close.set()
        self.settle()

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks[task] = name
        task.add_done_callback(self.ended)
        self.settle()

    def ended(self, task: asyncio.Task[None]) -> None:
        name = self.tasks.pop(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, ShuttingDown):
            self.must(self.is_closed, "shutting down for no reason")
        elif isinstance(error, UnsupportedParameter):
            nowhere = not any(matches(wish, each) for wish in self.wished[name] for each in (NPU, *SPEEDS))
            self.must("cannot run on" in error.message and error.param in ("device", "backend"), repr(error))
            self.must(nowhere or Wanted(device="CUDA") in self.wished[name], repr(error))
        else:
            self.must(isinstance(error, ModelLoadFailed), repr(error))
            self.must(any(word in str(error) for word in ("no room for", "the driver was reset")), repr(error))

    def settle(self) -> None:
        """Run everything that can run."""

        async def spin() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        self.loop.run_until_complete(spin())


TestRouting = Routing.TestCase
TestRouting.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
