"""Model names, as Ollama spells them: `[host/][namespace/]model[:tag]` (Ollama's types/model/name.go).

Names are compared without regard to case and keep the case they were written in. A *reference* is a name that may
insist on a content: `name@sha256:<hex>`.
"""

import hashlib
import re
from dataclasses import dataclass

from vmm_server.errors import InvalidModelName

DEFAULT_HOST = "registry.ollama.ai"
"""What Ollama's clients write when they spell a name out in full; never contacted."""
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_STEM_LENGTH = 200
"""Of a file's name; file systems stop at 255 bytes."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole name; `str()` is the shortest form that means the same, always with its tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read a name and fill in what was left out; `https://` before a host is dropped. Raises `InvalidModelName`."""
        path, tag = text, DEFAULT_TAG
        colon = text.rfind(":")
        if colon > text.rfind("/"):
            path, tag = text[:colon], text[colon + 1 :]
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
        return cls(host, namespace, model, tag)

    def __str__(self) -> str:
        name = f"{self.model}:{self.tag}"
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
    def file_stem(self) -> str:
        """The key as a file name, another for every key: `+` and `@` cannot occur in a name.

        One too long for a file ends in its sha256 and is longer than all that are written out.
        """
        stem = self.key.replace("/", "+").replace(":", "@")
        if len(stem) <= MAX_STEM_LENGTH:
            return stem
        return f"{stem[: MAX_STEM_LENGTH - 50]}@{hashlib.sha256(stem.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A name, and the content it must have."""

    name: ModelName
    digest: str | None
    """64 hex digits; `None`: whatever is installed under the name."""

    @classmethod
    def parse(cls, text: str) -> "ModelReference":
        """Read `name` or `name@sha256:<64 hex digits>`. Raises `InvalidModelName`."""
        path, at, told = text.partition("@")
        digest = _DIGEST.fullmatch(told)
        if at and not digest:
            raise InvalidModelName(text)
        return cls(ModelName.parse(path), digest[1].lower() if digest else None)

    def __str__(self) -> str:
        return f"{self.name}@sha256:{self.digest}" if self.digest else str(self.name)


def derive_name(text: str) -> ModelName:
    """A name for something that has none: a file's stem or a folder's name, lower-cased, tag `latest`.

    Raises `InvalidModelName` when nothing usable is left.
    """
    words = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.")
    return ModelName.parse(re.sub(r"-{2,}", "-", words)[:80])
