"""What this machine is: probed once, when somebody asks first, and kept."""

import hashlib
import json
import threading
from asyncio import shield, wrap_future
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from time import monotonic

from vmm_adapters.device import Machine
from vmm_adapters.probing import probe
from vmm_server.errors import ShuttingDown

RETRY_S = 60.0
"""After which what could not be found out is looked for again: a machine that starts may be too busy for a probe."""


class MachineReader:
    """Knows the machine. Any thread may ask; a probe runs in a thread of its own, one at a time."""

    def __init__(self, probe: Callable[[], Machine] = probe, *, clock: Callable[[], float] = monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._found_at = 0.0
        self._machine: Machine | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="probing")
        self._latest: Future[Machine] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def machine(self, *, refresh: bool = False) -> Machine:
        """The machine as it was found. `refresh` looks again, but for memory and drivers nothing changes by itself.

        Waits for a probe if need be, some seconds at most: not for an event loop. Raises `ShuttingDown` after `close`.
        """
        if not refresh and (known := self._known()) is not None:
            return known
        return self._asked(refresh).result()

    async def read(self, *, refresh: bool = False) -> Machine:
        """The same, on an event loop."""
        if not refresh and (known := self._known()) is not None:
            return known
        return await shield(wrap_future(self._asked(refresh)))  # others may wait for the same probe

    def close(self) -> None:
        """Take no more questions; a probe that runs ends by its time limit."""
        with self._lock:
            self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _known(self) -> Machine | None:
        """What was found; problems are looked into again behind the scenes."""
        machine, latest = self._machine, self._latest
        is_due = self._clock() - self._found_at >= RETRY_S
        may_ask = latest is not None and latest.done() and not self._is_closed
        if machine is not None and machine.problems and is_due and may_ask:
            self._asked(refresh=True)
        return machine

    def _asked(self, refresh: bool) -> Future[Machine]:
        """A probe that ends after this moment and, for a refresh, begins after it; shared by all whom it serves."""
        with self._lock:
            latest = self._latest
            is_over = latest is None or (latest.done() and (refresh or self._machine is None))
            if latest is None or is_over or (refresh and latest.running()):
                if self._is_closed:
                    raise ShuttingDown
                latest = self._latest = self._executor.submit(self._look)
            return latest

    def _look(self) -> Machine:
        machine = self._probe()
        self._found_at = self._clock()
        self._machine = machine
        return machine


def machine_key(machine: Machine) -> str:
    """16 hexadecimal digits that stay as long as measurements hold: the processors, their drivers, the packages."""
    facts = {
        "packages": dict(sorted(machine.packages.items())),
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "driver": device.driver,
                "cores": [device.num_cores, device.num_threads, device.num_numa_nodes],
                "features": sorted(device.features),
            }
            for device in sorted(machine.devices, key=lambda device: device.name)
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def describe(machine: Machine) -> dict[str, object]:
    """As `vmm devices --json` and `/api/vmm/devices` show it."""
    return {
        "machine_key": machine_key(machine),
        "devices": [asdict(device) | {"kind": device.kind.value} for device in machine.devices],
        "packages": dict(machine.packages),
        "problems": list(machine.problems),
    }
