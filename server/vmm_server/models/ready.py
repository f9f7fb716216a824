"""What the pool knows of a loaded model, whatever it does."""

from typing import Protocol

from vmm_server.models.router import Placement


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

    async def aclose(self) -> None:
        """End what runs and give the memory back. Idempotent."""
        ...
