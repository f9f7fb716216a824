"""What this machine is: probed once, when somebody asks first, and kept.

A probe takes about a second, which the first model of every start would wait for. So what it found is also kept in a
file, for this boot and these packages. Whoever asks gets that at once; a minute later, when no load is in its way any
more, a probe behind the scenes sets right what has changed.
"""

import hashlib
import json
import logging
import threading
from asyncio import shield, wrap_future
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vmm_adapters.device import Machine
from vmm_adapters.probing import probe
from vmm_adapters.probing.packages import installed_packages
from vmm_server.errors import ShuttingDown, StoreError
from vmm_server.models.disk import store_errors, write_atomically

logger = logging.getLogger(__name__)

RETRY_S = 60.0
"""After which what could not be found out, or was found by an earlier process, is looked for again."""


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class _Kept:
    """The file's content."""

    boot: str
    machine: Machine


_KEPT = TypeAdapter(_Kept)


def read_kept(path: Path, boot: str | None) -> Machine | None:
    """What was found since this boot, with the packages that are here; `None`: nothing, or nothing that still holds."""
    try:
        kept = _KEPT.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    return kept.machine if kept.boot == boot and kept.machine.packages == installed_packages() else None


def read_boot_id() -> str | None:
    """What the system calls this boot; `None`: it does not say, and nothing is kept."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


class MachineReader:
    """Knows the machine. Any thread may ask; a probe runs in a thread of its own, one at a time."""

    def __init__(
        self,
        probe: Callable[[], Machine] = probe,
        *,
        kept: Path | None = None,
        boot: str | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`kept` is the file for what was found, `boot` what `read_boot_id` says."""
        self._probe = probe
        self._kept = kept if boot else None
        self._boot = boot or ""
        self._clock = clock
        self._found_at = clock()
        self._machine: Machine | None = read_kept(self._kept, boot) if self._kept else None
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
        """What was found; problems, and what an earlier process found, are looked into again behind the scenes."""
        machine, latest = self._machine, self._latest
        if machine is None or self._is_closed:
            return machine
        is_due = self._clock() - self._found_at >= RETRY_S
        if is_due and (latest is None or (latest.done() and machine.problems)):
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
        self._keep(machine)
        return machine

    def _keep(self, machine: Machine) -> None:
        if self._kept is None or machine.problems:
            return
        try:
            with store_errors("keep what the machine is", self._kept):
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._kept, _KEPT.dump_json(_Kept(self._boot, machine)))
        except StoreError as error:
            logger.warning("%s", error.message)


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
