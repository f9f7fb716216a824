"""The unit, as systemd reads it."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "vmm.service"

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    program = tmp_path / "vmm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/vmm/bin/vmm", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (ours, done.returncode) == ([], 0)


def test_it_may_do_little(tmp_path: Path) -> None:
    """0 is safest, 10 has no limits; a unit without any has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", UNIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]
