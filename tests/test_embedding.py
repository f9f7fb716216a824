"""The façade of encoders, without HTTP: leases, draining, clients that leave, numbers that are none."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vmm_adapters import echo_encoder
from vmm_adapters.card import EmbeddingRecipe, SamplingDefaults
from vmm_adapters.errors import DeviceLost, RuntimeFailed
from vmm_adapters.types import EncoderInput
from vmm_server.cl100k import Cl100k
from vmm_server.embedding import Embeddings
from vmm_server.engine.batcher import Batcher, Computed
from vmm_server.errors import GenerationFailed, InvalidRequest, ModelLoadFailed, PlacementFailed, ShuttingDown
from vmm_server.models.encoders import ReadyEncoder, load_encoder
from vmm_server.models.leases import MAX_MOVES
from vmm_server.models.loading import ReadyModel, load_model
from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.parts import Parts, build_parts
from vmm_server.requests import EmbeddingRequest, KeepAlive, RerankRequest

Body = Callable[[Parts], Coroutine[Any, Any, None]]


class Gate:
    """Holds the encoder at its first call until it is opened; may replace what it says."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.calls: list[int] = []

    def __call__(self, inputs: Sequence[EncoderInput]) -> None:
        self.calls.append(len(inputs))
        self.entered.set()
        assert self.may_go.wait(10)


class Watched(Batcher[EncoderInput, Any]):
    """Tells of every call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: asyncio.Queue[int] = asyncio.Queue()

    async def timed_call(self, items: Sequence[EncoderInput]) -> Computed[Any]:
        self.asked.put_nowait(len(items))
        return await super().timed_call(items)


def request(*texts: str, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest("words", texts, tuple(f"input[{index}]" for index in range(len(texts))), **fields)


@pytest.fixture
def run(settings: Any, tmp_path: Path) -> Callable[..., None]:
    """`run(body, load=None, **settings)`: with the encoder `words` installed, at most 20 s."""

    def run(body: Body, load: Callable[[InstalledModel], Ready] | None = None, **changes: object) -> None:
        configured = settings(**changes)
        echo_encoder.write_echo_encoder(tmp_path / "words")
        Store(configured.store_dir).install(
            InstalledModel(
                name="words:latest",
                aliases=(),
                digest="ab" * 32,
                size_bytes=1,
                modified_at=datetime(2026, 1, 1, tzinfo=UTC),
                adapter="echo",
                folder=tmp_path / "words",
                format="onnx",
                family="echo",
                parameter_size="1K",
                quantization="F32",
                context_length=64,
                embedding_length=32,
                capabilities=("embedding",),
                license=None,
                title="Words",
                system=None,
                sampling=SamplingDefaults(),
                source="file:/words",
                embedding=EmbeddingRecipe(),
            )
        )

        async def bounded() -> None:
            given = partial(load_model, settings=configured) if load is None else lambda model, *_: load(model)
            parts = build_parts(configured, given)
            try:
                await asyncio.wait_for(body(parts), 60)
            finally:
                await parts.pool.aclose()

        asyncio.run(bounded())

    return run


@pytest.fixture
def gated(settings: Any) -> Callable[..., Callable[[InstalledModel], Ready]]:
    """A loader whose encoder calls `gate` with every batch."""

    def make(
        gate: Callable[[Sequence[EncoderInput]], None] | None,
        kind: type[echo_encoder.EchoEncoder] = echo_encoder.EchoEncoder,
    ) -> Callable[[InstalledModel], Ready]:
        def load(model: InstalledModel) -> Ready:
            loaded = load_encoder(model, Placement("echo", "CPU"), settings())
            encoder = kind(gate=gate)
            batcher = Watched(
                lambda inputs: list(encoder.encode(inputs)),
                size=lambda each: len(each.token_ids),
                close=encoder.close,
            )
            fields = {name: getattr(loaded, name) for name in ReadyEncoder.__slots__}
            return ReadyEncoder(**fields | {"batcher": batcher})

        return load

    return make


def test_two_requests_load_it_once(run: Any) -> None:
    async def body(parts: Parts) -> None:
        assert parts.pool.loaded() == []
        first, second = await asyncio.gather(*(parts.embeddings.embed(request("a", "b")) for _ in range(2)))
        np.testing.assert_array_equal(first.vectors, second.vectors)
        (loaded,) = parts.pool.loaded()
        assert loaded.num_leases == 0
        assert (await parts.embeddings.embed(request("a"))).load_s == 0

    run(body)


def test_keep_alive_is_the_requests(run: Any) -> None:
    async def body(parts: Parts) -> None:
        await parts.embeddings.embed(request("a", keep_alive=KeepAlive(7.0)))
        (loaded,) = parts.pool.loaded()
        assert loaded.keep_alive == KeepAlive(7.0)

    run(body)


def test_a_preload_is_any_kind_of_model(run: Any) -> None:
    async def body(parts: Parts) -> None:
        await parts.inference.load("words", None)
        (loaded,) = parts.pool.loaded()
        assert isinstance(loaded.ready, ReadyEncoder)
        with pytest.raises(ModelLoadFailed, match="not what its manifest says"):
            await parts.pool.acquire(loaded.model, None, ReadyModel)
        assert loaded.num_leases == 0

    run(body)


def test_the_settings_limit_the_context(run: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(InvalidRequest, match="is 12 tokens, the limit is 10"):
            await parts.embeddings.embed(request("a" * 10))

    run(body, context_length=10)


def test_a_lease_comes_back_whatever_happens(run: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(InvalidRequest):
            await parts.embeddings.embed(request("a" * 100))
        (loaded,) = parts.pool.loaded()
        assert loaded.num_leases == 0

    run(body)


def test_a_server_that_drains_takes_nothing_new_and_ends_what_runs(run: Any, gated: Any) -> None:
    gate = Gate()

    async def body(parts: Parts) -> None:
        running = asyncio.create_task(parts.embeddings.embed(request("a")))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        draining = asyncio.create_task(parts.one_shot.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await parts.embeddings.embed(request("b"))
        with pytest.raises(ShuttingDown):
            await parts.embeddings.rerank(RerankRequest("words", "a", ("b",)))
        assert not draining.done()
        gate.may_go.set()
        assert await draining
        assert (await running).num_tokens == 3

    run(body, gated(gate))


def test_what_does_not_end_in_time_is_told(run: Any, gated: Any) -> None:
    gate = Gate()

    async def body(parts: Parts) -> None:
        running = asyncio.create_task(parts.embeddings.embed(request("a")))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        assert not await parts.one_shot.drain(0)
        closing = asyncio.create_task(parts.pool.aclose())
        await asyncio.sleep(0)
        gate.may_go.set()
        await asyncio.gather(closing, running, return_exceptions=True)
        assert running.done()

    run(body, gated(gate))


def test_a_client_that_leaves_takes_its_texts_with_it(run: Any, gated: Any) -> None:
    gate = Gate()

    async def body(parts: Parts) -> None:
        first = asyncio.create_task(parts.embeddings.embed(request("a")))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        leaving = asyncio.create_task(parts.embeddings.embed(request("b", "c")))
        (loaded,) = parts.pool.loaded()
        assert isinstance(loaded.ready, ReadyEncoder)
        assert isinstance(loaded.ready.batcher, Watched)
        for num_items in (1, 2):
            assert await loaded.ready.batcher.asked.get() == num_items
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert loaded.num_leases == 1
        gate.may_go.set()
        await first
        assert gate.calls == [1]

    run(body, gated(gate))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_an_error(run: Any, gated: Any, value: float) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(InvalidRequest, match="embedding contains NaN or Inf values"):
            await parts.embeddings.embed(request("a"))

    class Broken(echo_encoder.EchoEncoder):
        def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
            return np.full((len(inputs), self.dim), value, np.float32)

    run(body, gated(None, Broken))


def test_a_failure_of_the_runtime_is_told(run: Any, gated: Any) -> None:
    def fail(inputs: Sequence[EncoderInput]) -> None:
        raise RuntimeFailed("no memory left for this shape")

    async def body(parts: Parts) -> None:
        with pytest.raises(GenerationFailed, match="no memory left for this shape"):
            await parts.embeddings.embed(request("a"))

    run(body, gated(fail))


def test_token_ids_of_openai_are_read_where_their_table_is(run: Any) -> None:
    async def body(parts: Parts) -> None:
        embeddings = Embeddings(parts.one_shot, read_table=lambda: Cl100k({1: b"a", 2: b"bc"}))
        ids = EmbeddingRequest("words", ((1, 2), (2,), ()), ("input[0]", "input[1]", "input[2]"))
        found = await embeddings.embed(ids)
        np.testing.assert_array_equal(found.vectors, (await embeddings.embed(request("abc", "bc", ""))).vectors)
        with pytest.raises(InvalidRequest, match="3 is no token id of cl100k_base") as refused:
            await embeddings.embed(EmbeddingRequest("words", ((1,), (3,)), ("input[0]", "input[1]")))
        assert refused.value.param == "input[1]"

    run(body)


def test_texts_go_on_to_another_encoder_when_a_device_is_lost(run: Any, gated: Any) -> None:
    losses = [DeviceLost("gone"), DeviceLost("gone again")]

    def gate(_: Sequence[EncoderInput]) -> None:
        if losses:
            raise losses.pop()

    async def body(parts: Parts) -> None:
        assert (await parts.embeddings.embed(request("a", "b"))).vectors.shape == (2, 32)
        assert not losses
        assert [loaded.num_leases for loaded in parts.pool.loaded()] == [0]

    run(body, gated(gate))


def test_texts_do_not_go_on_for_ever(run: Any, gated: Any) -> None:
    calls: list[int] = []

    def gate(inputs: Sequence[EncoderInput]) -> None:
        calls.append(len(inputs))
        raise DeviceLost("gone")

    async def body(parts: Parts) -> None:
        with pytest.raises(PlacementFailed, match="gone"):
            await parts.embeddings.embed(request("a"))
        assert calls == [1] * (1 + MAX_MOVES)

    run(body, gated(gate))
