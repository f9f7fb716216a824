"""Short campaigns; `make fuzz` runs those of 10,000 cases (`VMM_FUZZ_CASES`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

NUM_CASES = int(os.environ.get("VMM_FUZZ_CASES", "250"))
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: memory is bounded by its limits")
@pytest.mark.parametrize("name", TARGETS)
def test_no_case_fails_hangs_or_takes_all_memory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "server", ROOT / "adapters")))
    warnings = ("-W", "error", "-W", "ignore:invalid escape sequence")  # pickletools', of what it is given
    command = [sys.executable, *warnings, "-m", "tests.fuzz.campaign", name, str(NUM_CASES)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120 + NUM_CASES / 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    with capsys.disabled():
        sys.stdout.write(f"\n{done.stdout.strip()}")
