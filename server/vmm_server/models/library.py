"""`library.toml`: many models that can be pulled by name, one line a tag. Each line says no more than a card does.

A table `[[model]]` holds what its tags share; a tag's own word wins.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmm_adapters.card import Capability, CardSource, EmbeddingRecipe, InvalidCard, ModelCard, SamplingDefaults

FILE = "library.toml"
_HINT = "see model_cards/README.md"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LibraryTag(_Part):
    """One line: `"3b" = { size = "3.2B", uri = "hf:org/repo:Q4_K_M", also = ["latest"] }`."""

    size: str
    uri: str
    also: tuple[str, ...] = ()
    """Other tags that mean the same."""
    license: str | None = None
    family: str | None = None
    context_length: int | None = None
    quantization: str | None = None


class LibraryModel(_Part):
    """What the tags of one name have in common; the fields are a card's."""

    name: str
    title: str
    license: str
    origin: str
    family: str
    context_length: int
    quantization: str = "Q4_K_M"
    capabilities: tuple[Capability, ...] = ("completion",)
    sampling: SamplingDefaults = SamplingDefaults()
    embedding: EmbeddingRecipe | None = None
    tags: Annotated[dict[str, LibraryTag], Field(min_length=1)]

    def cards(self) -> list[ModelCard]:
        """A card a tag. Raises `ValidationError`."""
        return [self._card(name, tag) for name, tag in self.tags.items()]

    def _card(self, name: str, tag: LibraryTag) -> ModelCard:
        return ModelCard(
            id=f"{self.name}:{name}",
            aliases=tuple(f"{self.name}:{other}" for other in tag.also),
            title=f"{self.title} {tag.size}",
            license=tag.license or self.license,
            origin=self.origin,
            source=CardSource(uri=tag.uri),
            family=tag.family or self.family,
            parameter_size=tag.size,
            quantization=tag.quantization or self.quantization,
            context_length=tag.context_length or self.context_length,
            capabilities=self.capabilities,
            sampling=self.sampling,
            embedding=self.embedding,
        )


class _Library(_Part):
    model: tuple[LibraryModel, ...]


def read_library(path: Path) -> tuple[ModelCard, ...]:
    """The cards of the file's lines. Raises `InvalidCard` naming the file, the field and what was expected."""
    try:
        with path.open("rb") as file:
            library = _Library.model_validate(tomllib.load(file))
        return tuple(card for model in library.model for card in model.cards())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidCard(f"{path}: {field}: {first['msg']} (got {first['input']!r:.80})", hint=_HINT) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidCard(f"{path}: {error}", hint=_HINT) from error
