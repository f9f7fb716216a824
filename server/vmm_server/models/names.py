"""Model names, as Ollama spells them: `[host/][namespace/]model[:tag]` (Ollama's types/model/name.go); and VMM's own
`name@version`, for several versions of a model side by side.

Names are compared without regard to case and keep the case they were written in. A *reference* is a name that may
insist on a content: `name@sha256:<hex>`.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from vmm_server.errors import InvalidModelName

DEFAULT_HOST = "registry.ollama.ai"
"""What Ollama's clients write when they spell a name out in full; never contacted."""
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_STEM_LENGTH = 200
"""Of a file's name; file systems stop at 255 bytes."""
_MAX_KNOWN = 1024
"""Names that need not be read again: each request brings one."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole name; `str()` is the shortest form that means the same, always with its tag."""

    host: str
    namespace: str
    model: str
    tag: str
    version: str = ""
    """Empty: the model that is called by the plain name."""

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read a name and fill in what was left out; `https://` before a host is dropped. Raises `InvalidModelName`."""
        return _parsed(text)

    def __str__(self) -> str:
        name = f"{self.model}:{self.tag}{f'@{self.version}' if self.version else ''}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{name}"
        return name

    @property
    def key(self) -> str:
        """Equal for names that mean the same model."""
        return str(self).lower()

    @property
    def plain(self) -> "ModelName":
        """The name without its version."""
        return replace(self, version="")

    def at(self, version: str) -> "ModelName":
        """A version of this name; of itself for an empty one."""
        return replace(self, version=version or self.version)

    @property
    def file_stem(self) -> str:
        """The key as a file name, another for every key: `+` cannot occur in a name, nor `@` in one of its parts.

        One too long for a file ends in its sha256 and is longer than all that are written out.
        """
        stem = self.key.replace("/", "+").replace(":", "@")
        if len(stem) <= MAX_STEM_LENGTH:
            return stem
        return f"{stem[: MAX_STEM_LENGTH - 50]}@{hashlib.sha256(stem.encode()).hexdigest()}"


@lru_cache(_MAX_KNOWN)
def _parsed(text: str) -> ModelName:
    path, at, version = text.partition("@")
    if at and not is_version(version):
        raise InvalidModelName(text)
    tag = DEFAULT_TAG
    colon = path.rfind(":")
    if colon > path.rfind("/"):
        path, tag = path[:colon], path[colon + 1 :]
    scheme = _SCHEME.match(path)
    parts = path[scheme.end() if scheme else 0 :].split("/")
    if len(parts) > 3 or (scheme and len(parts) < 3):
        raise InvalidModelName(text)
    model = parts[-1]
    namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
    rules = ((_HOST, host), (_NAMESPACE, namespace), (_PART, model), (_PART, tag))
    if not all(rule.fullmatch(part) for rule, part in rules):
        raise InvalidModelName(text)
    if host.lower() == DEFAULT_HOST:  # what the short form leaves out has one spelling
        host = DEFAULT_HOST
        namespace = DEFAULT_NAMESPACE if namespace.lower() == DEFAULT_NAMESPACE else namespace
    return ModelName(host, namespace, model, tag, version)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A name, and the content it must have."""

    name: ModelName
    digest: str | None
    """64 hex digits; `None`: whatever is installed under the name."""

    @classmethod
    def parse(cls, text: str) -> "ModelReference":
        """Read `name[@version]`, or one with `@sha256:<64 hex digits>` behind it. Raises `InvalidModelName`."""
        path, _, told = text.rpartition("@")
        if digest := _DIGEST.fullmatch(told):
            return cls(ModelName.parse(path), digest[1].lower())
        return cls(ModelName.parse(text), None)

    def __str__(self) -> str:
        return f"{self.name}@sha256:{self.digest}" if self.digest else str(self.name)


def is_version(text: str) -> bool:
    """Whether this can stand behind the `@` of a name."""
    return _VERSION.fullmatch(text) is not None


def derive_name(text: str) -> ModelName:
    """A name for something that has none: a file's stem or a folder's name, lower-cased, tag `latest`.

    Raises `InvalidModelName` when nothing usable is left.
    """
    words = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.")
    return ModelName.parse(re.sub(r"-{2,}", "-", words)[:80])
