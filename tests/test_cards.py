"""Every built-in card is right. A card that is not makes the server refuse to start."""

import re
from pathlib import Path

import pytest

from vmm_adapters.card import ModelCard, read_card
from vmm_server.models.importers.gguf_families import FAMILIES
from vmm_server.models.library import FILE, read_library
from vmm_server.models.names import ModelName
from vmm_server.models.registry import built_in_cards_dir, read_cards
from vmm_server.models.sources import RetryPolicy, parse_source
from vmm_server.models.sources.hub import HubSource
from vmm_server.models.sources.hub_files import PREFERRED
from vmm_server.settings import Settings

CARDS = sorted(path for path in built_in_cards_dir().rglob("*.toml") if path.name != FILE)
LIBRARY = read_library(built_in_cards_dir() / FILE)


def test_there_are_cards_and_they_go_together() -> None:
    assert len(read_cards([])) == len(CARDS) + len(LIBRARY) > 50


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card(path: Path) -> None:
    card = read_card(path)
    name = ModelName.parse(card.id)
    assert path.stem == f"{name.model}-{name.tag}".lower()
    assert path.parent.parent == built_in_cards_dir(), "one folder a family of models"
    assert card.source.sha256 or card.source.uri.startswith("hf:"), "weights without a digest"
    assert card.source.size_bytes or card.source.uri.startswith("hf:")
    assert card.license
    assert card.origin.endswith(".")


def test_the_default_model_has_a_card() -> None:
    assert Settings.model_fields["default_model"].default in {card.id for card in read_cards([])}


@pytest.mark.parametrize("card", LIBRARY, ids=lambda card: card.id)
def test_library(card: ModelCard) -> None:
    """A line names one GGUF file of a kind the importer reads, or an encoder's repository."""
    source = parse_source(card.source.uri, RetryPolicy())
    assert isinstance(source, HubSource)
    assert card.origin.endswith(".")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", card.license), "an SPDX expression, LicenseRef-… for what has none"
    assert not {"vision", "rerank"} & {*card.capabilities}
    if card.capabilities == ("embedding",):
        assert source.quantization is None
        assert card.quantization == "F32"
    else:
        assert card.family in FAMILIES
        assert source.quantization == card.quantization
        assert card.quantization in PREFERRED
        assert "completion" in card.capabilities


def test_the_librarys_latest_tags() -> None:
    """A name without a tag is one model, except where a card of its own has it."""
    latest = [
        name for card in read_cards([]) for name in (card.id, *card.aliases) if ":" not in name.removesuffix(":latest")
    ]
    models = {ModelName.parse(card.id).model for card in LIBRARY}
    assert models <= {ModelName.parse(name).model for name in latest}
    assert len(latest) == len(set(latest))
