"""Names → models: what is installed, and which cards could be."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import vmm_server
from vmm_adapters.card import InvalidCard, ModelCard, read_card
from vmm_server.errors import InvalidModelName, InvalidRequest, ModelArriving, ModelNotFound, SettingsError
from vmm_server.models.library import FILE as LIBRARY_FILE
from vmm_server.models.library import read_library
from vmm_server.models.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName, ModelReference, is_version
from vmm_server.models.releases import Release, check_shares
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.turns import Conversation, Turns

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
        self._turns = Turns()
        self._arriving: ModelName | None = None
        self.use_cards(cards)

    def use_cards(self, cards: Sequence[ModelCard]) -> None:
        """Offer these from now on."""
        self.cards = tuple(cards)
        self._cards = {key: card for card in reversed(self.cards) for key in _keys(card)}

    @contextmanager
    def arriving(self, name: str) -> Iterator[None]:
        """While a model is fetched that the server is to have: until it is there, it is no unknown name."""
        self._arriving = self._plain(ModelReference.parse(name).name)
        try:
            yield
        finally:
            self._arriving = None

    def resolve(self, name: str) -> InstalledModel:
        """What this name means: the model that most of its requests go to, where it is released; else the installed
        model of this name, or of this alias. `name@sha256:…` is that content or none.

        Raises `InvalidModelName`, or `ModelNotFound` with what to do.
        """
        return self._resolve(name, lambda release: release.main)

    def choose(self, name: str, conversation: Callable[[], Conversation | None] = lambda: None) -> InstalledModel:
        """The model for one request: as `resolve`, but each model of a release has its turn. On the event loop."""
        return self._resolve(name, lambda release: self._turns.take(release, conversation))

    def meant(self, name: str) -> list[InstalledModel]:
        """Every model that requests for this name may go to. Raises as `resolve` does."""
        release = self.release_of(ModelReference.parse(name).name)
        return [self.resolve(str(model)) for model, _ in release.shares] if release else [self.resolve(name)]

    def installed(self) -> list[InstalledModel]:
        """Every installed model, newest first."""
        return self._store.installed()

    def listed(self) -> list[InstalledModel]:
        """Every name that can be asked for, newest first: what is installed, and releases that go by another name."""
        installed = self.installed()
        known = {model.name.lower() for model in installed}
        released = [
            replace(model, name=str(release.name), aliases=())
            for release in self._store.releases.all().values()
            if release.name.key not in known and (model := self._find(release.main))
        ]
        return sorted((*installed, *released), key=lambda model: model.modified_at, reverse=True)

    def find_card(self, name: str) -> ModelCard | None:
        """The card whose id or alias this is, whatever its version. Raises `InvalidModelName`."""
        return self._cards.get(ModelReference.parse(name).name.plain.key)

    def copy(self, source: str, destination: str) -> None:
        """Install a model under a second name, in place of what has it. Raises as `resolve` does, and `StoreError`."""
        target = ModelName.parse(destination)
        wanted = ModelReference.parse(source)
        model = self._matching(wanted, self._find(wanted.name)) or self.resolve(source)
        if not self._store.copy(ModelName.parse(model.name), target):
            raise ModelNotFound(source)  # removed in this moment

    def remove(self, name: str) -> None:
        """Uninstall, also what cannot be read any more. Raises `InvalidModelName`, `ModelNotFound`, `StoreError`, and
        `InvalidRequest` for a model that a release sends requests to."""
        wanted = ModelReference.parse(name)
        if wanted.digest or not self._store.remove(wanted.name):
            if (model := self._matching(wanted, self._find(wanted.name))) is None:
                raise self._missing(name, wanted)
            self._store.remove(ModelName.parse(model.name))

    def releases(self) -> list[Release]:
        """What is released, by name. Raises `StoreError`."""
        return sorted(self._store.releases.all().values(), key=lambda release: release.name.key)

    def release_of(self, name: ModelName) -> Release | None:
        """The release that a plain name, or an alias of it, goes by. Raises `StoreError`."""
        if name.version or not self._store.releases.all():
            return None
        return self._store.releases.find(name) or self._store.releases.find(self._plain(name))

    def release(self, name: str, shares: Mapping[str, int]) -> Release:
        """Have a plain name mean these versions of it, or any other models, from the next request on.

        Raises `InvalidModelName`, `InvalidRequest` for shares that are not a hundred, `ModelNotFound`, `StoreError`.
        """
        released = self._released_name(name)
        targets = [(self._target(released, model), share) for model, share in shares.items()]
        check_shares(targets)
        release = Release(released, tuple(targets))
        self._store.put_release(release)
        return release

    def clear_release(self, name: str) -> None:
        """Have a plain name mean again what is installed under it. Raises `ModelNotFound` if it is not released."""
        released = self._released_name(name)
        if not self._store.clear_release(released):
            raise not_released(str(released))

    def suggest(self, wanted: ModelName) -> str:
        """One line of help for a name that is not installed."""
        if wanted.key in self._cards or wanted.host.lower() in HUB_HOSTS:
            return f"vmm pull {wanted}"
        if wanted.host != DEFAULT_HOST:
            return f"{wanted.host} is not asked for models; {_ANYTHING_ELSE}"
        known = sorted({model.name for model in self.installed()} | {card.id for card in self.cards})
        models = {name: str(ModelName.parse(name)).rpartition(":")[0].lower() for name in known}
        plain = self._plain(wanted.plain).key
        if wanted.version and (versions := [name for name in known if ModelName.parse(name).plain.key == plain]):
            return f"there is {', '.join(versions)}"
        asked = str(wanted).rpartition(":")[0].lower()
        if tags := [name for name in known if models[name] == asked]:
            return f"there is {', '.join(tags)}"
        similar = difflib.get_close_matches(asked, sorted(set(models.values())), n=3, cutoff=0.7)
        if close := [name for model in similar for name in known if models[name] == model]:
            return f"did you mean {' or '.join(close[:3])}?"
        if wanted.namespace != DEFAULT_NAMESPACE:
            return f"if that is a repository of the hub: vmm pull {HUB_HOSTS[0]}/{str(wanted).removesuffix(':latest')}"
        return f"names that can be pulled are in `vmm list --available`; {_ANYTHING_ELSE}"

    def _resolve(self, name: str, pick: Callable[[Release], ModelName]) -> InstalledModel:
        wanted = ModelReference.parse(name)
        release = self.release_of(wanted.name)
        if release is None:
            found = [self._find(wanted.name)]
        elif wanted.digest:
            found = [self._find(each) for each in (wanted.name, *(model for model, _ in release.shares))]
        else:
            found = [self._find(pick(release))]
        for model in found:
            if self._matching(wanted, model):
                assert model is not None
                return model
        raise self._missing(name, wanted)

    def _matching(self, wanted: ModelReference, model: InstalledModel | None) -> InstalledModel | None:
        return model if model and wanted.digest in (None, model.digest) else None

    def _missing(self, name: str, wanted: ModelReference) -> ModelNotFound:
        if model := self._find(wanted.name):
            return ModelNotFound(name, hint=f"{model.name} is installed with sha256:{model.digest}")
        if release := self.release_of(wanted.name):
            return ModelNotFound(name, hint=f"it is released: {release}; vmm release {release.name} --clear ends that")
        if self._arriving is not None and self._plain(wanted.name).key == self._arriving.key:
            return ModelArriving(name)
        return ModelNotFound(name, hint=self.suggest(wanted.name))

    def _released_name(self, name: str) -> ModelName:
        wanted = ModelReference.parse(name)
        if wanted.name.version or wanted.digest:
            raise InvalidRequest(f"{name}: a plain name is released, one without @", param="name")
        return self._plain(wanted.name)

    def _target(self, released: ModelName, model: str) -> ModelName:
        """A model that a share is for: a version of the name that is released, or any model's name."""
        if is_version(model) and (version := self._find(released.at(model))):
            return ModelName.parse(version.name)
        wanted = ModelReference.parse(model)
        if found := self._matching(wanted, self._find(wanted.name)):
            return ModelName.parse(found.name)
        if is_version(model):
            raise ModelNotFound(str(released.at(model)), hint=self.suggest(released.at(model)))
        raise self._missing(model, wanted)

    def _plain(self, name: ModelName) -> ModelName:
        """The plain name that an alias stands for; any other as it is."""
        if self._store.manifest(name) or self._store.releases.find(name):
            return name
        for model in self._store.installed():
            if name.key in (ModelName.parse(alias).key for alias in model.aliases):
                return ModelName.parse(model.name).plain
        card = self._cards.get(name.key)
        return ModelName.parse(card.id) if card else name

    def _find(self, wanted: ModelName) -> InstalledModel | None:
        """What is installed under a name or an alias, whatever is released."""
        if manifest := self._store.manifest(wanted):
            return manifest.model
        if wanted.version:
            manifest = self._store.manifest(self._plain(wanted.plain).at(wanted.version))
            return manifest.model if manifest else None
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


def not_released(name: str) -> ModelNotFound:
    """For a name that means what is installed under it."""
    return ModelNotFound(name, message=f"{name} is not released", hint="vmm release lists what is")


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
