"""Three models under a budget for two: any order of requests, loads, failures, releases, unloads and time.

Nothing happens by itself: a load waits until the machine ends it (well or not), and so does the closing of a model.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import ModelLoadFailed, ShuttingDown
from vmm_server.models.leases import Lease
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import NO_LOAD, NoLoad, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings

MB = 1 << 20
BUDGET = 320 * MB
KV = 50 * MB
NAMES = ("a", "b", "c")


def model(name: str) -> InstalledModel:
    return InstalledModel(
        name=f"{name}:latest",
        aliases=(),
        digest=name * 64,
        size_bytes=100 * MB,
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        adapter="echo",
        folder=Path(f"/models/{name}"),
        format="onnx",
        family="echo",
        parameter_size="0",
        quantization="F32",
        context_length=64,
        embedding_length=None,
        capabilities=("embedding",) if name == "c" else ("completion",),
        license=None,
        title=name,
        system=None,
        sampling=SamplingDefaults(),
        source="file:/nowhere",
    )


class ByHand(ThreadPoolExecutor):
    """Runs what it is given when it is told to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

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
class Ready:
    """A loaded model that closes when it is told to."""

    name: str
    memory_bytes: int
    on_close: Callable[["Ready"], None]
    placement: Placement = field(default=Placement("echo", "CPU"))
    context_length: int = 64
    load: NoLoad = NO_LOAD
    failure: str | None = None
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    async def aclose(self) -> None:
        self.on_close(self)
        await self.may_close.wait()


keep_alives = st.sampled_from([None, None, KeepAlive(0.0), KeepAlive(10.0), KeepAlive(None)])
names = st.sampled_from(NAMES)


class Pool(RuleBasedStateMachine):
    """The pool against what it promises."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.fails = False
        self.loop = asyncio.new_event_loop()
        self.executor = ByHand()
        self.loop.set_default_executor(self.executor)
        settings = Settings.model_validate({"memory_budget": BUDGET, "kv_cache_size": KV, "load_timeout_s": 0})
        placer = Placer(settings, MachineReader().read, clock=lambda: self.now)
        self.pool = ModelPool(settings, self.load, placer, clock=lambda: self.now)
        self.granted: dict[str, int] = {}
        """Bytes that loads were given and that are not given back yet."""
        self.closing: list[Ready] = []
        self.leases: list[tuple[str, Lease[Ready]]] = []
        self.tasks: dict[asyncio.Task[None], str] = {}
        self.pinned: set[str] = set()
        self.is_closed = False
        self.end = ""
        self.wrong: list[str] = []

    # What the pool is given

    def load(self, wanted: InstalledModel, placement: Placement, kv_bytes: int) -> Ready:
        name = wanted.name[0]
        assert name not in self.granted, "loaded twice"
        if self.fails:
            raise ModelLoadFailed("broken")
        self.granted[name] = wanted.size_bytes + kv_bytes
        assert sum(self.granted.values()) <= BUDGET
        return Ready(name, self.granted[name], self.begin_close)

    def begin_close(self, ready: Ready) -> None:
        if not self.is_closed:
            in_use = any(name == ready.name for name, _ in self.leases)
            self.must(not in_use, f"{ready.name} is unloaded while in use")
            self.must(ready.name not in self.pinned, f"{ready.name} is unloaded although it is pinned")
        self.closing.append(ready)

    # What happens to it

    @rule(name=names, keep_alive=keep_alives)
    def request(self, name: str, keep_alive: KeepAlive | None) -> None:
        async def work() -> None:
            lease = await self.pool.acquire(model(name), keep_alive, Ready)
            self.note(name, keep_alive)
            self.leases.append((name, lease))

        self.begin(name, work())

    @rule(name=names, keep_alive=keep_alives)
    def preload(self, name: str, keep_alive: KeepAlive | None) -> None:
        async def work() -> None:
            await self.pool.load(model(name), keep_alive)
            self.note(name, keep_alive)

        self.begin(name, work())

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()
        self.settle()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.tasks))).cancel()
        self.settle()

    @precondition(lambda self: self.executor.waiting)
    @rule(fails=st.booleans(), leaves=st.booleans())
    def end_load(self, fails: bool, leaves: bool) -> None:
        self.fails = fails
        self.executor.run()
        if leaves and self.tasks:  # in the moment in which it ends
            self.loop.call_soon(next(iter(self.tasks)).cancel)
        self.settle()

    @precondition(lambda self: self.closing)
    @rule()
    def end_close(self) -> None:
        ready = self.closing.pop(0)
        del self.granted[ready.name]
        ready.may_close.set()
        self.settle()

    @rule(name=names)
    def unload(self, name: str) -> None:
        async def work() -> None:
            self.pinned.discard(name)
            await self.pool.unload(model(name))

        self.begin("", work())

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 300.0]))
    def wait(self, seconds: float) -> None:
        async def work() -> None:
            await self.pool.expire()

        self.now += seconds
        self.begin("", work())

    # What holds

    def must(self, holds: bool, text: str) -> None:
        """For callbacks, whose exceptions go nowhere."""
        if not holds:
            self.wrong.append(text)

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.wrong

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not (self.executor.waiting or self.closing or self.leases):
            assert not self.tasks

    @invariant()
    def leases_are_counted(self) -> None:
        for loaded in self.pool.loaded():
            assert loaded.num_leases == sum(name == loaded.model.name[0] for name, _ in self.leases)

    @invariant()
    def no_turn_is_wasted(self) -> None:
        """What a request waits for is being loaded, or something is being closed, or others are in use.

        For what is in memory it waits only while another model is waited for.
        """
        held = {name for name, _ in self.leases} | self.pinned
        waiting = {name for name in self.tasks.values() if name}
        cold = waiting - {loaded.model.name[0] for loaded in self.pool.loaded()}
        assert cold or not waiting
        if cold and not (self.executor.waiting or self.closing):
            assert len(held - cold) >= 2

    # At the end

    @initialize(end=st.sampled_from(["", "drain", "traffic"]))
    def begin_test(self, end: str) -> None:
        self.end = end

    def teardown(self) -> None:
        if self.end == "traffic":
            self.keep_asking()
        if self.end:
            self.drain()
        self.is_closed = True
        end = self.loop.create_task(self.pool.aclose())
        self.settle()
        while self.executor.waiting or self.closing:
            self.fails = False
            if self.executor.waiting:
                self.executor.run()
                self.settle()
            else:
                self.end_close()
        assert end.done()
        assert not self.tasks
        assert not self.granted
        assert self.pool.loaded() == []
        for _, lease in self.leases:
            lease.release()
        self.settle()
        self.nothing_went_wrong()
        self.loop.close()

    def keep_asking(self) -> None:
        """Those who wait get what they asked for although the models in their way are never idle: before one request
        gives its model back, the next one for it is there.
        """
        self.fails = False
        first = set(self.tasks)
        for _ in range(200):
            if not first & self.tasks.keys():
                return
            self.now += 5.0
            if self.executor.waiting:
                self.executor.run()
            elif self.closing:
                self.end_close()
            else:
                name, lease = self.leases.pop(0)
                self.request(name, None)
                lease.release()
            self.settle()
        raise AssertionError("they wait for ever")

    def drain(self) -> None:
        """Everybody gets what he asked for when those who have something give it back."""
        self.fails = False
        while self.executor.waiting or self.closing or self.leases:
            if self.executor.waiting:
                self.executor.run()
            elif self.closing:
                self.end_close()
            else:
                self.leases.pop()[1].release()
            self.settle()
        assert not self.tasks
        assert all(loaded.num_leases == 0 for loaded in self.pool.loaded())

    # Helpers

    def note(self, name: str, keep_alive: KeepAlive | None) -> None:
        if keep_alive is not None:
            (self.pinned.add if keep_alive.seconds is None else self.pinned.discard)(name)

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks[task] = name
        task.add_done_callback(self.ended)
        self.settle()

    def ended(self, task: asyncio.Task[None]) -> None:
        del self.tasks[task]
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, ShuttingDown):
            self.must(self.is_closed, "shutting down for no reason")
        elif str(error) != "broken":
            no_room = isinstance(error, ModelLoadFailed) and str(error).startswith("no room for")
            self.must(no_room and len(self.pinned) >= 2, repr(error))

    def settle(self) -> None:
        """Run everything that can run."""

        async def spin() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        self.loop.run_until_complete(spin())


TestPool = Pool.TestCase
TestPool.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
