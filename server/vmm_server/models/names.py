"""Model names, as Ollama spells them: `[host/][namespace/]model[:tag]` (Ollama's types/model/name.go).

Names are compared without regard to case and keep the case they were written in.
"""

import re
from dataclasses import dataclass

from vmm_server.errors import InvalidModelName

DEFAULT_HOST = "registry.ollama.ai"
"""What Ollama's clients write when they spell a name out in full; never contacted."""
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_LENGTH = 200
"""Of the whole name: it becomes a file name, and file systems stop at 255 bytes."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole name; `str()` is the shortest form that means the same, always with its tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read a name and fill in what was left out. Raises `InvalidModelName`."""
        path, tag = text, DEFAULT_TAG
        colon = text.rfind(":")
        if colon > text.rfind("/"):
            path, tag = text[:colon], text[colon + 1 :]
        parts = path.split("/")
        if len(parts) > 3 or len(text) > MAX_LENGTH:
            raise InvalidModelName(text)
        model = parts[-1]
        namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
        host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
        rules = ((_HOST, host), (_NAMESPACE, namespace), (_PART, model), (_PART, tag))
        if not all(rule.fullmatch(part) for rule, part in rules):
            raise InvalidModelName(text)
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
        """The key as a file name; `+` and `@` cannot occur in a name, so it is unambiguous."""
        return self.key.replace("/", "+").replace(":", "@")


def derive_name(text: str) -> ModelName:
    """A name for something that has none: a file's stem or a folder's name, lower-cased, tag `latest`.

    Raises `InvalidModelName` when nothing usable is left.
    """
    words = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.")
    return ModelName.parse(re.sub(r"-{2,}", "-", words)[:80])
