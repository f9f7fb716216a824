"""The engine over a runtime that schedules itself, and what it does when a device fails."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from vmm_adapters.echo import END, EchoRunner, Gate
from vmm_adapters.echo_backend import LACKS, EchoBackend
from vmm_adapters.errors import AdapterError, DeviceLost, RuntimeFailed
from vmm_adapters.types import Batch, FinishReason, SamplingParams, TextOutput, TextRequest
from vmm_server.callers import Caller
from vmm_server.engine import Delta, Engine, EngineLoad, Generation, SeenPrompt
from vmm_server.engine.stream import merge
from vmm_server.errors import (
    ContextLengthExceeded,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    PlacementFailed,
    UnsupportedParameter,
)
from vmm_server.requests import Choice, JsonSchema

Run = Callable[..., Any]
GREEDY = SamplingParams(temperature=0)


def tokens(text: str) -> list[int]:
    return list(text.encode())


def chat(text: str) -> list[int]:
    return [257, *text.encode(), END, 258]


def up_to(count: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count)


def submit(engine: Engine, prompts: Iterable[str], sampling: SamplingParams) -> list[Generation]:
    """All of them in the mailbox before an idle engine begins a step; give it a long `gather_s`."""
    with engine.preparing():
        return [engine.submit(tokens(prompt), sampling) for prompt in prompts]


async def read(generation: Generation) -> Delta:
    return merge([delta async for delta in generation])


async def held(gate: Gate) -> Batch:
    return await asyncio.to_thread(gate.wait_entered)


def test_a_chat_is_echoed_and_counted(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoBackend()) as engine:
            cold = await read(engine.submit(chat("Grüße"), GREEDY))
            warm = await read(engine.submit(chat("Grüße"), GREEDY))
            for answer in (cold, warm):
                assert (answer.text, answer.finish_reason) == ("Grüße", FinishReason.STOP)
                assert answer.token_ids == tuple("Grüße".encode()), "the token that ends it is no part of it"
            assert (cold.usage.num_prompt_tokens, cold.usage.num_generated_tokens) == (10, 8)
            assert (cold.usage.num_cached_tokens, warm.usage.num_cached_tokens) == (0, 9)
            assert (engine.stats.num_blocks, engine.stats.num_free_blocks) == (0, 0)

    run(scenario())


@pytest.mark.parametrize(
    ("sampling", "text", "reason", "num_generated"),
    [
        (SamplingParams(temperature=0, stop=("hij",)), "defg", FinishReason.STOP, 7),
        (SamplingParams(temperature=0, stop_token_ids=(ord("h"),)), "defg", FinishReason.STOP, 5),
        (up_to(3), "def", FinishReason.LENGTH, 3),
        (up_to(0), "", FinishReason.LENGTH, 0),
        (SamplingParams(temperature=0, max_tokens=3, stop=("fx",)), "def", FinishReason.LENGTH, 3),
        (SamplingParams(temperature=0, stop=("e", "j"), min_tokens=4), "defghi", FinishReason.STOP, 7),
        (GREEDY, "defghijklmnop", FinishReason.LENGTH, 13),
    ],
    ids=["stop", "stop_token", "max_tokens", "nothing", "held_back", "min_tokens", "context"],
)
@pytest.mark.parametrize("pieces", [1, 5])
def test_an_answer_ends(
    run: Run,
    engine_over: Run,
    sampling: SamplingParams,
    text: str,
    reason: FinishReason,
    num_generated: int,
    pieces: int,
) -> None:
    async def scenario() -> None:
        async with engine_over(Hoarder(pieces, context_length=16)) as engine:
            answer = await read(engine.submit(tokens("abc"), sampling))
            assert (answer.text, answer.finish_reason) == (text, reason)
            assert answer.usage.num_generated_tokens == num_generated
            assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)

    run(scenario())


class Hoarder(EchoBackend):
    """Says something only every few steps, and then all of it."""

    def __init__(self, num_steps: int, **options: Any) -> None:
        super().__init__(**options)
        self._num_steps = num_steps

    def step(self) -> Sequence[TextOutput]:
        said: dict[int, TextOutput] = {}
        for _ in range(self._num_steps):
            for output in super().step():
                before = said.get(output.id, TextOutput(output.id)).token_ids
                said[output.id] = TextOutput(output.id, before + output.token_ids, output.finish_reason)
        return list(said.values())


def test_what_does_not_fit_waits_in_our_order(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        backend = Spied(gate=gate, max_sequences=2)
        async with engine_over(backend, gather_s=10) as engine:
            early = submit(engine, "ab", up_to(3))
            await held(gate)
            late = [engine.submit(tokens(text), up_to(3)) for text in "cde"]
            first = engine.submit(tokens("f"), up_to(3), caller=Caller(priority=-1))
            gate.release()
            await held(gate)
            assert (engine.stats.num_running, engine.stats.num_waiting) == (2, 4)
            assert engine.load == EngineLoad(4, 2, 4, 2 * 2 + 4 * 3)
            await late[1].aclose()
            gate.open()
            answers = await asyncio.gather(*(read(each) for each in [*early, first, late[0], late[2]]))
            assert [answer.text for answer in answers] == ["bcd", "cde", "ghi", "def", "fgh"]
            assert b"".join(bytes(request.token_ids) for request in backend.given) == b"abfce"
            assert engine.load == EngineLoad(0, 0, 0, 0)

    run(scenario())


@pytest.mark.parametrize("max_queue", [0, 3])
def test_a_full_queue_is_refused_at_once(run: Run, engine_over: Run, max_queue: int) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoBackend(gate=gate, max_sequences=2), max_queue=max_queue) as engine:
            taken = [engine.submit(tokens("a"), up_to(2)) for _ in range(2 + max_queue)]
            with pytest.raises(Overloaded):
                engine.submit(tokens("a"), GREEDY)
            gate.open()
            assert {(await read(each)).text for each in taken} == {"bc"}

    run(scenario())


@pytest.mark.parametrize("num_steps", [0, 2])
def test_an_abort_makes_room(run: Run, engine_over: Run, num_steps: int) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoBackend(gate=gate, max_sequences=1)) as engine:
            doomed = engine.submit(tokens("a"), GREEDY)
            await held(gate)
            for _ in range(num_steps):
                gate.release()
                await held(gate)
            await doomed.aclose()
            other = engine.submit(tokens("x"), up_to(2))
            gate.open()
            assert (await read(other)).text == "yz"
            assert engine.stats.num_running == 0

    run(scenario())


def test_times_are_on_the_clock_that_was_passed_in(run: Run, engine_over: Run) -> None:
    now = [100.0]

    def advance(batch: Batch) -> None:
        now[0] += len(batch.chunks[0].token_ids)

    async def scenario() -> None:
        backend = EchoBackend(gate=advance, max_sequences=1)
        async with engine_over(backend, clock=lambda: now[0], gather_s=10) as engine:
            first, second = await asyncio.gather(*map(read, submit(engine, ["a" * 20] * 2, up_to(5))))
            assert (first.usage.queued_s, first.usage.prefill_s, first.usage.decode_s) == (0, 20, 4)
            assert (second.usage.queued_s, second.usage.prefill_s, second.usage.decode_s) == (24, 1, 4)

    run(scenario())


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


class Spied(EchoBackend):
    """Notes what it is asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.given: list[TextRequest] = []
        self.aborted: list[int] = []

    def add(self, request: TextRequest) -> None:
        self.given.append(request)
        super().add(request)

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        super().abort(request_id)


def test_what_a_backend_is_asked_is_plain(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        backend = Spied()
        sampling = SamplingParams(
            temperature=0, min_p=0.1, seed=3, stop=("q",), stop_token_ids=(7, 9), max_tokens=3, repetition_window=64
        )
        async with engine_over(backend) as engine:
            for one in (sampling, replace(sampling, ignore_eos=True), up_to(0)):
                await read(engine.submit(tokens("a"), one))
        plain, endless, none = backend.given
        assert plain.sampling == up_to(3)
        assert (plain.token_ids, plain.max_length, plain.text, plain.images) == (tuple(b"a"), 4, None, ())
        assert plain.eos_token_ids == {7, 9, END}
        assert endless.eos_token_ids == {7, 9}
        assert (none.sampling.max_tokens, none.max_length) == (1, 2)
        assert len({request.id for request in backend.given}) == 3
        assert backend.aborted == [], "all of them ended by themselves"

    run(scenario())


def test_what_a_failed_step_lost_is_not_aborted(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        steps = FailingSteps(RuntimeFailed("once"))
        steps.open()
        backend = Spied(gate=steps)
        async with engine_over(backend) as engine:
            await failed(engine.submit(tokens("a"), GREEDY))
            await read(engine.submit(tokens("a"), up_to(3)))
        assert backend.aborted == []

    run(scenario())


def test_a_grammar_reaches_the_runtime(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoBackend()) as engine:
            choice = await engine.grammars.compile(Choice(("north (", "south"), "form"))
            schema = await engine.grammars.compile(JsonSchema(json.dumps(SCHEMA), "form"))
            sampling = SamplingParams(temperature=1, seed=3, max_tokens=100)
            answers = [read(engine.submit(tokens("a"), sampling, grammar=each)) for each in (choice, schema)]
            chosen, written = await asyncio.gather(*answers)
            assert chosen.text in ("north (", "south")
            assert chosen.finish_reason is written.finish_reason is FinishReason.STOP
            jsonschema_rs.validator_for(SCHEMA).validate(json.loads(written.text))

    run(scenario())


@pytest.mark.parametrize(
    ("sampling", "fields"),
    [
        (SamplingParams(), []),
        (SamplingParams(temperature=0.7, top_p=0.9, top_k=40, seed=1, stop=("x",), stop_token_ids=(1,)), []),
        (SamplingParams(min_p=0.05, typical_p=0.5), ["min_p", "typical_p"]),
        (SamplingParams(temperature=0, min_p=0.05, typical_p=0.5), []),
        (
            SamplingParams(logprobs=0, prompt_logprobs=0, logit_bias={1: 1.0}),
            ["logprobs", "prompt_logprobs", "logit_bias"],
        ),
        (SamplingParams(repetition_window=64), []),
        (SamplingParams(repetition_window=0, repetition_penalty=1.1), []),
        (SamplingParams(repetition_window=64, repetition_penalty=1.1), ["repetition_penalty", "repetition_window"]),
        (SamplingParams(presence_penalty=0.5), ["presence_penalty"]),
    ],
)
def test_what_the_runtime_lacks_is_told_and_refused(
    run: Run, engine_over: Run, sampling: SamplingParams, fields: list[str]
) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            assert engine.lacks(sampling) == {}
        async with engine_over(EchoBackend()) as engine:
            assert engine.lacks(sampling) == {field: LACKS[field] for field in fields}
            if not fields:
                await read(engine.submit(tokens("a"), sampling, context_length=5))
                return
            with pytest.raises(UnsupportedParameter) as refused:
                engine.submit(tokens("a"), sampling)
            assert refused.value.param == fields[0]
            assert LACKS[fields[0]] in refused.value.message

    run(scenario())


def test_a_runtime_without_guidance_refuses_the_field_it_came_in(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoBackend(lacks={"guidance": "it is too old"})) as engine:
            form = Choice(("a", "b"), "guided_choice")
            assert engine.lacks(GREEDY, form) == {"guidance": "it is too old"}
            assert engine.lacks(GREEDY) == {}
            with pytest.raises(UnsupportedParameter, match="too old") as refused:
                engine.submit(tokens("a"), GREEDY, grammar=await engine.grammars.compile(form))
            assert refused.value.param == "guided_choice"

    run(scenario())


def test_a_prompt_with_images_is_counted_by_the_runtime(run: Run, engine_over: Run) -> None:
    seen = SeenPrompt("<|user|>what?<|end|><|assistant|>", (np.zeros((3, 4, 3), np.uint8),))

    async def scenario() -> None:
        async with engine_over(EchoBackend()) as engine:
            for sampling, text in ((GREEDY, "[4x3]what?"), (up_to(3), "[4x"), (up_to(0), "")):
                answer = await read(engine.submit([], sampling, seen=seen))
                assert answer.text == text
                assert answer.usage.num_prompt_tokens == 8 + 5
                assert answer.usage.num_generated_tokens == len(text) + (sampling is GREEDY)
            cut = await read(engine.submit([], GREEDY, seen=seen, context_length=15))
            assert (cut.text, cut.finish_reason) == ("[4", FinishReason.LENGTH)
            with pytest.raises(GenerationFailed, match="a prompt of 13 tokens"):
                await read(engine.submit([], GREEDY, seen=seen, context_length=10))
        async with engine_over(EchoRunner()) as engine:
            with pytest.raises(UnsupportedParameter) as refused:
                engine.submit([], GREEDY, seen=seen, param="messages")
            assert refused.value.param == "messages"

    run(scenario())


def test_a_prompt_has_to_leave_room_for_a_token(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoBackend(context_length=16)) as engine:
            with pytest.raises(ContextLengthExceeded) as refused:
                engine.submit(tokens("a" * 16), GREEDY, param="messages")
            assert (refused.value.limit, refused.value.asked, refused.value.param) == (15, 16, "messages")
            assert (await read(engine.submit(tokens("a" * 15), GREEDY))).text == "b"
            assert (await read(engine.submit(tokens("a" * 7), GREEDY, context_length=7))).text == "b"
            with pytest.raises(InvalidRequest):
                engine.submit([261], GREEDY)

    run(scenario())


def test_a_request_that_fails_alone_leaves_the_others_alone(run: Run, engine_over: Run) -> None:
    def fail(request: TextRequest, num_drawn: int) -> AdapterError | None:
        return RuntimeFailed("bad luck", hint="good luck") if request.token_ids[0] == ord("!") and num_drawn else None

    class Picky(EchoBackend):
        def add(self, request: TextRequest) -> None:
            if request.token_ids[0] == ord("?"):
                raise RuntimeFailed("no questions")
            super().add(request)

    async def scenario() -> None:
        async with engine_over(Picky(fail=fail, max_sequences=2)) as engine:
            bad, refused, good = (engine.submit(tokens(text), up_to(4)) for text in "!?x")
            with pytest.raises(GenerationFailed, match="the runtime failed: bad luck") as failed:
                await read(bad)
            assert failed.value.hint == "good luck"
            assert not isinstance(failed.value, PlacementFailed)
            with pytest.raises(GenerationFailed, match="no questions"):
                await read(refused)
            assert (await read(good)).text == "yzab"
            assert engine.failure is None
            assert engine.stats.num_running == 0

    run(scenario())


def test_closing_aborts_what_is_left_and_closes_the_backend(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        backend = EchoBackend(gate=gate, max_sequences=1)
        async with engine_over(backend) as engine:
            running, waiting = (engine.submit(tokens("abc"), GREEDY) for _ in range(2))
            await held(gate)
        assert backend.is_closed
        for generation in (running, waiting):
            assert (await read(generation)).finish_reason is FinishReason.ABORT

    run(scenario())


class FailingSteps:
    """A gate that lets a step be held, and then raises in it."""

    def __init__(self, *errors: Exception | None) -> None:
        self.gate = Gate()
        self._errors = list(errors)

    def __call__(self, batch: Batch) -> None:
        self.gate(batch)
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error

    def open(self) -> None:
        self.gate.open()


RUNTIMES = [
    pytest.param(lambda gate: EchoRunner(gate=gate), id="runner"),
    pytest.param(lambda gate: EchoBackend(gate=gate, max_sequences=2), id="backend"),
]
ALSO = {"max_sequences": 2, "gather_s": 10}


async def failed(generation: Generation) -> GenerationFailed:
    with pytest.raises(GenerationFailed) as error:
        await read(generation)
    return error.value


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_lost_device_ends_the_engine(run: Run, engine_over: Run, runtime: Run) -> None:
    async def scenario() -> None:
        steps = FailingSteps(None, DeviceLost("it fell off the bus", hint="push it in"))
        async with engine_over(runtime(steps), **ALSO) as engine:
            running = submit(engine, ["abc"] * 2, GREEDY)
            await held(steps.gate)
            waiting = [engine.submit(tokens("abc"), GREEDY) for _ in range(2)]
            steps.open()
            words = "the device CPU failed: it fell off the bus"
            for generation in running:
                error = await failed(generation)
                assert (error.message, error.hint) == (words, "push it in")
                assert not isinstance(error, PlacementFailed)
            for generation in waiting:
                assert isinstance(error := await failed(generation), PlacementFailed)
                assert error.message.startswith(words)
            assert engine.failure == words
            with pytest.raises(PlacementFailed, match="fell off the bus"):
                engine.submit(tokens("abc"), GREEDY)
            assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
            assert engine.load == EngineLoad(0, 0, 0, 0)

    run(scenario())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_failed_steps_in_a_row_end_the_engine(run: Run, engine_over: Run, runtime: Run) -> None:
    async def scenario() -> None:
        steps = FailingSteps(RuntimeFailed("once"), RuntimeFailed("twice"))
        async with engine_over(runtime(steps), **ALSO) as engine:
            first = engine.submit(tokens("abc"), GREEDY)
            await held(steps.gate)
            second = engine.submit(tokens("abc"), GREEDY)
            steps.open()
            assert (await failed(first)).message == "the runtime failed: once"
            assert isinstance(error := await failed(second), PlacementFailed), "nothing was computed for it"
            assert engine.failure == "the device CPU failed: twice"
            assert engine.failure in error.message

    run(scenario())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_failed_steps_with_a_good_one_between_do_not(run: Run, engine_over: Run, runtime: Run) -> None:
    async def scenario() -> None:
        steps = FailingSteps(RuntimeFailed("once"), None, RuntimeFailed("twice"), None)
        steps.open()
        async with engine_over(runtime(steps), **ALSO) as engine:
            for words, count in (("once", 5), ("twice", 5)):
                assert words in (await failed(engine.submit(tokens("abc"), up_to(count)))).message
                assert (await read(engine.submit(tokens("abc"), up_to(1)))).text == "d"
            assert engine.failure is None

    run(scenario())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_in_the_mailbox_when_the_device_fails_can_go_elsewhere(
    run: Run, engine_over: Run, runtime: Run
) -> None:
    async def scenario() -> None:
        steps = FailingSteps(DeviceLost("gone"))
        async with engine_over(runtime(steps), **ALSO) as engine:
            first = engine.submit(tokens("abc"), GREEDY)
            await held(steps.gate)
            late = [engine.submit(tokens("abc"), GREEDY) for _ in range(3)]
            await late[0].aclose()
            assert engine.load.num_waiting == 3, "its abort is not read yet"
            steps.open()
            for generation in (first, *late[1:]):
                assert isinstance(await failed(generation), PlacementFailed)

    run(scenario())


def test_a_device_that_is_lost_when_a_request_comes_ends_the_engine(run: Run, engine_over: Run) -> None:
    class Broken(EchoBackend):
        def add(self, request: TextRequest) -> None:
            raise DeviceLost("gone")

    async def scenario() -> None:
        async with engine_over(Broken()) as engine:
            assert isinstance(await failed(engine.submit(tokens("abc"), GREEDY)), PlacementFailed)
            assert engine.failure == "the device CPU failed: gone"

    run(scenario())


def test_an_abort_that_fails_is_the_next_steps_error(run: Run, engine_over: Run) -> None:
    class Broken(EchoBackend):
        def abort(self, request_id: int) -> None:
            raise DeviceLost("it does not answer")

    async def scenario() -> None:
        gate = Gate()
        async with engine_over(Broken(gate=gate), gather_s=10) as engine:
            doomed, other = submit(engine, ["abc"] * 2, GREEDY)
            await held(gate)
            gate.release()
            await held(gate)
            await doomed.aclose()
            gate.open()
            assert "it does not answer" in (await failed(other)).message
            assert engine.failure == "the device CPU failed: it does not answer"

    run(scenario())
