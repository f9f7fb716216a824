"""Names → models: what is installed, and which cards could be."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import vmm_server
from vmm_adapters.card import InvalidCard, ModelCard, read_card
from vmm_server.errors import InvalidModelName, ModelNotFound, SettingsError
from vmm_server.models.library import FILE as LIBRARY_FILE
from vmm_server.models.library import read_library
from vmm_server.models.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName, ModelReference
from vmm_server.models.store import InstalledModel, Store

__all__ = ["ModelName", "Registry", "built_in_cards_dir", "read_cards"]

HUB_HOSTS = ("hf.co", "huggingface.co")
"""`hf.co/org/repo:Q4_K_M` is how Ollama's users write `hf:org/repo:Q4_K_M`."""
_ANYTHING_ELSE = "any GGUF repository is pulled as hf.co/org/repo[:Q4_K_M], a file as file:./my.gguf"


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
            for card, keys in _read(path):
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
        """The installed model of this name: its own name first, then aliases. `name@sha256:…` is that content or none.

        Raises `InvalidModelName`, or `ModelNotFound` with what to do.
        """
        wanted = ModelReference.parse(name)
        model = self._find(wanted.name)
        if model is None:
            raise ModelNotFound(name, hint=self.suggest(wanted.name))
        if wanted.digest not in (None, model.digest):
            raise ModelNotFound(name, hint=f"{model.name} is installed with sha256:{model.digest}")
        return model

    def installed(self) -> list[InstalledModel]:
        """Every installed model, newest first."""
        return self._store.installed()

    def find_card(self, name: str) -> ModelCard | None:
        """The card whose id or alias this is. Raises `InvalidModelName`."""
        return self._cards.get(ModelReference.parse(name).name.key)

    def copy(self, source: str, destination: str) -> None:
        """Install a model under a second name, in place of what has it. Raises as `resolve` does, and `StoreError`."""
        target = ModelName.parse(destination)
        if not self._store.copy(ModelName.parse(self.resolve(source).name), target):
            raise ModelNotFound(source)  # removed in this moment

    def remove(self, name: str) -> None:
        """Uninstall, also what cannot be read any more. Raises `InvalidModelName`, `ModelNotFound`, `StoreError`."""
        wanted = ModelReference.parse(name)
        if wanted.digest or not self._store.remove(wanted.name):
            self._store.remove(ModelName.parse(self.resolve(name).name))

    def suggest(self, wanted: ModelName) -> str:
        """One line of help for a name that is not installed."""
        if wanted.key in self._cards or wanted.host.lower() in HUB_HOSTS:
            return f"vmm pull {wanted}"
        if wanted.host != DEFAULT_HOST:
            return f"{wanted.host} is not asked for models; {_ANYTHING_ELSE}"
        known = sorted({model.name for model in self.installed()} | {card.id for card in self.cards})
        models = {name: str(ModelName.parse(name)).rpartition(":")[0].lower() for name in known}
        asked = str(wanted).rpartition(":")[0].lower()
        if tags := [name for name in known if models[name] == asked]:
            return f"there is {', '.join(tags)}"
        similar = difflib.get_close_matches(asked, sorted(set(models.values())), n=3, cutoff=0.7)
        if close := [name for model in similar for name in known if models[name] == model]:
            return f"did you mean {' or '.join(close[:3])}?"
        if wanted.namespace != DEFAULT_NAMESPACE:
            return f"if that is a repository of the hub: vmm pull {HUB_HOSTS[0]}/{str(wanted).removesuffix(':latest')}"
        return f"names that can be pulled are in `vmm list --available`; {_ANYTHING_ELSE}"

    def _find(self, wanted: ModelName) -> InstalledModel | None:
        if manifest := self._store.manifest(wanted):
            return manifest.model
        for model in self._store.installed():
            if wanted.key in (ModelName.parse(alias).key for alias in model.aliases):
                return model
        card = self._cards.get(wanted.key)
        if card is None:
            return None
        if manifest := self._store.manifest(ModelName.parse(card.id)):
            return manifest.model
        for alias in card.aliases:  # pulled under another of the card's names
            manifest = self._store.manifest(ModelName.parse(alias))
            if manifest and manifest.model.source == card.source.uri and manifest.model.parent is None:
                return manifest.model
        return None


def _read(path: Path) -> list[tuple[ModelCard, list[str]]]:
    """The cards of one file, with the keys of their names."""
    try:
        cards = read_library(path) if path.name == LIBRARY_FILE else (read_card(path),)
        return [(card, _keys(card)) for card in cards]
    except InvalidCard as error:
        raise SettingsError(error.message, param="card_dirs", hint=error.hint) from error
    except InvalidModelName as error:
        message = f"{path}: id or aliases: {error.hint}"
        raise SettingsError(message, param="card_dirs", hint="see model_cards/README.md") from error


def _keys(card: ModelCard) -> list[str]:
    return [ModelName.parse(name).key for name in (card.id, *card.aliases)]
