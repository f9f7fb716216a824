"""How the files of a split GGUF model are called: `model-00002-of-00003.gguf` (llama.cpp: `llama_split_path`). Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vmm_server.errors import ImportFailed

_PATTERN = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PartName:
    """The name or path of one part."""

    stem: str
    """What all parts have in common."""
    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> "PartName | None":
        """What a name or path says; `None` for a file that is no part of several."""
        found = _PATTERN.fullmatch(text)
        if not found:
            return None
        part = cls(found[1], int(found[2]), int(found[3]))
        return part if part.count > 1 and 1 <= part.number <= part.count else None

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05}-of-{self.count:05}.gguf"

    @property
    def all(self) -> list[str]:
        """The names of all parts, in order."""
        return [str(replace(self, number=number)) for number in range(1, self.count + 1)]


def all_parts(name: str, there: Iterable[str]) -> list[str]:
    """The names of all parts of what `name` is a part of, in order; of any other file just its own.

    Raises `ImportFailed` naming those that are not `there`.
    """
    part = PartName.parse(name)
    if part is None:
        return [name]
    if missing := sorted(set(part.all) - set(there)):
        raise ImportFailed(
            f"{', '.join(missing[:3])}: {'is' if len(missing) == 1 else 'are'} missing, of {part.count} parts",
            hint="all parts of a split model have to lie side by side",
        )
    return part.all


def all_part_paths(path: Path) -> list[Path]:
    """The files that make one model with this one, in order. Raises `ImportFailed` naming those that are not there."""
    part = PartName.parse(path.name)
    beside = () if part is None else [name for name in part.all if path.with_name(name).exists()]
    return [path.with_name(name) for name in all_parts(path.name, beside)]


def whole_name(name: str) -> str:
    """The name of a model without what tells its parts apart: `model.gguf`."""
    part = PartName.parse(name)
    return f"{part.stem}.gguf" if part else name
