"""What a server says of itself in `/metrics`, as far as it can leak."""

from dataclasses import dataclass
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look. The look itself is a request, a connection and a task of it."""

    resident_bytes: int
    open_fds: int
    threads: int
    tasks: int
    """Of the event loop."""
    active: int
    """HTTP requests and WebSockets under way, without this one."""
    running: int
    waiting: int
    blocks_used: int
    """KV blocks, of all models."""

    @classmethod
    def of(cls, metrics: str) -> Self:
        """Those that a `/metrics` page tells."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return cls(
            resident_bytes=int(sums["process_resident_memory_bytes"]),
            open_fds=int(sums["process_open_fds"]),
            threads=int(sums["vmm_process_threads"]),
            tasks=int(sums["vmm_asyncio_tasks"]),
            active=int(sums["http_server_active_requests"]) - 1,
            running=int(sums.get("vmm_requests_running", 0)),
            waiting=int(sums.get("vmm_requests_waiting", 0)),
            blocks_used=int(sums.get("vmm_kv_blocks_used", 0)),
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self.active == self.running == self.waiting == 0


def look(client: httpx.Client) -> Vitals:
    """Ask a server."""
    return Vitals.of(client.get("/metrics").raise_for_status().text)


async def look_from_a_loop(client: httpx.AsyncClient) -> Vitals:
    """The same, without blocking the loop."""
    return Vitals.of((await client.get("/metrics")).raise_for_status().text)
