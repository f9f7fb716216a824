"""The one way to run a model: resolve → validate → lease → tokenise → submit.

`Inference.generate` returns only when nothing can go wrong any more that deserves a status code: the model is loaded,
the prompt is tokenised and fits, the queue has room. The `Completion` it returns owns the lease and the generation;
whoever holds it closes it, finished or not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.engine.engine import Generation
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import InvalidRequest, ShuttingDown, UnsupportedCapability
from vmm_server.models.loading import ReadyModel
from vmm_server.models.pool import Lease, ModelPool
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.chat import ChatTemplate
from vmm_server.requests import ChatPrompt, GenerateRequest, InsertPrompt, KeepAlive, Message


class Completion:
    """One generation and the lease it runs under. Iterate it for `Delta`s; `aclose` it in any case."""

    def __init__(
        self,
        model: InstalledModel,
        lease: Lease[ReadyModel],
        generation: Generation,
        prompt_tokens: tuple[int, ...],
        created: datetime,
        on_close: Callable[["Completion"], None],
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.created = created
        self.load_s = lease.load_s
        self.placement = str(lease.ready.placement)
        self._lease = lease
        self._generation = generation
        self._on_close = on_close

    @property
    def usage(self) -> Usage | None:
        """Known after the last delta."""
        return self._generation.usage

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        return self._lease.ready.token_bytes(token_id)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return aiter(self._generation)

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


@dataclass(frozen=True, slots=True)
class LoadInfo:
    """What loading a model took."""

    model: InstalledModel
    load_s: float


class Inference:
    """Runs requests on models. Every dialect goes through here."""

    def __init__(
        self, registry: Registry, pool: ModelPool, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._now = now
        self._running: set[Completion] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    async def generate(self, request: GenerateRequest) -> Completion:
        """Start a generation.

        Raises, before anything is sent: `InvalidRequest` and its children, `ModelNotFound`, `ModelLoadFailed`,
        `Overloaded`, `ShuttingDown`.
        """
        if self.draining:
            raise ShuttingDown
        model = self._registry.resolve(request.model)
        if "completion" not in model.capabilities:
            asked = "chat" if isinstance(request.prompt, ChatPrompt) else "generate"
            raise UnsupportedCapability(request.model, asked)
        lease = await self._pool.acquire(model, request.keep_alive)
        try:
            sampling = _with_defaults(request.sampling, request.unset, model.sampling)
            _check_token_ids(sampling, lease.ready.vocab_size)
            with lease.ready.engine.preparing():
                grammar = await _compile(request, lease.ready)
                tokens = await asyncio.to_thread(_tokenize, request, model, lease.ready, self._now())
                generation = lease.ready.engine.submit(
                    tokens, sampling, grammar=grammar, context_length=request.num_ctx, param=request.prompt.param
                )
        except BaseException:
            lease.release()
            raise
        completion = Completion(model, lease, generation, tokens, self._now(), self._closed)
        self._running.add(completion)
        self._idle.clear()
        return completion

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

    def _closed(self, completion: Completion) -> None:
        self._running.discard(completion)
        if not self._running:
            self._idle.set()


async def _compile(request: GenerateRequest, ready: ReadyModel) -> CompiledGrammar | None:
    """The grammar of the request's constraint, if it has one."""
    if request.constraint is None:
        return None
    if request.sampling.ignore_eos:
        param = request.constraint.param
        raise InvalidRequest(f"ignore_eos: an answer under {param} ends where that says", param="ignore_eos")
    return await ready.engine.grammars.compile(request.constraint)


def _with_defaults(params: SamplingParams, unset: frozenset[str], defaults: SamplingDefaults) -> SamplingParams:
    recommended = defaults.model_dump(exclude_none=True)
    names = {field.name for field in fields(params)} & unset & recommended.keys()
    return replace(params, **{name: recommended[name] for name in names}) if names else params


def _check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)


def _check_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise `InvalidRequest` for the first id that is no token of the model."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(f"{param}: token id {token} is not in 0..{vocab_size - 1}", param=param)


def _tokenize(request: GenerateRequest, model: InstalledModel, ready: ReadyModel, now: datetime) -> tuple[int, ...]:
    """Token ids of the prompt. Runs in a thread: templates and long texts take milliseconds."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        text = _render(prompt, request.model, model, ready.template, now)
        _check_ids("context", prompt.context, ready.vocab_size)
        # the template writes the special tokens itself
        tokens = (*prompt.context, *ready.tokenizer.encode(text, add_special_tokens=False).ids)
    elif isinstance(prompt, InsertPrompt):
        raise UnsupportedCapability(request.model, "insert")
    elif isinstance(prompt.text, str):
        tokens = tuple(ready.tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens).ids)
    else:
        tokens = prompt.text
        _check_ids(prompt.param, tokens, ready.vocab_size)
    if not tokens:
        raise InvalidRequest(f"{prompt.param} is empty", param=prompt.param)
    return tokens


def _render(prompt: ChatPrompt, name: str, model: InstalledModel, template: ChatTemplate | None, now: datetime) -> str:
    if prompt.template is not None:
        if template is None:
            template = ChatTemplate(prompt.template, bos_token="", eos_token="")
        else:
            template = template.replaced(prompt.template)
    if template is None:
        raise UnsupportedCapability(name, "chat")
    messages = prompt.messages
    if model.system is not None and not any(message.role == "system" for message in messages):
        messages = (Message("system", model.system), *messages)
    # an assistant message at the end is a prefill: the answer goes on from it
    prefill = bool(messages) and messages[-1].role == "assistant"
    return template.render(
        messages,
        add_generation_prompt=not prefill,
        continue_final_message=prefill,
        now=now,
        variables=prompt.template_variables,
    )
