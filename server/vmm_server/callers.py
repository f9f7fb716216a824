"""Who a request is for: what admission, scheduling, quotas and figures know of it.

The edge of the server says it once a connection; whatever runs in that task, and in the tasks it starts, finds it here.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

MIN_PRIORITY, MAX_PRIORITY = -100, 100
BATCH_PRIORITY = MAX_PRIORITY
"""Of jobs that nobody waits for."""


def _nobody_counts(num_tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant, and how urgent its request is."""

    tenant: str = ""
    """The id of its key; empty for all that comes without one."""
    weight: float = 1.0
    """Its share beside other tenants of the same priority. Above 0."""
    priority: int = 0
    """Lower goes first, and takes the place of what is higher: `MIN_PRIORITY` to `MAX_PRIORITY`."""
    best_priority: int | None = None
    """What its requests may ask for at best; `None`: `priority`, so that they may only ask for a worse one."""
    deadline_at: float | None = None
    """When the answer is of no use any more, on `time.monotonic`'s clock."""
    charge: Callable[[int], None] = _nobody_counts
    """Told the tokens that a request took, prompt and answer, once it is over. On the event loop."""


caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - frozen
"""Of the request that the running task answers."""
