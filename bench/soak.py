"""`make soak`: mixed traffic for a long time, and what is left of it afterwards: nothing, if all is well.

Requests of every kind (`traffic`) come from several clients at once; beside them a batch is always under way, models
are unloaded and loaded again, and settings are reloaded. After the warm-up, and at the end, everybody stops for a
moment: then no request may run or wait, no KV block be used, and at the end no file descriptor, thread or task be there
that was not there after the warm-up, nor 5 % more memory.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.servers import vmm_server
from bench.tables import console, show
from bench.traffic import Secrets, Traffic, Violation, fill_pool
from bench.vitals import Vitals, look_from_a_loop
from vmm_server.errors import ModelNotFound
from vmm_server.keys import KeyRing
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import Store
from vmm_server.settings import SETTINGS_FILE, read_settings

KV_BYTES = 64 << 20
"""So few that requests are preempted, and that all are in use after the warm-up."""
NUM_CLIENTS = 8
NUM_LOOKS = 5
"""Of which the median counts."""
BATCH_LINES = 12
SETTLED_S = 60.0
"""In which everything has to be over once nobody asks any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how often what is not traffic happens; seconds."""

    length_s: float
    warm_up_s: float
    reload_s: float = 60.0
    unload_s: float = 90.0
    report_s: float = 30.0
    max_growth: float = 0.05
    """Of resident memory, after the warm-up."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Models that are installed, and what is compiled for this machine: both stay as they are."""

    store: Path
    cache: Path


@dataclass
class Soak:
    """One run. `problems` is empty if all was well."""

    traffic: Traffic
    plan: Plan
    settings_file: Path
    problems: list[str] = field(default_factory=list)
    num_batches: int = 0
    num_reloads: int = 0
    num_loads: int = 0

    async def run(self) -> tuple[Vitals, Vitals]:
        """The state after the warm-up, and at the end."""
        async with self.traffic.client() as client:
            await self._told(self.traffic.each(client))  # what a kind needs to be opened for it is open from now on
        await self._everybody(self.plan.warm_up_s)
        warm = await self._settled("after the warm-up")
        await self._everybody(self.plan.length_s - self.plan.warm_up_s)
        end = await self._settled("at the end")
        self._compare(warm, end)
        return warm, end

    async def _everybody(self, seconds: float) -> None:
        """Traffic for some time; what is under way then is finished."""
        until = time.monotonic() + seconds
        async with self.traffic.client(self.traffic.secrets.admin) as admin:
            works = [self._ask(until) for _ in range(NUM_CLIENTS)]
            works.append(self._batches(until))
            works.append(self._now_and_then(until, self.plan.reload_s, lambda: self._reload(admin)))
            works.append(self._now_and_then(until, self.plan.unload_s, lambda: self._unload(admin)))
            works.append(self._now_and_then(until, self.plan.report_s, lambda: self._report(admin)))
            for work in asyncio.as_completed([asyncio.create_task(self._told(work)) for work in works]):
                await work

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        """What stops a worker is a problem, and stops no other."""
        try:
            await work
        except (Violation, httpx.HTTPError, OSError) as error:
            self._note(f"{type(error).__name__}: {error}")

    async def _ask(self, until: float) -> None:
        async with self.traffic.client() as client:
            while time.monotonic() < until:
                await self._told(self.traffic.one(client))

    async def _now_and_then(self, until: float, pause_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while (left := until - time.monotonic()) > pause_s:
            await asyncio.sleep(min(left, pause_s))
            await self._told(work())

    async def _reload(self, admin: httpx.AsyncClient) -> None:
        """A setting changes to and fro."""
        self.num_reloads += 1
        self.settings_file.write_text(f"max_queue = {256 + self.num_reloads % 2}\n")
        answer = await self.traffic.post(admin, "/api/vmm/reload", {})
        if answer.status_code == 200 and "max_queue" not in str(answer.json()["changed"]):
            raise Violation(f"a reload has changed nothing: {answer.text}")

    async def _unload(self, admin: httpx.AsyncClient) -> None:
        self.num_loads += 1
        await self.traffic.post(admin, "/api/generate", {"model": self.traffic.model, "keep_alive": 0})

    async def _batches(self, until: float) -> None:
        """One after the other; each line of each is answered once."""
        async with self.traffic.client() as client:
            while time.monotonic() < until:
                await self._batch(client)
                self.num_batches += 1

    async def _batch(self, client: httpx.AsyncClient) -> None:
        path = "/v1/chat/completions"
        names = [f"line-{number}" for number in range(BATCH_LINES)]
        lines = [
            {"custom_id": name, "method": "POST", "url": path, "body": self.traffic.body(path, stream=False)}
            for name in names
        ]
        content = "\n".join(json.dumps(line) for line in lines).encode()
        answer = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)})
        file_id = answer.raise_for_status().json()["id"]
        asked = {"input_file_id": file_id, "endpoint": path, "completion_window": "24h"}
        batch = (await client.post("/v1/batches", json=asked)).raise_for_status().json()
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            await asyncio.sleep(0.5)
            batch = (await client.get(f"/v1/batches/{batch['id']}")).raise_for_status().json()
        results = await client.get(f"/v1/files/{batch['output_file_id']}/content")
        done = sorted(json.loads(line)["custom_id"] for line in results.raise_for_status().text.splitlines())
        if batch["status"] != "completed" or done != sorted(names):
            raise Violation(f"a batch came to {batch}, with the lines {done}")
        for each in (file_id, batch["output_file_id"]):
            (await client.delete(f"/v1/files/{each}")).raise_for_status()

    async def _report(self, admin: httpx.AsyncClient) -> None:
        vitals = await look_from_a_loop(admin)
        total = sum(self.traffic.counts.values())
        console.print(
            f"{total:6d} requests, {self.num_batches} batches, {self.num_reloads} reloads, {self.num_loads} unloads;"
            f" {vitals.resident_bytes / 1e6:.0f} MB, {vitals.open_fds} descriptors, {vitals.threads} threads,"
            f" {vitals.tasks} tasks; {len(self.problems)} problems"
        )

    async def _settled(self, when: str) -> Vitals:
        """The state once nothing is under way, with the same models in memory and all threads of a pool there."""
        traffic = self.traffic
        async with traffic.client(traffic.secrets.admin) as client:
            for _ in range(4):
                chats = [traffic.post(client, "/api/chat", traffic.body("/api/chat", stream=False)) for _ in range(16)]
                await asyncio.gather(*chats)
            await fill_pool(client, traffic.model)
            if traffic.encoder:
                await traffic.post(client, "/v1/embeddings", {"model": traffic.encoder, "input": "the sea"})
        async with traffic.client(traffic.secrets.admin) as client:
            looks: list[Vitals] = []
            until = time.monotonic() + SETTLED_S
            while len(looks) < NUM_LOOKS and time.monotonic() < until:
                await asyncio.sleep(1)
                vitals = await look_from_a_loop(client)
                looks = [*looks, vitals] if vitals.is_idle and not vitals.blocks_used else []
            if len(looks) < NUM_LOOKS:
                self._note(f"{when} something was still under way: {vitals}")
                return vitals
        return Vitals(*(int(statistics.median(values)) for values in zip(*map(_values, looks), strict=True)))

    def _compare(self, warm: Vitals, end: Vitals) -> None:
        for name in ("open_fds", "threads", "tasks"):
            if getattr(end, name) > getattr(warm, name):
                self._note(f"{name}: {getattr(warm, name)} after the warm-up, {getattr(end, name)} at the end")
        growth = end.resident_bytes / warm.resident_bytes - 1
        if growth > self.plan.max_growth:
            self._note(f"memory has grown by {growth:.1%}")

    def _note(self, problem: str) -> None:
        self.problems.append(problem)
        console.print(f"[red]problem:[/] {problem}", soft_wrap=True)


def _values(vitals: Vitals) -> list[int]:
    return [getattr(vitals, name) for name in Vitals.__slots__]


@contextmanager
def _server(folders: Folders, model: str, encoder: str | None, seed: int) -> Iterator[tuple[Traffic, Path, Path]]:
    """A server with keys, over models that are there; its settings and its log."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(folders.store.resolve())
        (home / "cache").symlink_to(folders.cache.resolve())
        settings_file = home / SETTINGS_FILE
        settings_file.write_text("max_queue = 256\n")
        keys = KeyRing(home / "keys.toml")
        secrets = Secrets(
            keys.create("inference", weight=2.0)[1],
            keys.create("limited", requests_per_minute=6, tokens_per_minute=2000, max_concurrent=2)[1],
            keys.create("admin", scopes=("admin",))[1],
        )
        with vmm_server(home, model, KV_BYTES) as server:
            yield Traffic(server.port, secrets, model, encoder, random.Random(seed)), settings_file, server.log


def soak(plan: Plan, folders: Folders, model: str, encoder: str | None, seed: int = 1) -> list[str]:
    """Run it, and show a table of what came of it. The problems, none if all was well."""
    with _server(folders, model, encoder, seed) as (traffic, settings_file, log):
        run = Soak(traffic, plan, settings_file)
        warm, end = asyncio.run(run.run())
        run.problems += [line for line in log.read_text().splitlines() if " ERROR " in line or " CRITICAL " in line]
    shown = [("memory, MB", f"{warm.resident_bytes / 1e6:.1f}", f"{end.resident_bytes / 1e6:.1f}")]
    names = {"open_fds": "file descriptors", "threads": "threads", "tasks": "tasks", "blocks_used": "KV blocks used"}
    shown += [(words, str(getattr(warm, name)), str(getattr(end, name))) for name, words in names.items()]
    show("left", ["", "after the warm-up", "at the end"], [[*row] for row in shown])
    others = {"batches": run.num_batches, "reloads": run.num_reloads, "unloads": run.num_loads}
    counts = {**traffic.counts, "told to wait": traffic.num_refused, **others, "problems": len(run.problems)}
    show("what came", ["", "times"], [[name, str(count)] for name, count in counts.items()])
    return run.problems


def main() -> None:
    """Parse the command line; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--encoder", default="all-minilm", help="left out if it is not installed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = read_settings()
    registry = Registry(Store(settings.store_dir), read_cards(settings.card_dirs))
    try:
        model = registry.resolve(options.model).name
    except ModelNotFound as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    try:
        encoder: str | None = registry.resolve(options.encoder).name
    except ModelNotFound:
        encoder = None
    length_s = options.minutes * 60
    console.print(f"{model} and {encoder or 'no encoder'}, {os.cpu_count()} cores, {options.minutes:g} minutes")
    plan = Plan(length_s, warm_up_s=min(180.0, length_s / 3), report_s=min(30.0, length_s / 6))
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    problems = soak(plan, Folders(settings.store_dir, settings.cache_dir), model, encoder, options.seed)
    for problem in problems:
        console.print(f"[red]problem:[/] {problem}", soft_wrap=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
