"""Pictures by their paths in a message, as Ollama's chat takes them.

A path begins with `/`, `./`, `../`, `~/`, a backslash or a drive, ends like a picture's name, and may hold spaces, bare
or escaped as a shell or a file manager writes them. What leads to no file is text.
"""

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vmm_server.errors import InvalidRequest

MAX_IMAGE_BYTES = 100 * 1000**2
_MAX_PATH = 4096

_BEGINNING = re.compile(r"(?<![^\s'\"`(\[<])(?:[a-zA-Z]:)?(?:~/|\.{0,2}/|\\)")
_ENDING = re.compile(r"\.(?:jpe?g|png|webp)\b", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([ ()\[\]{}$&;'\"\\*?~])")


def find_images(text: str) -> Iterator[tuple[str, str]]:
    """The paths of pictures that are there: as typed, and as the system knows them."""
    since = 0
    for ending in _ENDING.finditer(text):
        line = text.rfind("\n", 0, ending.start()) + 1
        since = max(since, line, ending.end() - _MAX_PATH)
        for beginning in _BEGINNING.finditer(text, since, ending.start()):  # the longest path first: it may hold spaces
            typed = text[beginning.start() : ending.end()]
            path = os.path.expanduser(_ESCAPED.sub(r"\1", typed))
            if os.path.isfile(path):
                since = ending.end()
                yield typed, path
                break


def take_images(text: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> tuple[str, dict[str, str]]:
    """The text without the paths in it that lead to pictures; and those, path → base64.

    Raises `InvalidRequest` for a file that is no picture, is too large or cannot be read.
    """
    images: dict[str, str] = {}
    left = text
    for typed, path in find_images(text):
        images[path] = _read(path, max_bytes)
        for quoted in (f"'{typed}'", f'"{typed}"', typed):
            left = left.replace(quoted, "")
    return (left.strip() if images else text), images


def _read(path: str, max_bytes: int) -> str:
    try:
        if (size := os.path.getsize(path)) > max_bytes:
            raise InvalidRequest(f"{path} has {size} bytes; {max_bytes} is the most", param="images")
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", param="images") from error
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not (data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or is_webp):
        raise InvalidRequest(f"{path} is not a JPEG, PNG or WebP image", param="images")
    return base64.b64encode(data).decode()
