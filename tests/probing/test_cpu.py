"""What of the CPU this process may use, on machines whose `/proc` and `/sys` were written down."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.probes import apple, windows
from vmm_adapters.probes.control_groups import MemoryLimit, cpu_quota, memory_limit
from vmm_adapters.probes.cpu import ask
from vmm_adapters.probes.linux_cpu import parse_list, read_processor

DATA = Path(__file__).parents[1] / "data" / "probes"
WriteFiles = Callable[[dict[str, str]], Path]


@pytest.fixture
def root(tmp_path: Path) -> WriteFiles:
    """Writes files below a root folder."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def machine_files(
    cpuinfo: str, *, siblings: tuple[str, ...] = ("0", "1"), nodes: tuple[str, ...] = ("0-1",)
) -> dict[str, str]:
    cpus = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {
        "proc/cpuinfo": (DATA / cpuinfo).read_text(),
        "proc/meminfo": "MemTotal:       16000 kB\nMemFree:  1000 kB\nMemAvailable:   12000 kB\nHugePages_Total:  0\n",
        **{cpus.format(number): f"{text}\n" for number, text in enumerate(siblings)},
        **{f"sys/devices/system/node/node{number}/cpulist": f"{text}\n" for number, text in enumerate(nodes)},
    }


@pytest.mark.parametrize(
    ("cpuinfo", "model", "vendor", "features"),
    [
        (
            "intel_xeon.txt",
            "Intel(R) Xeon(R) Processor",
            "Intel",
            "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16",
        ),
        ("amd_ryzen.txt", "AMD Ryzen 9 7950X 16-Core Processor", "AMD", "avx2 avx512f avx512_vnni avx512_bf16"),
        ("arm_neoverse_v1.txt", "Arm Neoverse V1", "Arm", "neon neon_dotprod neon_fp16 neon_bf16 neon_i8mm sve"),
        ("arm_raspberry_pi.txt", "Arm Cortex-A72", "Arm", "neon"),
    ],
)
def test_a_linux_cpu_is_known_by_its_cpuinfo(
    root: WriteFiles, cpuinfo: str, model: str, vendor: str, features: str
) -> None:
    found = read_processor(root(machine_files(cpuinfo)), frozenset((0, 1)))
    assert (found.model, found.vendor, " ".join(found.features)) == (model, vendor, features)
    assert (found.memory_total_bytes, found.memory_free_bytes) == (16000 << 10, 12000 << 10)


def test_threads_of_one_core_are_one_core_and_only_those_that_may_be_used_count(root: WriteFiles) -> None:
    folder = root(machine_files("amd_ryzen.txt", siblings=("0,2", "1,3", "0,2", "1,3"), nodes=("0,2", "1,3")))
    whole = read_processor(folder, frozenset((0, 1, 2, 3)))
    assert (whole.num_cores, whole.num_threads, whole.num_numa_nodes) == (2, 4, 2)
    part = read_processor(folder, frozenset((0, 2)))
    assert (part.num_cores, part.num_threads, part.num_numa_nodes) == (1, 2, 1)


def test_a_container_has_the_cpus_and_the_memory_that_it_was_given(root: WriteFiles) -> None:
    folder = root(
        machine_files("amd_ryzen.txt", siblings=("0", "1", "2", "3"))
        | {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{8000 << 10}\n",
            "sys/fs/cgroup/memory.current": f"{5000 << 10}\n",
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {1000 << 10}\n",
        }
    )
    found = read_processor(folder, frozenset(range(4)))
    assert (found.num_threads, found.num_cores) == (2, 2)
    assert (found.memory_total_bytes, found.memory_free_bytes) == (8000 << 10, 4000 << 10)


def test_the_tightest_limit_of_all_groups_above_holds(root: WriteFiles) -> None:
    folder = root(
        {
            "proc/self/cgroup": "0::/system.slice/vmm.service\n",
            "sys/fs/cgroup/system.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/system.slice/vmm.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": "1000\n",
            "sys/fs/cgroup/system.slice/memory.current": "900\n",
            "sys/fs/cgroup/system.slice/vmm.service/memory.max": "500\n",
            "sys/fs/cgroup/system.slice/vmm.service/memory.current": "100\n",
        }
    )
    assert cpu_quota(folder) == 2.0
    assert memory_limit(folder) == MemoryLimit(500, 100)


def test_limits_of_version_1_hold_and_its_word_for_none_is_larger_than_any_memory(root: WriteFiles) -> None:
    groups = {"proc/self/cgroup": "7:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n"}
    folder = root(
        machine_files("amd_ryzen.txt")
        | groups
        | {
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "700\n",
            "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 200\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        }
    )
    assert (memory_limit(folder), cpu_quota(folder)) == (MemoryLimit(1000, 500), 0.5)
    root({"sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n"})
    root({"sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1\n"})
    found = read_processor(folder, frozenset((0, 1)))
    assert (found.memory_free_bytes, found.num_threads) == (12000 << 10, 2)


def test_a_machine_that_tells_nothing_has_a_cpu_all_the_same(tmp_path: Path) -> None:
    found = read_processor(tmp_path, frozenset((0, 1)))
    assert (found.model, found.vendor, found.num_threads) == ("unknown", "unknown", 2)
    assert (found.num_cores, found.num_numa_nodes, found.memory_total_bytes) == (None, None, None)


@given(st.sets(st.integers(0, 300)))
def test_sets_of_cpus_are_read_as_the_kernel_writes_them(numbers: set[int]) -> None:
    assert parse_list(",".join(map(str, sorted(numbers))) + "\n") == numbers
    if numbers:
        low, high = min(numbers), max(numbers)
        assert parse_list(f"{low}-{high}\n") == set(range(low, high + 1))


def test_a_mac_is_known_by_its_sysctl() -> None:
    found = apple.read_sysctl((DATA / "apple_m2.txt").read_text())
    assert (found.model, found.vendor, found.num_cores, found.num_threads) == ("Apple M2", "Apple", 8, 8)
    assert found.features == ("neon", "neon_dotprod", "neon_fp16", "neon_bf16", "neon_i8mm")
    assert (found.memory_total_bytes, found.memory_free_bytes) == (16 << 30, 251000 * 16384)
    intel = apple.read_sysctl((DATA / "apple_intel.txt").read_text())
    assert (intel.vendor, intel.num_cores, intel.num_threads, intel.features) == ("Intel", 6, 12, ("avx2",))
    assert intel.memory_free_bytes is None


def test_windows_lists_a_record_of_its_own_size_for_every_core() -> None:
    record = (0).to_bytes(4, "little") + (48).to_bytes(4, "little") + bytes(40)
    assert windows.count_records(record * 6) == 6
    assert windows.count_records(record + bytes(16)) == 1  # a size of 0 leads nowhere
    assert windows.count_records(b"") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_this_machine_has_no_more_threads_than_it_may_use() -> None:
    found = ask()
    assert 1 <= found.num_threads <= len(os.sched_getaffinity(0))
    assert found.num_cores is None or found.num_cores <= found.num_threads
    assert found.memory_total_bytes is not None
    assert found.memory_free_bytes is not None
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes
