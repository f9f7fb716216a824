"""Who is served next among tenants that share one model. Pure.

Each tenant has an account of the service it got: what was computed for it, over its weight. Of those that wait, the one
with the lowest account goes first, so that all accounts grow at one pace and the work behind them is as the weights
are: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models", 2024. One tenant's 200
requests are no more than its turn, and another's only request is served at its next one.

Nobody saves up. Whoever had nothing to wait for is lifted to the lowest account of those that wait now, as if it came
for the first time; what it got beyond its share is remembered as long as others are served. Accounts are kept for each
priority by itself, because between priorities nothing is shared: the better one goes first.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MAX_IDLE = 1024
"""Tenants without requests whose accounts are kept; those that got least are forgotten first."""


@dataclass(slots=True, eq=False)
class Account:
    """What a tenant got among those of its priority."""

    priority: int
    tenant: str
    service: float = 0.0
    """Work over weight, from where it was lifted to."""
    expected: float = 0.0
    """The same of work that has begun, as far as it is foretold."""
    num_open: int = 0
    """Requests that are not over."""

    def charge(self, amount: float, weight: float) -> None:
        """Book work; `weight` is the request's, since a tenant's may change."""
        self.service += amount / weight

    def expect(self, amount: float, weight: float) -> None:
        """Foretell work, or, below zero, take that back: it is done, or is not to come."""
        self.expected += amount / weight

    @property
    def level(self) -> float:
        """What decides whose turn it is."""
        return self.service + self.expected


@dataclass(slots=True)
class _Peers:
    accounts: dict[str, Account] = field(default_factory=dict)
    num_open: int = 0
    latest: Account | None = None
    """Whose turn it was last."""

    def floor(self, waiting: Collection[Account]) -> float:
        """Where a newcomer begins. When nobody waits, level with the last one whose turn it was."""
        if waiting:
            return min(account.service for account in waiting)
        return 0.0 if self.latest is None else self.latest.service

    def forget_idle(self) -> None:
        idle = [account for account in self.accounts.values() if not account.num_open]
        if len(idle) > MAX_IDLE:
            idle.sort(key=lambda account: account.service)
            for account in idle[: len(idle) // 2]:
                del self.accounts[account.tenant]


class Accounts:
    """Of tenants with requests, and of those that were served beside them."""

    def __init__(self) -> None:
        self._peers: dict[int, _Peers] = {}

    @property
    def priorities(self) -> list[int]:
        """Those of all requests, best first."""
        return sorted(self._peers)

    def are_shared(self, priority: int) -> bool:
        """Whether there is more than one account to choose from."""
        peers = self._peers.get(priority)
        return peers is not None and len(peers.accounts) > 1

    def open(self, priority: int, tenant: str, backlog: Iterable[Account]) -> Account:
        """The account of a request that has come. `backlog`: of all that wait for their turn, in any order."""
        peers = self._peers.setdefault(priority, _Peers())
        account = peers.accounts.setdefault(tenant, Account(priority, tenant))
        if len(peers.accounts) > 1:
            waiting = {each for each in backlog if each.priority == priority}
            if account not in waiting:
                account.service = max(account.service, peers.floor(waiting))
        account.num_open += 1
        peers.num_open += 1
        return account

    def note_turn(self, account: Account) -> None:
        """A request that waited is served."""
        self._peers[account.priority].latest = account

    def close(self, account: Account) -> None:
        """A request is over. With the last one of a priority its accounts are: there is nobody to be fair to."""
        peers = self._peers[account.priority]
        account.num_open -= 1
        peers.num_open -= 1
        if not peers.num_open:
            del self._peers[account.priority]
        elif not account.num_open and len(peers.accounts) > 2 * MAX_IDLE:
            peers.forget_idle()
