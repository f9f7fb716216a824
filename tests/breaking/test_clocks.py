"""The system's clock may jump, by a day or back by an hour. What takes time is measured on a clock that does not."""

import asyncio
import re
import time
from inspect import signature
from pathlib import Path

import pytest
from tests.test_batches import FakeRoutes, in_a_loop, process

from vmm_server.admission import Admission
from vmm_server.api.gate import Gate
from vmm_server.engine.engine import Engine
from vmm_server.file_store import LateClock
from vmm_server.inference import Inference
from vmm_server.keys import KeyRing
from vmm_server.models.machine import MachineReader
from vmm_server.models.pool import ModelPool

ROOTS = [Path(__file__).parents[2] / root for root in ("server/vmm_server", "adapters/vmm_adapters")]
WALL_CLOCK = re.compile(r"\btime\.time\b(?!\w)|\btime_ns\(|datetime\.(now|utcnow|today)\(|date\.today\(")
DATES = "what is shown or kept as a date"
JUDGED = {
    "file_store.py": "LateClock, which a jump ahead does not move; and dates",
    "batches.py": DATES,
    "database.py": "the name of a file",
    "keys.py": "a key expires at a date, and that is the system's",
    "inference.py": DATES,
    "api/ollama/replies.py": DATES,
    "api/openai/responses/create.py": DATES,
    "models/leases.py": "a date, of seconds that are left on the pool's clock",
    "models/creation.py": DATES,
    "models/installer.py": DATES,
    "models/store.py": "dates; the age of leftovers in days, and what is being written keeps a lock",
    "metrics/live.py": DATES,
    "metrics/events.py": DATES,
    "cli/output.py": DATES,
    "leftovers.py": "the age of leftovers of other processes, in a cache",
}
"""Files that read the system's clock, and why they may."""


def test_only_dates_are_read_off_the_systems_clock() -> None:
    found = {
        path.relative_to(root).as_posix()
        for root in ROOTS
        for path in root.rglob("*.py")
        if WALL_CLOCK.search(path.read_text("utf-8"))
    }
    assert found - JUDGED.keys() == set(), "take time.monotonic, or say here why a jump does no harm"
    assert JUDGED.keys() - found == set()


@pytest.mark.parametrize(
    ("part", "name"),
    [(ModelPool, "clock"), (Admission, "clock"), (Gate, "clock"), (KeyRing, "clock"), (MachineReader, "clock")],
)
def test_keep_alive_rates_and_deadlines_are_on_a_clock_that_does_not_jump(part: type, name: str) -> None:
    assert signature(part).parameters[name].default is time.monotonic


@pytest.mark.parametrize("part", [Engine, Inference])
def test_so_are_the_times_of_requests(part: type) -> None:
    assert signature(part).parameters["clock"].default is time.perf_counter


@pytest.mark.parametrize("jump_s", [2 * 86400.0, -86400.0, -3600.0])
@in_a_loop
async def test_a_batch_that_waits_is_done_whatever_the_clock_says(tmp_path: Path, jump_s: float) -> None:
    wall, routes = [1_000_000.0], FakeRoutes()
    routes.gate = asyncio.Event()
    async with process(tmp_path, routes=routes, time=LateClock(lambda: wall[0], lambda: 5.0)) as server:
        batch = await server.create(3)
        await routes.has_come.wait()
        wall[0] += jump_s
        routes.gate.set()
        done = await server.ended(batch)
        assert (done.status, done.num_completed) == ("completed", 3)
        await server.files.sweep()
        assert len(await server.lines(done.output_file_id)) == 3
