"""The one way to run a model: resolve → validate → lease → write the prompt → submit.

`Inference.generate` returns only when nothing can go wrong any more that deserves a status code: the model is loaded,
the prompt is tokenised and fits, the queue has room. The `Completion` it returns owns the lease and the generation;
whoever holds it closes it, finished or not.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.callers import caller
from vmm_server.completion import Completion, Started
from vmm_server.engine.engine import Engine
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.errors import (
    InvalidRequest,
    LoadTimeout,
    ModelLoadFailed,
    ShuttingDown,
    UnsupportedCapability,
    UnsupportedParameter,
)
from vmm_server.media.fetching import Fetcher
from vmm_server.media.images import LIMITS, is_url
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.in_use import again_if_replaced
from vmm_server.models.leases import Lease
from vmm_server.models.loading import ReadyModel
from vmm_server.models.pool import ModelPool
from vmm_server.models.registry import Registry
from vmm_server.models.router import Work
from vmm_server.models.store import InstalledModel
from vmm_server.models.turns import conversation_of
from vmm_server.observed import Observe, Operation, Watch, nobody_observes
from vmm_server.prompt.words import Words
from vmm_server.prompting import WrittenPrompt, check_token_ids, prepare, write_prompt
from vmm_server.requests import (
    ANYWHERE,
    ChatPrompt,
    Composite,
    Constraint,
    GenerateRequest,
    GivenImage,
    InsertPrompt,
    KeepAlive,
    Wanted,
)

logger = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
_READS_TEXT = frozenset({"completion", "embedding", "rerank"})


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
        fetcher: Fetcher | None = None,
        observe: Observe = nobody_observes,
        log_prompts: bool = False,
    ) -> None:
        """`fetcher` gets images that are sent as URLs; without one they are refused. `observe` is told of each request
        that is over."""
        self._registry = registry
        self._pool = pool
        self._fetcher = fetcher or Fetcher("off")
        self._observe = observe
        self._log_prompts = log_prompts
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
        operation: Operation = "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
        watch = Watch(operation, self._observe, self._clock)
        try:
            return await self._begin(request, beside, watch)
        except BaseException as error:
            watch.end(error)
            raise

    async def _begin(self, request: GenerateRequest, beside: Completion | None, watch: Watch) -> Completion:
        if beside is None:
            model, lease, request = await again_if_replaced(partial(self._acquire, request, watch))
        else:
            request = await self._fetched(_with_model(request, beside.model))
            model, lease = beside.model, beside.lease_again()
        watch.model = model
        watch.leased(lease.ready.placement, lease.load_s)
        try:
            sampling = request.sampling
            _check_token_ids(sampling, lease.ready.vocab_size)
            with lease.ready.engine.preparing():
                prompt, form = await asyncio.to_thread(prepare, request, model, lease.ready, self._now())
                if prompt.end_tokens:
                    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *prompt.end_tokens))
                if form is not None and lease.ready.engine.lacks(sampling, form):
                    lease.release()
                    lease = await self._lease(model, request, form)
                grammar = None if form is None else await _compile(form, sampling, lease.ready)
                submit = partial(
                    Engine.submit,
                    prompt=prompt.tokens,
                    sampling=sampling,
                    grammar=grammar,
                    caller=caller.get(),
                    shown_tokens=prompt.shown_tokens,
                    context_length=request.num_ctx,
                    param=request.prompt.param,
                    seen=prompt.seen,
                    prediction=prompt.prediction,
                )
                started = Started(lease, partial(self._lease, model, request, form), submit, self._clock)
                if self._log_prompts:
                    logger.info("prompt of %s: %s", model.name, await asyncio.to_thread(_shown, prompt, lease.ready))
                    started.said = []
                await started.begin()
                started.submitted_at = self._clock()
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
        prepare_s = started.submitted_at - (watch.leased_at or 0.0)
        created, load_s = self._now(), watch.load_s
        repeats = beside is not None and beside.prompt_tokens == prompt.tokens  # a prompt of n choices counts once
        closed = partial(self._closed, charge_prompt=not repeats)
        completion = Completion(model, started, prompt, reader, created, load_s, prepare_s, watch, closed)
        self._running.add(completion)
        self._idle.clear()
        return completion

    async def count_tokens(self, request: GenerateRequest) -> Prompted:
        """The request's prompt, rendered and tokenised; nothing is run. Raises what `generate` raises for it."""
        model, lease, request = await again_if_replaced(partial(self._acquire, request))
        try:
            prompt = await asyncio.to_thread(write_prompt, request, model, lease.ready, self._now())
            if prompt.seen is not None:
                param = request.prompt.param
                raise UnsupportedParameter(f"{param}: tokens of images are counted when they are seen", param=param)
            return Prompted(model, prompt.text, prompt.tokens, lease.ready.context_length)
        finally:
            lease.release()

    async def tokenizer(self, name: str, wanted: Wanted = ANYWHERE) -> Words:
        """The tokeniser of a model that reads text, which is loaded if it is cold."""
        if self.draining:
            raise ShuttingDown
        lease = await again_if_replaced(partial(self._reader, name, wanted))
        try:
            return Words(lease.ready.tokenizer, lease.ready.context_length)
        finally:
            lease.release()

    async def load(self, name: str, keep_alive: KeepAlive | None, wanted: Wanted = ANYWHERE) -> LoadInfo:
        """Load a model and start its keep-alive clock (Ollama's empty prompt)."""
        if self.draining:
            raise ShuttingDown

        async def load() -> LoadInfo:
            model = self._registry.resolve(name)
            return LoadInfo(model, await self._pool.load(model, keep_alive, wanted))

        return await again_if_replaced(load)

    async def unload(self, name: str, wanted: Wanted = ANYWHERE) -> bool:
        """Unload all that a name may mean from all that is `wanted`, once it is idle. False if none was loaded."""
        return any([await self._pool.unload(model, wanted) for model in self._registry.meant(name)])

    async def drain(self, timeout_s: float) -> bool:
        """Take no new work and wait for what runs; True when all of it finished in time."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    async def _acquire(
        self, request: GenerateRequest, watch: Watch | None = None
    ) -> tuple[InstalledModel, Lease[ReadyModel], GenerateRequest]:
        """The model of a request, loaded where it can be honoured; the request with the model's defaults."""
        if self.draining:
            raise ShuttingDown
        if watch is None:
            model = self._registry.resolve(request.model)
        else:
            model = watch.model = self._registry.choose(request.model, partial(conversation_of, request))
        if not model.generates:
            asked = "chat" if isinstance(request.prompt, ChatPrompt) else "generate"
            raise UnsupportedCapability(request.model, asked)
        if (images := _images(request)) and "vision" not in model.capabilities:
            raise UnsupportedCapability(request.model, "vision", param=images[0].param)
        request = await self._fetched(_with_model(request, model))
        return model, await self._lease(model, request), request

    async def _reader(self, name: str, wanted: Wanted) -> Lease[ReadyModel] | Lease[ReadyEncoder]:
        """A model that reads text."""
        model = self._registry.resolve(name)
        if not _READS_TEXT & {*model.capabilities}:
            raise UnsupportedCapability(name, "tokens")
        if model.generates:
            return await self._pool.acquire(model, None, wanted=wanted)
        return await self._pool.acquire(model, None, ReadyEncoder, wanted=wanted)

    async def _fetched(self, request: GenerateRequest) -> GenerateRequest:
        """With files in place of the URLs of its images."""
        prompt = request.prompt
        if not isinstance(prompt, ChatPrompt) or not any(map(is_url, _images(request))):
            return request
        files = iter(await self._fetcher.fetched(_images(request), LIMITS))
        messages = [replace(each, images=tuple(next(files) for _ in each.images)) for each in prompt.messages]
        return replace(request, prompt=replace(prompt, messages=tuple(messages)))

    async def _lease(
        self, model: InstalledModel, request: GenerateRequest, form: Constraint | Composite | None = None
    ) -> Lease[ReadyModel]:
        """Where the request ends first. What a runtime lacks that draws the tokens itself, another one may have.

        `form` is what the answer has to be, if that is more than the request's own constraint.
        """
        acquire = partial(self._pool.acquire, model, request.keep_alive, work=_work(request))
        lease = await acquire(wanted=request.wanted)
        if not lease.ready.engine.lacks(request.sampling, form or request.constraint):
            return lease
        lease.release()  # it may be in the way of the other one
        try:
            elsewhere = await acquire(wanted=replace(request.wanted, needs_logits=True))
        except LoadTimeout:
            raise
        except (UnsupportedParameter, ModelLoadFailed):
            elsewhere = await acquire(wanted=request.wanted)  # the engine says what it lacks, and why
        elsewhere.load_s += lease.load_s
        return elsewhere

    def _closed(self, completion: Completion, *, charge_prompt: bool) -> None:
        if completion not in self._running:
            return
        num_prompt_tokens = completion.num_prompt_tokens if charge_prompt else 0
        caller.get().charge(num_prompt_tokens + completion.num_generated_tokens)
        self._running.remove(completion)
        if not self._running:
            self._idle.set()


def _images(request: GenerateRequest) -> list[GivenImage]:
    messages = request.prompt.messages if isinstance(request.prompt, ChatPrompt) else ()
    return [image for message in messages for image in message.images]


async def _compile(form: Constraint | Composite, sampling: SamplingParams, ready: ReadyModel) -> CompiledGrammar:
    if sampling.ignore_eos:
        raise InvalidRequest(f"ignore_eos: an answer under {form.param} ends where that says", param="ignore_eos")
    return await ready.engine.grammars.compile(form)


def _shown(prompt: WrittenPrompt, ready: ReadyModel) -> str:
    return ready.tokenizer.decode(prompt.tokens, skip_special_tokens=False) if prompt.text is None else prompt.text


def _work(request: GenerateRequest) -> Work:
    """What a request will take, roughly: it decides where it goes, before its prompt is rendered."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        size = len(prompt.context) + sum(len(message.content) for message in prompt.messages) // _CHARACTERS_A_TOKEN
    elif isinstance(prompt, InsertPrompt):
        size = (len(prompt.prefix) + len(prompt.suffix)) // _CHARACTERS_A_TOKEN
    else:
        size = len(prompt.text) // (_CHARACTERS_A_TOKEN if isinstance(prompt.text, str) else 1)
    most = request.sampling.max_tokens
    usual = Work().num_output_tokens
    return Work(num_prompt_tokens=1 + size, num_output_tokens=usual if most is None else most)


def _with_model(request: GenerateRequest, model: InstalledModel) -> GenerateRequest:
    """The model's own settings in place of what the client left out."""
    sampling = _with_defaults(request.sampling, request.unset, model.sampling)
    num_ctx = model.num_ctx if request.num_ctx is None else request.num_ctx
    return replace(request, sampling=sampling, num_ctx=num_ctx)


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
