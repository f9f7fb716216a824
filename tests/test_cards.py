"""Every built-in card is right. A card that is not makes the server refuse to start."""

from pathlib import Path

import pytest

from vmm_adapters.card import read_card
from vmm_server.models.names import ModelName
from vmm_server.models.registry import built_in_cards_dir, read_cards
from vmm_server.settings import Settings

CARDS = sorted(built_in_cards_dir().rglob("*.toml"))


def test_there_are_cards_and_they_go_together() -> None:
    assert len(read_cards([])) == len(CARDS) > 0


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
