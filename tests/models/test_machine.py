"""The machine is probed once, a refresh looks again, the event loop never waits, and the key stays as it should."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_adapters.probing.packages import installed_packages
from vmm_server.errors import ShuttingDown
from vmm_server.models.machine import RETRY_S, MachineReader, describe, machine_key, read_kept

CPU = Device("CPU", DeviceKind.CPU, "Intel", "A CPU", 16, 8, None, 4, 8, 1, ("avx2",), (AdapterUse("openvino", "CPU"),))
MACHINE = Machine((CPU, Device("GPU.0", DeviceKind.GPU, "Intel", "A GPU", driver="1.0")), {"openvino": "2026.4.1"})


class Probing:
    """A probe that can be held, and counts: each machine it finds has its number as a problem."""

    def __init__(self) -> None:
        self.num_probes = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self) -> Machine:
        self.num_probes += 1
        number = self.num_probes
        self.began.release()
        assert self.may_end.wait(20)
        return replace(MACHINE, problems=(str(number),))


@contextmanager
def reader_of(probing: Probing) -> Iterator[MachineReader]:
    reader = MachineReader(probing)
    try:
        yield reader
    finally:
        probing.may_end.set()
        reader.close()


def test_nothing_is_probed_until_somebody_asks_and_then_once() -> None:
    probing = Probing()
    with reader_of(probing) as reader:
        assert probing.num_probes == 0
        assert reader.machine() is reader.machine()
        assert asyncio.run(reader.read()) is reader.machine()
        assert probing.num_probes == 1


def test_a_refresh_looks_again() -> None:
    with reader_of(Probing()) as reader:
        reader.machine()
        assert reader.machine(refresh=True).problems == ("2",)
        assert reader.machine().problems == ("2",)


def test_those_who_ask_at_the_same_time_share_a_probe_and_refreshes_one_that_begins_after_them() -> None:
    probing = Probing()
    with reader_of(probing) as reader, ThreadPoolExecutor(8) as threads:
        probing.may_end.clear()
        first = [threads.submit(reader.machine) for _ in range(3)]
        assert probing.began.acquire(timeout=20)
        asked = [reader._asked(refresh=True) for _ in range(3)]
        probing.may_end.set()
        assert {each.result(20).problems for each in first} <= {("1",), ("2",)}
        assert {each.result(20).problems for each in asked} == {("2",)}
        assert probing.num_probes == 2


def test_the_event_loop_turns_while_a_machine_is_probed_and_who_leaves_takes_it_from_nobody() -> None:
    probing = Probing()
    probing.may_end.clear()

    async def ask() -> Machine:
        first = asyncio.create_task(reader.read())
        assert await asyncio.to_thread(probing.began.acquire, timeout=20)
        staying, leaving = (asyncio.create_task(reader.read(refresh=True)) for _ in range(2))
        await asyncio.sleep(0)  # both wait for the probe after this one
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not first.done()
        assert not staying.done()
        probing.may_end.set()
        assert await first
        return await staying

    with reader_of(probing) as reader:
        assert asyncio.run(asyncio.wait_for(ask(), 60)).problems == ("2",)


def test_what_could_not_be_found_out_is_looked_for_again_and_nobody_waits_for_it(clock: Any) -> None:
    answers = [replace(MACHINE, problems=("openvino did not answer within 20 s",)), MACHINE]
    second = threading.Event()

    def probe() -> Machine:
        answer = answers.pop(0)
        if not answers:
            assert second.wait(20)
        return answer

    reader = MachineReader(probe, clock=clock)
    assert reader.machine().problems
    clock.advance(RETRY_S - 1)
    assert reader.machine().problems
    assert len(answers) == 1
    clock.advance(1)
    assert reader.machine().problems  # as it was found
    assert reader.machine().problems
    retried = reader._latest
    assert retried is not None
    second.set()
    assert retried.result(20) is MACHINE
    clock.advance(RETRY_S)
    assert asyncio.run(reader.read()) is MACHINE
    assert reader._latest is retried
    reader.close()


def test_a_probe_that_failed_is_tried_again() -> None:
    answers: list[Machine | Exception] = [RuntimeError("out of processes"), MACHINE]

    def probe() -> Machine:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reader = MachineReader(probe)
    with pytest.raises(RuntimeError, match="out of processes"):
        reader.machine()
    assert reader.machine() is MACHINE
    reader.close()


def test_after_the_end_nothing_is_probed_any_more(clock: Any) -> None:
    with_problems = replace(MACHINE, problems=("odd",))
    reader = MachineReader(lambda: with_problems, clock=clock)
    assert reader.machine() is with_problems
    reader.close()
    clock.advance(RETRY_S)
    assert reader.machine() is with_problems
    with pytest.raises(ShuttingDown):
        reader.machine(refresh=True)


HERE = replace(MACHINE, packages=installed_packages())


def test_what_an_earlier_start_found_is_there_at_once_and_set_right_behind(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "cache" / "machine.json"
    first = MachineReader(lambda: HERE, kept=path, boot="b1")
    assert first.machine() == HERE
    first.close()
    may_end = threading.Event()
    other = replace(HERE, devices=HERE.devices[:1])

    def probe() -> Machine:
        assert may_end.wait(20)
        return other

    reader = MachineReader(probe, kept=path, boot="b1", clock=clock)
    assert reader.machine() == HERE
    assert reader._latest is None  # a load that begins now has the processors for itself
    clock.advance(RETRY_S)
    assert reader.machine() == asyncio.run(reader.read()) == HERE
    may_end.set()
    behind = reader._latest
    assert behind is not None
    assert behind.result(20) == other
    assert reader.machine() == other == read_kept(path, "b1")
    reader.close()


def test_what_was_found_does_not_outlive_the_boot_the_packages_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"

    def kept_by(machine: Machine, boot: str | None) -> Machine | None:
        reader = MachineReader(lambda: machine, kept=path, boot=boot)
        reader.machine(refresh=True)
        reader.close()
        return read_kept(path, "b1")

    assert kept_by(HERE, None) is None
    assert kept_by(replace(HERE, problems=("odd",)), "b1") is None
    assert kept_by(replace(HERE, packages={"openvino": "1.0"}), "b1") is None
    assert kept_by(HERE, "b2") is None
    assert kept_by(HERE, "b1") == HERE
    path.write_text(path.read_text()[:-20])
    assert read_kept(path, "b1") is None


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reader = MachineReader(lambda: HERE, kept=tmp_path / "file" / "machine.json", boot="b1")
    assert reader.machine() == HERE
    reader.close()


def changed(**fields: object) -> Machine:
    return replace(MACHINE, devices=(replace(CPU, **fields), *MACHINE.devices[1:]))  # type: ignore[arg-type]


SAME = [
    changed(memory_free_bytes=1),
    changed(memory_total_bytes=1),
    changed(uses=()),
    replace(MACHINE, problems=("odd",)),
    replace(MACHINE, devices=MACHINE.devices[::-1]),
]
OTHER = [
    changed(description="Another CPU"),
    changed(features=("avx2", "amx_int8")),
    changed(num_cores=2),
    changed(num_threads=4),
    replace(MACHINE, devices=(CPU,)),
    replace(MACHINE, devices=(CPU, replace(MACHINE.devices[1], driver="1.1"))),
    replace(MACHINE, packages={"openvino": "2026.4.2"}),
    replace(MACHINE, packages={**MACHINE.packages, "onnxruntime": "1.31.1"}),
]


def test_the_key_changes_with_what_changes_measurements_and_with_nothing_else() -> None:
    assert machine_key(MACHINE) == "df09807bc942b57a"
    assert {machine_key(machine) for machine in SAME} == {machine_key(MACHINE)}
    keys = {machine_key(machine) for machine in OTHER}
    assert len(keys) == len(OTHER)
    assert machine_key(MACHINE) not in keys


def test_a_machine_is_described_in_plain_values() -> None:
    shown = json.loads(json.dumps(describe(MACHINE)))
    assert shown["devices"][0]["kind"] == "cpu"
    assert shown["devices"][0]["uses"] == [
        {"adapter": "openvino", "spelling": "CPU", "providers": [], "reason": None, "is_slow": False}
    ]
    assert shown["machine_key"] == machine_key(MACHINE)
