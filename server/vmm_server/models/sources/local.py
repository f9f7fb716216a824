"""`file:<path>`: a GGUF file, or a genai ONNX or OpenVINO folder that is used where it lies."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote

from vmm_server.errors import SourceError, SourceNotFound
from vmm_server.models.importers.gguf_parts import all_part_paths, whole_name
from vmm_server.models.sources.base import Listing, SourceFile, Transfer, invalid_uri


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A path on this machine."""

    uri: str
    path: Path

    @classmethod
    def parse(cls, uri: str) -> "LocalSource":
        """`file:/a`, `file:///a` and, relative to the working directory, `file:./a`. Raises `InvalidRequest`."""
        text = uri.removeprefix("file:")
        if text.startswith("//"):
            host, slash, rest = text[2:].partition("/")
            if host not in ("", "localhost") or not slash:
                raise invalid_uri(uri, "this names another machine")
            text = unquote(f"/{rest}")
        if not text:
            raise invalid_uri(uri, "a path is missing")
        path = Path(text).expanduser().absolute()
        return cls(f"file:{path}", path)

    def look_up(self, transfer: Transfer) -> Listing:
        """Look whether it can be read; its revision is made of sizes and times."""
        try:
            if self.path.is_dir():
                return Listing(self.path.name, _revision(self.path), is_folder=True, local=self.path)
            with self.path.open("rb"):
                name = PurePath(whole_name(self.path.name)).stem
                return Listing(name, _revision(self.path), local=self.path)
        except FileNotFoundError as error:
            raise SourceNotFound(f"{self.path}: no such file or folder", hint="check the path") from error
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}", hint="check its permissions") from error

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Never needed: `look_up` lists no files."""
        raise NotImplementedError


def _revision(path: Path) -> str:
    if path.is_file():
        files, root = all_part_paths(path), path.parent
    else:
        files, root = sorted(found for found in path.rglob("*") if found.is_file()), path
    state = hashlib.sha256()
    for found in files:
        stat = found.stat()
        state.update(f"{found.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"files:{state.hexdigest()}"
