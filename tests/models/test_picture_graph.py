"""What goes into a graph of pictures and comes out, in which batches, whatever computes it."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from tests.conftest import MakeSettings
from tests.shown_pictures import Shown
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from vmm_adapters.base import Rows
from vmm_adapters.card import EmbeddingRecipe, ImageRecipe
from vmm_adapters.cpu.kernels import keep
from vmm_adapters.errors import DeviceLost, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import Resize, TensorSpec
from vmm_server.engine.batcher import Batcher, Computed
from vmm_server.errors import GenerationFailed, PlacementFailed
from vmm_server.models.compiled import shared_compiled_dir
from vmm_server.models.picture_graph import Outputs, PictureGraph, Watching, load_resampler, measured_batch_size, watch
from vmm_server.models.router import Placement
from vmm_server.models.vision import ReadyClip
from vmm_server.settings import Settings
from vmm_server.vision.framing import Framing

RECIPE = ImageRecipe(height=4, width=6, resize="letterbox")
TIMEOUT_S = 10
Size = int | str | None


def port(shape: tuple[Size, ...], name: str = "images", dtype: DTypeLike = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


class FakeSession:
    """Gives the brightest number of each picture; can be held."""

    def __init__(self, *inputs: TensorSpec) -> None:
        self.inputs = inputs or (port(("batch", 3, 4, 6)),)
        self.outputs = (port(("batch", 1), "brightest"),)
        self.device = "CPU"
        self.provider = "fake"
        self.memory_bytes = 7
        self.feeds: list[Mapping[str, NDArray[Any]]] = []
        self.is_closed = False
        self.entered = threading.Semaphore(0)
        self.permits: threading.Semaphore | None = None
        self.largest_batch = 1 << 30
        self.is_lost = False
        self.seconds: Callable[[int], float] = lambda batch: 0.0
        self.now = 0.0
        self.num_numbers = 0
        """Of each picture besides."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.feeds.append(feeds)
        if self.is_lost:
            raise DeviceLost("gone")
        pictures = next(array for array in feeds.values() if array.ndim == 4)
        if len(pictures) > self.largest_batch:
            raise RuntimeFailed("too many")
        self.now += self.seconds(len(pictures))
        self.entered.release()
        if self.permits is not None:
            assert self.permits.acquire(timeout=TIMEOUT_S)
        brightest = pictures.reshape(len(pictures), -1).max(1, keepdims=True).astype(np.float32)
        more = {"more": np.zeros((len(pictures), self.num_numbers), np.float32)} if self.num_numbers else {}
        return {"brightest": brightest} | more

    def close(self) -> None:
        self.is_closed = True

    @property
    def batches(self) -> list[int]:
        return [len(next(iter(feeds.values()))) for feeds in self.feeds]


def numbers(value: float) -> NDArray[np.float32]:
    return np.full((3, 4, 6), value, np.float32)


def grey(value: int, width: int = 9) -> NDArray[np.uint8]:
    return np.full((5, width, 3), value, np.uint8)


def test_pictures_are_stacked_and_answers_split() -> None:
    session = FakeSession()
    found = PictureGraph(session, RECIPE).run([numbers(1), numbers(3), numbers(2)])
    assert [float(each["brightest"][0]) for each in found] == [1, 3, 2]
    assert session.batches == [3]


@pytest.mark.parametrize(("batch", "batches"), [(1, [1, 1, 1]), (2, [2, 2]), (4, [4])])
def test_a_graph_of_a_fixed_batch_gets_just_that(batch: int, batches: list[int]) -> None:
    session = FakeSession(port((batch, 3, 4, 6)))
    found = PictureGraph(session, RECIPE).run([numbers(1), numbers(3), numbers(2)])
    assert [float(each["brightest"][0]) for each in found] == [1, 3, 2]
    assert session.batches == batches


def test_a_graph_has_its_own_size_and_type() -> None:
    session = FakeSession(port((None, 3, 8, None), dtype=np.float16))
    graph = PictureGraph(session, RECIPE)
    assert (graph.recipe.height, graph.recipe.width) == (8, 6)
    graph.run([graph.blank])
    assert session.feeds[0]["images"].dtype == np.float16
    assert session.feeds[0]["images"].shape == (1, 3, 8, 6)


def test_detectors_get_what_they_ask_for_beside_a_picture() -> None:
    session = FakeSession(
        port((None, 3, None, None)),
        port((None, 64, None), "pixel_mask", np.int64),
        port((None, 2), "orig_target_sizes", np.int64),
    )
    PictureGraph(session, RECIPE).run([numbers(0), numbers(0)])
    feeds = session.feeds[0]
    assert feeds["pixel_mask"].shape == (2, 64, 6)
    assert feeds["pixel_mask"].dtype == np.int64
    assert feeds["pixel_mask"].all()
    assert feeds["orig_target_sizes"].tolist() == [[6, 4], [6, 4]]


@pytest.mark.parametrize(
    ("inputs", "recipe", "says"),
    [
        ([port((1, 4, 6, 3))], RECIPE, r"takes images \[1, 4, 6, 3\]"),
        ([port((1, 3, 4, 6), dtype=np.uint8)], RECIPE, "uint8"),
        ([port((1, 3), "input_ids")], RECIPE, "input_ids"),
        ([port((1, 3, 4, 6)), port((2, 2), "scale")], RECIPE, "beside a picture"),
        ([port((1, 3, 4, 6))], None, "how pictures become numbers"),
    ],
)
def test_what_takes_no_pictures_is_refused(inputs: list[TensorSpec], recipe: ImageRecipe | None, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says) as caught:
        PictureGraph(FakeSession(*inputs), recipe)
    assert recipe is not None or "[vision.image]" in (caught.value.hint or "")


def test_answers_that_are_not_by_picture_fail() -> None:
    class Whole(FakeSession):
        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {"boxes": np.zeros((17, 6), np.float32)}

    with pytest.raises(RuntimeFailed, match=r"boxes has the shape \[17, 6\] for a batch of 1"):
        PictureGraph(Whole(), RECIPE).run([numbers(0)])


@pytest.mark.parametrize(
    ("seconds", "limit", "best"),
    [
        (lambda batch: 0.002 * batch, 8, 1),  # no faster together
        (lambda batch: 0.002 + 0.001 * batch, 8, 8),
        (lambda batch: 0.002 + 0.001 * batch, 4, 4),
        (lambda batch: 0.01 + 0.0003 * max(0, batch - 2), 2, 2),
        (lambda batch: 0.01 * batch if batch <= 2 else 0.011 * batch, 8, 1),
        (lambda batch: 0.4, 8, 1),  # it takes too long to try more
        (lambda batch: 0.0399 * batch, 8, 1),
        (lambda batch: 0.016 + 0.029 * batch, 8, 8),  # CLIP of 90 million parameters on two cores
    ],
)
def test_a_batch_is_as_large_as_it_pays(seconds: Callable[[int], float], limit: int, best: int) -> None:
    session = FakeSession()
    session.seconds = seconds
    assert measured_batch_size(PictureGraph(session, RECIPE), limit, lambda: session.now) == best
    assert session.now < 2


def test_a_graph_that_cannot_do_with_more_than_one_gets_one() -> None:
    session = FakeSession()
    session.largest_batch = 1
    assert measured_batch_size(PictureGraph(session, RECIPE), 8, lambda: session.now) == 1
    session.largest_batch = 0
    with pytest.raises(RuntimeFailed):
        measured_batch_size(PictureGraph(session, RECIPE), 8, lambda: session.now)


def looking(session: FakeSession, body: Callable[[Watching], Any]) -> None:
    async def run() -> None:
        settings = Settings.model_construct(max_sequences=8, max_queue=8)
        watching = watch(PictureGraph(session, RECIPE), "test", settings, lambda: session.now)
        session.feeds.clear()
        while session.entered.acquire(blocking=False):
            pass
        try:
            await asyncio.wait_for(body(watching), TIMEOUT_S)
        finally:
            await watching.batcher.aclose()
        assert session.is_closed

    asyncio.run(run())


def brightest(outputs: Outputs, framing: Framing) -> tuple[float, int]:
    return round(float(outputs["brightest"][0]) * 255), framing.width


def test_answers_come_in_the_order_of_the_pictures() -> None:
    async def body(watching: Watching) -> None:
        values = [int(value) for value in np.random.default_rng(0).permutation(np.arange(120, 145))]
        pictures = [Shown(grey(value, width=value // 9)) for value in values]
        computed: Computed[tuple[float, int]] = await watching.look(pictures, brightest)
        assert computed.results == [(value, value // 9) for value in values]
        assert watching.stats.computed_size == 25
        assert (await watching.look([], brightest)).results == []
        await watching.try_once()
        assert watching.stats.computed_size == 26

    looking(FakeSession(), body)


class Counted(Sequence[Shown]):
    """Pictures, and how many of them were asked for."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.asked = 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, place: Any) -> Any:
        self.asked = max(self.asked, min(self.num, place.stop))
        return [Shown(grey(200))] * len(range(self.num)[place])


def test_few_pictures_of_a_request_are_prepared_before_they_are_needed() -> None:
    """Or a thousand small ones would be gigabytes as numbers."""
    session = FakeSession(port((1, 3, 4, 6)))

    async def body(watching: Watching) -> None:
        session.permits = threading.Semaphore(0)
        pictures = Counted(1000)
        task = asyncio.create_task(watching.look(pictures, brightest))
        assert await asyncio.to_thread(session.entered.acquire, timeout=TIMEOUT_S)
        assert pictures.asked == 8
        session.permits.release(1000)
        assert len((await task).results) == 1000

    looking(session, body)


def test_pictures_are_resized_by_what_the_graph_was_given(settings: MakeSettings) -> None:
    class White:
        def takes(self, resize: Resize) -> bool:
            return resize.size == (12, 8)

        def __call__(self, rows: Rows, resize: Resize, out: NDArray[np.float32]) -> None:
            out[...] = 255.0

    watching = watch(PictureGraph(FakeSession(), RECIPE, White()), "test", settings())

    async def look() -> list[float]:
        pictures = [Shown(np.zeros((height, width, 3), np.uint8)) for width, height in ((12, 8), (6, 4))]
        try:
            computed = await watching.look(pictures, lambda outputs, framing: float(outputs["brightest"][0]))
            return computed.results
        finally:
            await watching.batcher.aclose()

    assert asyncio.run(look()) == [255.0, 0.0]


def test_where_nothing_can_be_compiled_pillow_resizes(settings: MakeSettings, caplog: pytest.LogCaptureFixture) -> None:
    configured = settings()
    assert load_resampler(configured) is not None
    (kept,) = shared_compiled_dir(configured.cache_dir).rglob("*-pictures.o")
    keep(b"no object file", kept)
    assert load_resampler(configured) is None
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(
        "pictures are resized by Pillow, which takes several times as long: loading the kernels of pictures failed: "
    )


def test_only_the_first_pictures_of_a_request_are_waited_for() -> None:
    """Those that follow come when the first ones are computed: a graph that waited for them would do so in vain."""
    events: list[str] = []

    class Recorder:
        @contextmanager
        def preparing(self) -> Iterator[None]:
            events.append("announced")
            yield
            events.append("prepared")

        async def timed_call(self, items: Sequence[Any]) -> Computed[Any]:
            events.append(f"{len(items)} sent")
            return Computed([({"brightest": np.ones(1)}, framing) for _, framing in items], 0.5, 0.25)

    blank = numbers(0), Framing(6, 4, 6, 4, 1.0, 1.0)
    watching = Watching(cast(Any, Recorder()), RECIPE, blank, batch_size=4, memory_bytes=1)
    computed = asyncio.run(watching.look([Shown(grey(1))] * 10, brightest))
    assert (len(computed.results), computed.queued_s, computed.computed_s) == (10, 0.5, 0.75)
    assert computed.prepared_s > 0
    assert events == ["announced", "prepared", "4 sent", "4 sent", "2 sent"]


def test_requests_of_one_picture_share_a_batch() -> None:
    session = FakeSession()

    async def body(watching: Watching) -> None:
        assert watching.batch_size == 8  # by a clock that stands still
        session.permits = threading.Semaphore(0)
        tasks = [asyncio.create_task(watching.look([Shown(grey(200))], brightest))]
        assert await asyncio.to_thread(session.entered.acquire, timeout=TIMEOUT_S)
        tasks += [asyncio.create_task(watching.try_once()) for _ in range(5)]
        await asyncio.sleep(0)
        session.permits.release(10)
        await asyncio.gather(*tasks)
        assert session.batches == [1, 5]

    looking(session, body)


@dataclass
class Kept:
    """A picture that tells in which threads it was made."""

    shown: Shown
    is_slow: bool = False
    threads: list[str] = field(default_factory=list)

    def noted(self, make: Callable[[Image.Image], Any]) -> Callable[[Image.Image], Any]:
        def noting(image: Image.Image) -> Any:
            self.threads.append(threading.current_thread().name)
            return make(image)

        return noting

    async def made(self, make: Callable[[Image.Image], Any]) -> Any:
        return await self.shown.made(self.noted(make))

    async def made_by(self, run: Any, make: Callable[[Image.Image], Any]) -> Any:
        return None if self.is_slow else await self.shown.made_by(run, self.noted(make))


def test_the_one_picture_of_a_request_is_made_by_an_idle_graph_itself() -> None:
    session = FakeSession()

    async def body(watching: Watching) -> None:
        alone, other, late = (Kept(Shown(grey(value))) for value in (200, 1, 9))
        slow = Kept(Shown(grey(7)), is_slow=True)
        computed = await watching.look([alone], brightest)
        assert computed.results == [(200, 9)]
        assert computed.prepared_s > 0
        assert alone.threads == ["vmm-pictures test"]
        await watching.look([other, other], brightest)
        assert (await watching.look([slow], brightest)).results == [(114, 9)]  # what is around it
        session.permits = threading.Semaphore(0)
        while session.entered.acquire(blocking=False):
            pass
        task = asyncio.create_task(watching.try_once())
        assert await asyncio.to_thread(session.entered.acquire, timeout=TIMEOUT_S)
        second = asyncio.create_task(watching.look([late], brightest))
        session.permits.release(10)
        await asyncio.gather(task, second)
        assert [len(each.threads) for each in (other, slow, late)] == [2, 1, 1]
        assert "vmm-pictures test" not in {*other.threads, *slow.threads, *late.threads}

    looking(session, body)


def test_a_failure_is_the_callers() -> None:
    session = FakeSession()

    async def body(watching: Watching) -> None:
        session.largest_batch = 0
        with pytest.raises(GenerationFailed, match="too many"):
            await watching.look([Shown(grey(1))], brightest)
        session.largest_batch = 8

        def refuse(outputs: Outputs, framing: Framing) -> None:
            raise GenerationFailed("not a number")

        with pytest.raises(GenerationFailed, match="not a number"):
            await watching.look([Shown(grey(1))], refuse)
        assert (await watching.look([Shown(grey(200))], brightest)).results == [(200, 9)]

    looking(session, body)


def test_what_is_quick_is_made_on_the_event_loop() -> None:
    def thread_of(outputs: Outputs, framing: Framing) -> int:
        return threading.get_ident()

    def told(*quickly: Callable[[Outputs, Framing], int | None]) -> bool:
        """Whether that was in the thread of the event loop."""
        made: list[bool] = []

        async def body(watching: Watching) -> None:
            computed = await watching.look([Shown(grey(1)), Shown(grey(2))], thread_of, *quickly)
            made.append(set(computed.results) == {threading.get_ident()})

        looking(session, body)
        return made[0]

    session = FakeSession()
    assert not told()
    assert told(thread_of)
    decided = iter([1, None])
    assert not told(lambda outputs, framing: next(decided))
    session.num_numbers = 100_000
    assert not told(thread_of)


@pytest.mark.parametrize("half", ["texts", "pictures"])
def test_clip_is_given_up_with_either_half(half: str) -> None:
    """One is of no use without the other."""
    session = FakeSession()

    async def body(watching: Watching) -> None:
        def lost(inputs: Sequence[Any]) -> list[Any]:
            raise DeviceLost("gone")

        texts: Batcher[Any, Any] = Batcher(lost, size=lambda text: 1, close=lambda: None)
        clip = ReadyClip(
            batcher=texts,
            tokenizer=Tokenizer(WordLevel({"a": 0}, unk_token="a")),
            recipe=EmbeddingRecipe(),
            placement=Placement("openvino", "CPU"),
            context_length=8,
            vocab_size=1,
            dim=1,
            memory_bytes=1,
            graph=watching,
            output="brightest",
        )
        assert clip.failure is None
        session.is_lost = True
        with pytest.raises(PlacementFailed):
            await (texts.call([1]) if half == "texts" else clip.embed_pictures([Shown(grey(1))]))
        assert "gone" in (clip.failure or "")
        await clip.aclose()

    looking(session, body)
