"""What the pool knows of a loaded model, whatever it does."""

from typing import Protocol, runtime_checkable

from vmm_adapters.base import CausalLMRunner, Encoder, TextBackend
from vmm_server.engine.batcher import BatcherStats
from vmm_server.models.router import Load, Placement


class Ready(Protocol):
    """A model in memory that requests can be sent to."""

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens a request may have."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What it takes."""
        ...

    @property
    def load(self) -> Load:
        """What it has to do."""
        ...

    @property
    def failure(self) -> str | None:
        """Why nothing can be sent to it any more: its device failed."""
        ...

    async def aclose(self) -> None:
        """End what runs and give the memory back. Idempotent."""
        ...


@runtime_checkable
class Sampled(Ready, Protocol):
    """A model that answers whole (a picture, a window of sound, a sentence), and so can be timed by trying it."""

    @property
    def stats(self) -> BatcherStats:
        """What it has to do, and what it did."""
        ...

    async def try_once(self) -> None:
        """Compute one input of the usual size that means nothing, with its queue. Raises as a request would."""
        ...


def warm(runner: CausalLMRunner | TextBackend | Encoder) -> None:
    """Warm it up, or close it: what cannot run once is not ready. Raises `AdapterError`."""
    try:
        runner.warm_up()
    except BaseException:
        runner.close()
        raise
