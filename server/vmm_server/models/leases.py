"""A model in memory, and who holds it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement, Work
from vmm_server.models.store import InstalledModel
from vmm_server.requests import KeepAlive

Held = TypeVar("Held")

MAX_MOVES = 3
"""How often a request may begin anew because the device it was to run on has failed."""

REPLACED_STAYS_S = 1.0
"""How long a replaced model stays without a lease: for requests that found it under its name, and read their inputs."""

_FOREVER = datetime(2318, 1, 1, tzinfo=UTC)
"""`expires_at` of a model that stays for ever; a far date is what Ollama's clients expect."""


@dataclass(slots=True, eq=False)
class LoadedModel:
    """One model in memory."""

    model: InstalledModel
    """The last one asked for, of those that share what is loaded."""
    ready: Ready
    keep_alive: KeepAlive
    last_used: float
    load_s: float = 0.0
    """What it took to load it."""
    num_leases: int = 0
    num_lent: int = 0
    """Leases so far."""
    num_expected: int = 0
    """Requests that hold a lease, and are not with `ready` yet: its load does not show them."""
    num_expected_prompt_tokens: int = 0
    is_pinned: bool = False
    """A request wants it to stay for ever. (A server's default of for ever only means that time does not unload it.)"""

    loaded_as: str = field(init=False)
    """The name it was loaded under: figures keep it, whoever shares what is loaded."""
    is_unwanted: bool = False
    """Somebody asked for it to be unloaded."""
    _kinds: dict[type, bool] = field(default_factory=dict, init=False, repr=False)
    is_replaced: bool = False
    """Nothing is installed any more that needs it: it leaves when its last lease ends."""

    def __post_init__(self) -> None:
        self.loaded_as = self.model.name

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        return self.ready.placement

    @property
    def size_bytes(self) -> int:
        """Weights and KV blocks."""
        return self.ready.memory_bytes

    def is_kind(self, kind: type) -> bool:
        """Whether requests of this kind can be sent to it. Asked once: of a protocol it takes a look at each member."""
        if kind not in self._kinds:
            self._kinds[kind] = isinstance(self.ready, kind)
        return self._kinds[kind]

    def lend(self, num_leases: int = 1) -> None:
        """Count leases on it."""
        self.num_leases += num_leases
        self.num_lent += num_leases

    def expect(self, num_requests: int, work: Work) -> None:
        """Count requests in that are on their way, or, below zero, out again."""
        self.num_expected += num_requests * work.num_streams
        self.num_expected_prompt_tokens += num_requests * work.num_streams * work.num_prompt_tokens

    def keep(self, keep_alive: KeepAlive | None) -> None:
        """Stay as long as a request says; one that says nothing leaves it as it is."""
        if keep_alive is not None:
            self.keep_alive = keep_alive
            self.is_pinned = keep_alive.seconds is None
            self.is_unwanted = False

    def expires_in_s(self, now: float) -> float | None:
        """Seconds until it is unloaded if nobody uses it; `None`: never."""
        stays_s = REPLACED_STAYS_S if self.is_replaced else self.keep_alive.seconds
        if stays_s is None:
            return None
        return (now if self.num_leases else self.last_used) + stays_s - now

    def expires_at(self, now: float) -> datetime:
        """The same as a date, for `/api/ps`."""
        left = self.expires_in_s(now)
        try:
            return _FOREVER if left is None else datetime.now(UTC) + timedelta(seconds=left)
        except OverflowError:  # centuries
            return _FOREVER


@dataclass(slots=True)
class Lease(Generic[Held]):
    """A counted hold on a loaded model. `release` it once; a second call does nothing."""

    loaded: LoadedModel
    model: InstalledModel
    """The one asked for. Others may share what is loaded."""
    ready: Held
    """What requests are sent to."""
    load_s: float
    """Seconds this lease waited for a load; 0 when the model was there."""
    work: Work
    """What is to be done under it."""
    _release: Callable[[LoadedModel], None]
    _is_open: bool = field(default=True, init=False)
    _is_expected: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.loaded.expect(1, self.work)

    def again(self) -> "Lease[Held]":
        """A second one. It is there at once, also where a new request would have to wait."""
        assert self._is_open, "this lease is over"
        self.loaded.lend()
        return Lease(self.loaded, self.model, self.ready, 0.0, self.work, self._release)

    def begun(self) -> None:
        """Its request is with `ready` now, whose load shows it."""
        if self._is_expected:
            self._is_expected = False
            self.loaded.expect(-1, self.work)

    def release(self) -> None:
        """Give it back; the keep-alive clock starts when it was the last one."""
        if self._is_open:
            self._is_open = False
            self.begun()
            self._release(self.loaded)
