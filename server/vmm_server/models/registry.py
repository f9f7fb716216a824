"""Names → models: what is installed, and which cards could be."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import vmm_server
from vmm_adapters.card import InvalidCard, ModelCard, read_card
from vmm_server.errors import InvalidModelName, ModelNotFound, SettingsError
from vmm_server.models.names import ModelName
from vmm_server.models.store import InstalledModel, Store

__all__ = ["ModelName", "Registry", "built_in_cards_dir", "read_cards"]


def built_in_cards_dir() -> Path:
    """`model_cards` as a wheel installs it, else as it lies in a checkout."""
    package = Path(vmm_server.__file__).resolve().parent
    installed = package / "model_cards"
    return installed if installed.is_dir() else package.parents[1] / "model_cards"


def read_cards(card_dirs: Iterable[Path]) -> tuple[ModelCard, ...]:
    """The cards of these folders, then the built-in ones; the first card of a name or alias wins.

    Raises `SettingsError` naming file and field when a card is wrong, a folder is missing, or two cards of one
    folder claim the same name.
    """
    cards: dict[str, ModelCard] = {}
    for folder in (*card_dirs, built_in_cards_dir()):
        if not folder.is_dir():
            raise SettingsError(f"card_dirs: {folder} is not a folder", param="card_dirs")
        claimed: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.toml")):
            card, keys = _read(path)
            for key in keys:
                if key in claimed:
                    message = f"{path}: the name {key} is already taken by {claimed[key]}"
                    raise SettingsError(message, param="card_dirs", hint="rename one of the two")
                claimed[key] = path
                cards.setdefault(key, card)
    return tuple({id(card): card for card in cards.values()}.values())


class Registry:
    """What the store holds and the cards offer, by name."""

    def __init__(self, store: Store, cards: Sequence[ModelCard] = ()) -> None:
        self._store = store
        self.cards = tuple(cards)
        self._cards = {key: card for card in reversed(self.cards) for key in _keys(card)}

    def resolve(self, name: str) -> InstalledModel:
        """The installed model of this name: its own name first, then aliases.

        Raises `InvalidModelName`, or `ModelNotFound` with what to do.
        """
        wanted = ModelName.parse(name)
        if manifest := self._store.manifest(wanted):
            return manifest.model
        for model in self._store.installed():
            if wanted.key in (ModelName.parse(alias).key for alias in model.aliases):
                return model
        card = self._cards.get(wanted.key)
        if card and (manifest := self._store.manifest(ModelName.parse(card.id))):
            return manifest.model
        raise ModelNotFound(name, hint=self.suggest(wanted))

    def installed(self) -> list[InstalledModel]:
        """Every installed model, newest first."""
        return self._store.installed()

    def find_card(self, name: str) -> ModelCard | None:
        """The card whose id or alias this is. Raises `InvalidModelName`."""
        return self._cards.get(ModelName.parse(name).key)

    def remove(self, name: str) -> None:
        """Uninstall, also what cannot be read any more. Raises `InvalidModelName`, `ModelNotFound`, `StoreError`."""
        if not self._store.remove(ModelName.parse(name)):
            self._store.remove(ModelName.parse(self.resolve(name).name))

    def suggest(self, wanted: ModelName) -> str:
        """One line of help for a name that is not installed."""
        if wanted.key in self._cards:
            return f"vmm pull {wanted}"
        known = sorted({model.name for model in self.installed()} | {card.id for card in self.cards})
        models = {name: ModelName.parse(name).model.lower() for name in known}
        similar = difflib.get_close_matches(wanted.model.lower(), set(models.values()), n=3, cutoff=0.6)
        if close := [name for name in known if models[name] in similar][:3]:
            return f"did you mean {' or '.join(close)}?"
        offered = ", ".join(sorted(card.id for card in self.cards)) or "none"
        return f"models that can be pulled by name: {offered}; others by URI, such as hf:org/repo or file:./my.gguf"


def _read(path: Path) -> tuple[ModelCard, list[str]]:
    try:
        card = read_card(path)
        return card, _keys(card)
    except InvalidCard as error:
        raise SettingsError(error.message, param="card_dirs", hint=error.hint) from error
    except InvalidModelName as error:
        message = f"{path}: id or aliases: {error.hint}"
        raise SettingsError(message, param="card_dirs", hint="see model_cards/README.md") from error


def _keys(card: ModelCard) -> list[str]:
    return [ModelName.parse(name).key for name in (card.id, *card.aliases)]
