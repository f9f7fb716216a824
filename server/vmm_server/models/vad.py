"""silero-vad on disk → something warm that tells speech from everything else.

The graph is the package's `silero_vad_16k_sequence.onnx`: frames of 512 samples at 16 kHz, each after the 64 samples
before it, many at once; the LSTM's two states go in with a block and come out for the next one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vmm_adapters import catalog
from vmm_adapters.base import Session
from vmm_adapters.types import SessionOptions
from vmm_server.audio.transcript import SAMPLE_RATE, Samples
from vmm_server.audio.vad import FRAME_SAMPLES
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions, BatcherStats
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings

GRAPH = "model.onnx"
"""In a model's folder."""
BLOCK_FRAMES = 512
"""16 s of sound: what is computed at once."""
BLOCK_SAMPLES = BLOCK_FRAMES * FRAME_SAMPLES
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (1, 1, 128)
INPUTS = ("input", "h", "c")
OUTPUTS = ("speech_probs", "hn", "cn")


@dataclass(frozen=True, slots=True)
class Heard:
    """What a block leaves for the next one."""

    context: Samples
    """The last samples of it."""
    hidden: NDArray[np.float32]
    cell: NDArray[np.float32]


SILENCE = Heard(
    np.zeros(_CONTEXT_SAMPLES, np.float32), np.zeros(_STATE_SHAPE, np.float32), np.zeros(_STATE_SHAPE, np.float32)
)
"""What there is before the first block."""


@dataclass(frozen=True, slots=True)
class Block:
    """Samples, and what was heard before them."""

    samples: Samples
    """`BLOCK_SAMPLES`; only the last block of a sound has fewer."""
    before: Heard = SILENCE


@dataclass(frozen=True, slots=True)
class Spoken:
    """What is made of a block."""

    probabilities: NDArray[np.float32]
    """One for each frame that was begun."""
    after: Heard


@dataclass(frozen=True, slots=True)
class ReadyVad:
    """A loaded voice activity detector. Implements `Sampled`."""

    batcher: Batcher[Block, Spoken]
    placement: Placement
    memory_bytes: int
    context_length: int = 0
    """It reads no tokens."""

    @property
    def load(self) -> Load:
        """See `Ready`. A block takes milliseconds: it counts for nothing beside a text."""
        return NO_LOAD

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.batcher.failure

    @property
    def stats(self) -> BatcherStats:
        """See `Sampled`. Its unit is a second of sound."""
        stats = self.batcher.stats
        return replace(stats, computed_size=stats.computed_size // SAMPLE_RATE)

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.hear(Block(np.zeros(BLOCK_SAMPLES, np.float32)))

    async def hear(self, block: Block) -> Spoken:
        """Probabilities that its frames are speech. Raises as `Batcher.call` does."""
        (spoken,) = await self.batcher.call([block])
        return spoken

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.batcher.aclose()


def load_vad(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyVad:
    """Load silero-vad on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    options = SessionOptions(
        device=placement.device,
        num_threads=1,  # an LSTM of one sequence: there is nothing to share out
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
        allow_fallback=False,
    )
    session = catalog.load_session(placement.adapter, model.folders[placement.variant] / GRAPH, options)
    try:
        inputs = {spec.name for spec in session.inputs}
        if inputs != {*INPUTS}:
            raise ModelLoadFailed(f"{model.name!r} is not silero-vad's sequence graph: it takes {sorted(inputs)}")
        hear_block(session, Block(np.zeros(FRAME_SAMPLES, np.float32)))
    except BaseException:
        session.close()
        raise
    batcher: Batcher[Block, Spoken] = Batcher(
        lambda blocks: [hear_block(session, block) for block in blocks],
        size=lambda block: max(1, len(block.samples)),
        close=session.close,
        options=BatcherOptions(BatchLimits(max_items=4, max_size=4 * BLOCK_SAMPLES), gather_s=0.0),
        name=f"vmm-vad {model.name}",
    )
    return ReadyVad(batcher, placement, session.memory_bytes)


def hear_block(session: Session, block: Block) -> Spoken:
    """One run of the graph. Raises `AdapterError`."""
    num_frames = -(-len(block.samples) // FRAME_SAMPLES)
    padded = np.zeros(_CONTEXT_SAMPLES + num_frames * FRAME_SAMPLES, np.float32)
    padded[:_CONTEXT_SAMPLES] = block.before.context
    padded[_CONTEXT_SAMPLES : _CONTEXT_SAMPLES + len(block.samples)] = block.samples
    frames = sliding_window_view(padded, _CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
    feeds = {"input": frames.copy(), "h": block.before.hidden, "c": block.before.cell}
    outputs = session.run(feeds)
    probabilities, hidden, cell = (outputs[name] for name in OUTPUTS)
    return Spoken(probabilities.reshape(-1), Heard(padded[-_CONTEXT_SAMPLES:].copy(), hidden, cell))
