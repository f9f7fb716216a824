"""The one way to run a model: resolve → validate → lease → write the prompt → submit.

`Inference.generate` returns only when nothing can go wrong any more that deserves a status code: the model is loaded,
the prompt is tokenised and fits, the queue has room. The `Completion` it returns owns the lease and the generation;
whoever holds it closes it, finished or not.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.engine.engine import Generation
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import InvalidRequest, ShuttingDown, UnsupportedCapability
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.leases import Lease
from vmm_server.models.loading import ReadyModel
from vmm_server.models.pool import ModelPool
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.answer import AnswerReader
from vmm_server.prompt.words import Words
from vmm_server.prompting import WrittenPrompt, check_token_ids, prepare, write_prompt
from vmm_server.requests import ChatPrompt, Composite, Constraint, GenerateRequest, KeepAlive

logger = logging.getLogger(__name__)


class Completion:
    """One generation and the lease it runs under. Iterate it for `Delta`s; `aclose` it in any case."""

    def __init__(
        self,
        model: InstalledModel,
        lease: Lease[ReadyModel],
        generation: Generation,
        prompt: WrittenPrompt,
        reader: AnswerReader | None,
        created: datetime,
        prepare_s: float,
        on_close: Callable[["Completion"], None],
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt.tokens
        self.prompt_text = prompt.text
        """Of a chat, as rendered."""
        self.num_dropped_tokens = prompt.num_dropped_tokens
        """Of a prompt that was too long; `prompt_tokens` are the others."""
        self.num_dropped_messages = prompt.num_dropped_messages
        self.created = created
        self.load_s = lease.load_s
        self.prepare_s = prepare_s
        """From the model's being there to the engine's having the prompt: rendering, tokenising, compiling a form."""
        self.placement = str(lease.ready.placement)
        self._lease = lease
        self._generation = generation
        self._deltas = generation if reader is None else _Answer(generation, reader)
        self._on_close = on_close

    @property
    def usage(self) -> Usage | None:
        """Known after the last delta."""
        return self._deltas.usage

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        return self._lease.ready.token_bytes(token_id)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    def lease_again(self) -> Lease[ReadyModel]:
        """A second lease of the model that this runs on."""
        return self._lease.again()

    async def aclose(self) -> None:
        """Abort if unfinished and return the lease. Idempotent."""
        try:
            await self._generation.aclose()
        finally:
            self._lease.release()
            self._on_close(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Answer:
    """A generation's deltas as a reader tells them apart."""

    def __init__(self, generation: Generation, reader: AnswerReader) -> None:
        self.usage: Usage | None = None
        self._generation = generation
        self._reader = reader
        self._said: deque[Delta] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._said:
            self._said.extend(self._reader.read(await anext(self._generation)))
        delta = self._said.popleft()
        self.usage = delta.usage
        return delta


@dataclass(frozen=True, slots=True)
class LoadInfo:
    """What loading a model took."""

    model: InstalledModel
    load_s: float


@dataclass(frozen=True, slots=True)
class Prompted:
    """A request's prompt as the model would see it."""

    model: InstalledModel
    text: str | None
    """Of a chat, as rendered."""
    tokens: tuple[int, ...]
    context_length: int


class Inference:
    """Runs requests on models. Every dialect goes through here."""

    def __init__(
        self,
        registry: Registry,
        pool: ModelPool,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_call_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._now = now
        self._new_call_id = new_call_id
        self._clock = clock
        self._running: set[Completion] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    async def generate(self, request: GenerateRequest, *, beside: Completion | None = None) -> Completion:
        """Start a generation; `beside` one of the same model that runs already, it need not wait for the model.

        Raises, before anything is sent: `InvalidRequest` and its children, `ModelNotFound`, `ModelLoadFailed`,
        `Overloaded`, `ShuttingDown`.
        """
        if beside is None:
            model, lease = await self._acquire(request)
        else:
            model, lease = beside.model, beside.lease_again()
        leased_at = self._clock()
        request = _with_num_ctx(request, model)
        try:
            sampling = _with_defaults(request.sampling, request.unset, model.sampling)
            request = replace(request, sampling=sampling)
            _check_token_ids(sampling, lease.ready.vocab_size)
            with lease.ready.engine.preparing():
                prompt, form = await asyncio.to_thread(prepare, request, model, lease.ready, self._now())
                if prompt.end_tokens:
                    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *prompt.end_tokens))
                grammar = None if form is None else await _compile(form, sampling, lease.ready)
                generation = lease.ready.engine.submit(
                    prompt.tokens,
                    sampling,
                    grammar=grammar,
                    shown_tokens=prompt.shown_tokens,
                    context_length=request.num_ctx,
                    param=request.prompt.param,
                )
                prepare_s = self._clock() - leased_at
        except BaseException:
            lease.release()
            raise
        if prompt.num_dropped_tokens:
            logger.warning(
                "dropped %d tokens (%d whole messages) of a prompt that is too long for %s; %d are left",
                prompt.num_dropped_tokens,
                prompt.num_dropped_messages,
                model.name,
                len(prompt.tokens),
            )
        reader = prompt.reader(lease.ready.token_bytes, self._new_call_id)
        completion = Completion(model, lease, generation, prompt, reader, self._now(), prepare_s, self._closed)
        self._running.add(completion)
        self._idle.clear()
        return completion

    async def count_tokens(self, request: GenerateRequest) -> Prompted:
        """The request's prompt, rendered and tokenised; nothing is run. Raises what `generate` raises for it."""
        model, lease = await self._acquire(request)
        request = _with_num_ctx(request, model)
        try:
            prompt = await asyncio.to_thread(write_prompt, request, model, lease.ready, self._now())
            return Prompted(model, prompt.text, prompt.tokens, lease.ready.context_length)
        finally:
            lease.release()

    async def tokenizer(self, name: str) -> Words:
        """The tokeniser of a model, which is loaded if it is cold."""
        if self.draining:
            raise ShuttingDown
        model = self._registry.resolve(name)
        if model.generates:
            lease: Lease[ReadyModel] | Lease[ReadyEncoder] = await self._pool.acquire(model, None)
        else:
            lease = await self._pool.acquire(model, None, ReadyEncoder)
        try:
            return Words(lease.ready.tokenizer, lease.ready.context_length)
        finally:
            lease.release()

    async def load(self, name: str, keep_alive: KeepAlive | None) -> LoadInfo:
        """Load a model and start its keep-alive clock (Ollama's empty prompt)."""
        if self.draining:
            raise ShuttingDown
        model = self._registry.resolve(name)
        return LoadInfo(model, await self._pool.load(model, keep_alive))

    async def unload(self, name: str) -> bool:
        """Unload a model once it is idle. False if it was not loaded."""
        return await self._pool.unload(self._registry.resolve(name))

    async def drain(self, timeout_s: float) -> bool:
        """Take no new work and wait for what runs; True when all of it finished in time."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _acquire(self, request: GenerateRequest) -> tuple[InstalledModel, Lease[ReadyModel]]:
        """The model of a request, loaded."""
        if self.draining:
            raise ShuttingDown
        model = self._registry.resolve(request.model)
        if not model.generates:
            asked = "chat" if isinstance(request.prompt, ChatPrompt) else "generate"
            raise UnsupportedCapability(request.model, asked)
        return model, await self._pool.acquire(model, request.keep_alive)

    def _closed(self, completion: Completion) -> None:
        self._running.discard(completion)
        if not self._running:
            self._idle.set()


async def _compile(form: Constraint | Composite, sampling: SamplingParams, ready: ReadyModel) -> CompiledGrammar:
    if sampling.ignore_eos:
        raise InvalidRequest(f"ignore_eos: an answer under {form.param} ends where that says", param="ignore_eos")
    return await ready.engine.grammars.compile(form)


def _with_num_ctx(request: GenerateRequest, model: InstalledModel) -> GenerateRequest:
    return request if request.num_ctx is not None else replace(request, num_ctx=model.num_ctx)


def _with_defaults(params: SamplingParams, unset: frozenset[str], defaults: SamplingDefaults) -> SamplingParams:
    """The model's defaults in place of what the client left out."""
    wanted = {name: value for name, value in defaults.model_dump(exclude_none=True).items() if name in unset}
    if wanted.get("top_k", 1) <= 0:
        wanted["top_k"] = None
    window = wanted.get("repetition_window", 1)
    if window == 0:
        wanted |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    if window <= 0:
        wanted["repetition_window"] = None
    return replace(params, **wanted)


def _check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    check_token_ids("logit_bias", params.logit_bias, vocab_size)
    check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)
