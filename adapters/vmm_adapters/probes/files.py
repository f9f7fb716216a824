"""Files of `/proc` and `/sys`: any of them may be missing."""

from pathlib import Path


def read_text(path: Path) -> str:
    """A file's text; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
