"""Requests whose device fails, and those that a runtime cannot honour: where they go, or what they are told."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vmm_adapters.echo import Gate
from vmm_adapters.types import SamplingParams
from vmm_server.completion import Completion
from vmm_server.errors import GenerationFailed, InvalidRequest, PlacementFailed, UnsupportedParameter
from vmm_server.inference import Inference
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.parts import Parts
from vmm_server.requests import ANYWHERE, ChatPrompt, GenerateRequest, Message, Tool, ToolUse, Wanted

from .models.fake_machine import CPU, GENAI, GPU, MB, SECOND_GPU, FakeMachine, Hold, scaled

GREEDY = SamplingParams(temperature=0.0, max_tokens=16)
LOST = "the device CPU failed: the driver was reset"


class Here(NamedTuple):
    machine: FakeMachine
    placer: Placer
    pool: ModelPool
    inference: Inference
    parts: Parts

    async def start(
        self, text: str, wanted: Wanted = ANYWHERE, tools: ToolUse | None = None, **sampling: Any
    ) -> Completion:
        values = {"temperature": 0.0, "max_tokens": 16} | sampling
        prompt = ChatPrompt((Message("user", text),), tools=tools)
        return await self.inference.generate(GenerateRequest("echo", prompt, SamplingParams(**values), wanted=wanted))

    async def start_four(self, wanted: Wanted = ANYWHERE) -> list[Completion]:
        """Two that have each drawn a token on the CPU when it fails, and two that wait there."""
        gate = self.machine.gates[CPU] = Gate()
        completions = [await self.start("zero", wanted), await self.start("one", wanted)]
        await asyncio.to_thread(gate.wait_entered)
        while self.pool.loaded()[0].ready.load.num_waiting:
            gate.release()
            await asyncio.to_thread(gate.wait_entered)
        gate.release()
        await asyncio.to_thread(gate.wait_entered)
        completions += [await self.start("two", wanted), await self.start("three", wanted)]
        assert self.pool.loaded()[0].ready.load.num_running == 2
        self.machine.lose("CPU")
        self.machine.now += 7
        gate.open()
        return completions

    def num_leases(self) -> int:
        return sum(each.num_leases for each in self.pool.loaded())


@pytest.fixture
def run(with_parts: Any, installed: Any, tmp_path: Path) -> Callable[..., None]:
    def with_machine(body: Callable[[Here], Coroutine[Any, Any, None]], **flags: Any) -> None:
        async def inside(parts: Parts) -> None:
            machine = FakeMachine(tmp_path / "echo")
            settings = parts.settings.model_copy(update={"memory_budget": 1000 * MB} | flags)
            placer = machine.placer(settings)
            pool = ModelPool(settings, machine.load_engine, placer, clock=machine.clock)
            inference = Inference(parts.registry, pool, clock=machine.clock)
            try:
                await body(Here(machine, placer, pool, inference, parts))
            finally:
                await pool.aclose()

        installed(adapter="openvino")
        with_parts(inside)

    return with_machine


async def read(completion: Completion) -> str:
    async with completion:
        return "".join([delta.text async for delta in completion])


def test_what_waited_goes_on_elsewhere_and_what_ran_is_told_which_device_failed(run: Any) -> None:
    async def body(here: Here) -> None:
        first, second, *waiting = await here.start_four()
        for completion in (first, second):
            with pytest.raises(GenerationFailed, match=LOST) as caught:
                await read(completion)
            assert not isinstance(caught.value, PlacementFailed)
        assert await asyncio.gather(*map(read, waiting)) == ["two", "three"]
        for completion in waiting:
            assert completion.placement == GPU
            assert completion.load_s == 0
            assert completion.usage is not None
            assert completion.usage.queued_s >= 7, "from where it was submitted first"
            assert completion.queued_s is not None
            assert completion.queued_s >= 7
        assert here.num_leases() == 0
        assert [placement for _, placement, _ in here.machine.loads] == [CPU, GENAI, GPU]
        assert here.machine.runtimes[CPU].is_closed

    run(body)


def test_what_waited_says_why_it_cannot_go_elsewhere(run: Any) -> None:
    async def body(here: Here) -> None:
        *_, waiting = completions = await here.start_four(Wanted("CPU", "openvino"))
        with pytest.raises(GenerationFailed) as caught:
            await read(waiting)
        assert caught.value.message == f"{LOST}; the request could not go elsewhere: the driver was reset"
        for completion in completions:
            await completion.aclose()
        assert here.num_leases() == 0

    run(body)


def test_a_request_that_waits_while_the_server_drains_still_moves(run: Any) -> None:
    async def body(here: Here) -> None:
        first, second, third, fourth = await here.start_four()
        draining = asyncio.create_task(here.inference.drain(10))
        await asyncio.sleep(0)
        assert [*await asyncio.gather(read(third), read(fourth))] == ["two", "three"]
        assert not draining.done()
        await first.aclose()
        await second.aclose()
        assert await draining

    run(body)


def test_a_closing_pool_ends_what_waits(run: Any) -> None:
    async def body(here: Here) -> None:
        completions = await here.start_four()
        end = asyncio.create_task(here.pool.aclose())
        results = await asyncio.gather(*map(read, completions), return_exceptions=True)
        await end
        assert all(isinstance(result, Exception | str) for result in results)
        assert here.pool.loaded() == []

    run(body)


def test_a_request_closed_while_it_moves_leaves_nothing(run: Any) -> None:
    async def body(here: Here) -> None:
        *others, waiting = await here.start_four()
        hold = here.machine.holds["GPU.0"] = Hold()
        here.placer.failed(here.parts.registry.resolve("echo"), GENAI, "no")
        reading = asyncio.create_task(read(waiting))
        assert await asyncio.to_thread(hold.is_loading.wait, 10)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for completion in others:
            await completion.aclose()
        hold.may_load.set()
        assert await here.start("hello")
        assert here.num_leases() == 1

    run(body)


def test_after_three_moves_it_is_given_up(run: Any) -> None:
    async def body(here: Here) -> None:
        here.machine.lost = dict.fromkeys(("CPU", "GPU.0", "GPU.1"), "it overheats")  # loads still work
        async with await here.start("hello") as completion:
            with pytest.raises(PlacementFailed, match=r"the device GPU\.1 failed: it overheats"):
                await anext(aiter(completion))
        assert [placement for _, placement, _ in here.machine.loads] == [CPU, GENAI, GPU, SECOND_GPU]
        assert here.num_leases() == 0

    run(body)


def test_a_second_choice_of_a_failed_one_begins_elsewhere(run: Any) -> None:
    async def body(here: Here) -> None:
        first, *others = await here.start_four()
        with pytest.raises(GenerationFailed, match=LOST):
            async for _ in first:
                pass
        assert here.pool.loaded()[0].ready.failure is not None
        request = GenerateRequest("echo", ChatPrompt((Message("user", "again"),)), GREEDY)
        beside = await here.inference.generate(request, beside=first)
        assert beside.placement == GPU
        assert await read(beside) == "again"
        for completion in (first, *others):
            await completion.aclose()
        assert here.num_leases() == 0

    run(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [("logit_bias", {97: 1.0}), ("min_p", 0.1), ("logprobs", 1), ("presence_penalty", 0.5)],
)
@pytest.mark.parametrize("flags", [{}, {"max_loaded_models": 1}])
def test_what_a_runtime_lacks_another_has(run: Any, field: str, value: object, flags: dict[str, int]) -> None:
    async def body(here: Here) -> None:
        model = here.parts.registry.resolve("echo")
        here.machine.speeds[GENAI] = scaled(here.machine.speeds[GPU], 2)
        await here.machine.measure(here.placer, model)
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": 1, field: value}
        async with await here.start("hello") as plain:
            assert plain.placement == GENAI
        async with await here.start("hello", **sampling) as demanding:
            assert demanding.placement == GPU
        with pytest.raises(UnsupportedParameter, match=f"{field} cannot be honoured on CPU: this runtime") as caught:
            await here.start("hello", Wanted(backend=GENAI.adapter), **sampling)
        assert caught.value.param == field
        assert here.num_leases() == 0

    run(body, **flags)


def test_a_runtime_that_cannot_guide_is_left_where_an_answer_must_have_a_form(run: Any) -> None:
    async def body(here: Here) -> None:
        model = here.parts.registry.resolve("echo")
        here.machine.speeds[GENAI] = scaled(here.machine.speeds[GPU], 2)
        here.machine.lacks = {"guidance": "it was built without it"}
        await here.machine.measure(here.placer, model)
        required = ToolUse((Tool("look"),), required=True)
        async with await here.start("hello", tools=required) as completion:
            assert completion.placement == GPU
        with pytest.raises(InvalidRequest, match="cannot be honoured on CPU: it was built without it"):
            await here.start("hello", Wanted(backend=GENAI.adapter), tools=required)
        assert here.num_leases() == 0

    run(body)
