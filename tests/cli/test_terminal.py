"""`vmm run` at a terminal: a pseudo-terminal types, and reads what is shown."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 30
BRACKETED_PASTE = ("\x1b[200~", "\x1b[201~")


class Terminal:
    """A program at a terminal of 40 columns."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read_until(self, pattern: str) -> str:
        """What is shown up to and with the pattern, without colours and cursor movements."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self._unread).replace("\r", "")
            if found := re.search(pattern, shown):
                self._unread = shown[found.end() :]
                return shown[: found.end()]
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} was not shown in {shown!r}"
            try:
                piece = os.read(self._master, 65536)
            except OSError as error:  # how Linux says that the other side is closed
                raise AssertionError(f"the program ended with {shown!r}") from error
            self._unread += piece.decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path, home: Path) -> Iterator[Terminal]:
    """`vmm run echo` without a server: it embeds one."""
    ours = ("VMM_", "OLLAMA_", "COLUMNS", "LINES")  # the last two, which readline sets, go before the terminal's own
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = [sys.executable, "-m", "vmm_server", "run", "echo", "--home", str(home), "--host", "127.0.0.1:9"]
    terminal = Terminal(command, environment)
    yield terminal
    terminal.close()


def test_a_chat_at_a_terminal(terminal: Terminal, home: Path) -> None:
    terminal.read_until(r">>> .*Send a message")
    terminal.type("Hello there\r")
    terminal.read_until(r"Hello there\n\n.*>>> ")
    terminal.type("/set nohistory\r")
    terminal.read_until(r"Set nohistory\n.*>>> ")
    words = "one two three four five six seven eight nine ten"
    terminal.type(f"{BRACKETED_PASTE[0]}{words}\nlast{BRACKETED_PASTE[1]}\r")
    shown = terminal.read_until(r"last\n\n.*>>> ")
    assert "seven eight\nnine ten\nlast\n" in shown, "a pasted message is one; lines break between words"
    terminal.type("half a line\x03")
    terminal.read_until("leave with /bye or Ctrl-D")
    terminal.type('"""a\r')
    terminal.read_until(r"\n\.\.\.")
    terminal.type('b"""\r')
    terminal.read_until(r"a\nb\n\n.*>>> ")
    terminal.type("\x04")
    assert terminal.process.wait(TIMEOUT_S) == 0
    history = home / "history"
    assert "+Hello there\n" in history.read_text()
    assert words not in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
