"""What is known of the request that the running task answers: its line in the log, its trace and its errors' counts.

The edge begins a note for each connection. Tasks that answer it, and tasks that these start, find it here.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from vmm_server.callers import caller
from vmm_server.observed import Observed
from vmm_server.tracing import Trace


@dataclass(slots=True)
class RequestNote:
    """Written on the event loop."""

    trace: Trace
    count_error: Callable[[str], None]
    """Told the class of each error that is answered."""
    route: str = ""
    """The template of the path; empty where there is none."""
    tenant: str = ""
    """The id of the key."""
    model: str = ""
    """The last one that did something for it."""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    """Of all that models did for it."""
    error_type: str | None = None
    """The class of the last error that was answered."""

    def observed(self, observed: Observed) -> None:
        """A model is done with it."""
        self.model = observed.model.name
        self.num_input_tokens += observed.num_input_tokens or 0
        self.num_output_tokens += observed.num_output_tokens or 0
        self.trace.observed(observed)

    def answered(self, error: BaseException) -> None:
        """An error is told to the client."""
        self.error_type = type(error).__name__
        self.count_error(self.error_type)


note: ContextVar[RequestNote | None] = ContextVar("note", default=None)
"""Of the request that the running task answers; `None` outside of one."""


def note_observed(observed: Observed) -> None:
    """A model is done with the request that the running task answers."""
    if (noted := note.get()) is not None:
        noted.observed(observed)


def charge_observed(observed: Observed) -> None:
    """Tell whoever keeps the caller's account what a request took, whether or not it came to its end."""
    caller.get().charge((observed.num_input_tokens or 0) + (observed.num_output_tokens or 0))
