"""One campaign: thousands of mutated inputs to one reader, in a process whose time and memory are bounded.

`python -m tests.fuzz.campaign gguf 10000` runs one and prints a line of what it saw. It ends with 1, and hypothesis's
smallest example, where the outcome of a case is neither a success nor an error of ours (`VMMError`), and where a case
takes more than `MAX_CASE_S` of processor time or `MAX_MEMORY_BYTES` beyond what the program had when it began.
"""

import faulthandler
import gc
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MAX_CASE_S = 10.0
MAX_MEMORY_BYTES = 512 * 1024**2
_PAGE = resource.getpagesize()


class Hang(BaseException):
    """A case takes too long. No `Exception`: nothing may take it for a failure that it knows."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed."""

    cases: st.SearchStrategy[Any]
    check: Callable[[Any], object]
    """Returns, or raises a `VMMError`."""
    errors: tuple[type[Exception], ...]
    """What it may raise."""


@dataclass
class Figures:
    """Of a campaign."""

    num_cases: int = 0
    num_refused: int = 0
    slowest_s: float = 0.0


def run(name: str, target: Target, num_cases: int) -> Figures:
    """Run it in this process, which is bounded from now on. Raises what a case raised that it may not."""
    figures = Figures()

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @seed(20261122)
    @given(target.cases)
    def fuzz(case: Any) -> None:
        figures.num_cases += 1
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MAX_CASE_S)
        try:
            target.check(case)
        except target.errors:
            figures.num_refused += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        figures.slowest_s = max(figures.slowest_s, time.process_time() - started)

    _bound_this_process()
    fuzz()
    return figures


def _bound_this_process() -> None:
    signal.signal(signal.SIGPROF, _give_up)
    faulthandler.enable()
    gc.collect()
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MAX_MEMORY_BYTES,) * 2)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise Hang(f"a case takes more than {MAX_CASE_S:g} s")


def _peak_kib() -> int:
    """Of this program: what `getrusage` says is also its parent's, before there was another program."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def main(name: str, num_cases: str) -> None:
    """The command."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]()
    before = _peak_kib()
    started = time.monotonic()
    figures = run(name, target, int(num_cases))
    grown = (_peak_kib() - before) / 1024
    sys.stdout.write(
        f"{name}: {figures.num_cases} cases, {figures.num_refused} refused, {time.monotonic() - started:.0f} s, "
        f"slowest {figures.slowest_s:.2f} s, {grown:.0f} MiB more than before\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
