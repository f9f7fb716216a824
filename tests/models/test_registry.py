from collections.abc import Callable
from pathlib import Path

import pytest

from vmm_adapters.card import ModelCard
from vmm_server.errors import InvalidModelName, ModelNotFound, SettingsError
from vmm_server.models.names import ModelName
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store

Install = Callable[..., InstalledModel]

CARD = """
id = "{id}"
aliases = [{aliases}]
title = "T"
license = "MIT"
origin = "us"
family = "llama"
parameter_size = "1M"
quantization = "F32"
context_length = 64
{extra}
[source]
uri = "file:/x"
"""


def write_card(folder: Path, id_: str, *aliases: str, extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{id_.replace(':', '-').replace('/', '-')}.toml"
    path.write_text(CARD.format(id=id_, aliases=", ".join(f'"{alias}"' for alias in aliases), extra=extra))
    return path


def cards_of(folder: Path) -> dict[str, ModelCard]:
    return {card.id: card for card in read_cards([folder])}


@pytest.mark.parametrize("name", ["a:1b", "A:1B", "library/a:1b", "registry.ollama.ai/Library/a:1b"])
def test_an_installed_name_in_any_spelling(store: Store, install: Install, name: str) -> None:
    model = install("a:1b")
    assert Registry(store).resolve(name) == model


def test_a_digest_means_that_content_or_none(store: Store, install: Install) -> None:
    model = install("a:1b", digest="0f" * 32)
    registry = Registry(store)
    assert registry.resolve("A:1b@sha256:" + "0F" * 32) == model
    wrong = "a:1b@sha256:" + "ab" * 32
    for verb in (registry.resolve, registry.remove):
        with pytest.raises(ModelNotFound) as caught:
            verb(wrong)
        assert caught.value.message == f"model '{wrong}' not found"
        assert caught.value.hint == "a:1b is installed with sha256:" + "0f" * 32
    registry.remove("a:1b@sha256:" + "0f" * 32)
    assert registry.installed() == []


def test_no_tag_means_latest(store: Store, install: Install) -> None:
    install("a:1b")
    latest = install("a:latest")
    assert Registry(store).resolve("a") == latest


def test_aliases_of_the_installed_model_and_of_its_card(store: Store, install: Install, tmp_path: Path) -> None:
    model = install("a:1b", aliases=("short:latest",))
    write_card(tmp_path / "cards", "a:1b", "late", "org/other:tag")
    registry = Registry(store, read_cards([tmp_path / "cards"]))
    for name in ("short", "SHORT:Latest", "late", "late:latest", "org/other:tag"):
        assert registry.resolve(name) == model


def test_a_card_pulled_under_one_of_its_names_answers_to_the_others(
    store: Store, install: Install, tmp_path: Path
) -> None:
    write_card(tmp_path / "cards", "a:1b", "short", "late")
    registry = Registry(store, read_cards([tmp_path / "cards"]))
    model = install("short:latest", source="file:/x")
    assert registry.resolve("a:1b") == registry.resolve("late") == model
    install("short:latest", source="file:/another")
    with pytest.raises(ModelNotFound):
        registry.resolve("a:1b")


def test_an_exact_name_wins_over_an_alias(store: Store, install: Install) -> None:
    install("a:1b", aliases=("short:latest",))
    exact = install("short:latest", age_s=100)
    assert Registry(store).resolve("short") == exact


def test_of_two_models_with_an_alias_the_newer_answers(store: Store, install: Install) -> None:
    install("old:1", aliases=("short:latest",), age_s=10)
    new = install("new:1", aliases=("short:latest",))
    assert Registry(store).resolve("short") == new


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("known", "vmm pull known:latest"),
        ("installd", "did you mean installed:latest?"),
        ("known:2b", "there is known:1b"),
        ("nothing-like-it-at-all", "hf.co/org/repo[:Q4_K_M]"),
        ("hf.co/org/repo:Q8_0", "vmm pull hf.co/org/repo:Q8_0"),
        ("org/Repo-GGUF", "of the hub: vmm pull hf.co/org/Repo-GGUF"),
        ("org/Repo-GGUF:Q8_0", "of the hub: vmm pull hf.co/org/Repo-GGUF:Q8_0"),
        ("localhost:5000/org/repo", "localhost:5000 is not asked for models"),
    ],
)
def test_an_unknown_name_says_what_to_do(store: Store, install: Install, tmp_path: Path, name: str, hint: str) -> None:
    install("installed:latest")
    write_card(tmp_path / "cards", "known:1b", "known")
    registry = Registry(store, [cards_of(tmp_path / "cards")["known:1b"]])
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve(name)
    assert caught.value.message == f"model '{name}' not found"
    assert hint in (caught.value.hint or "")


def test_a_malformed_name_is_another_error(store: Store) -> None:
    for verb in (Registry(store).resolve, Registry(store).remove, Registry(store).find_card):
        with pytest.raises(InvalidModelName):
            verb("a b")


def test_remove_by_name_and_by_alias(store: Store, install: Install) -> None:
    registry = Registry(store)
    install("a:1b", aliases=("short:latest",), key="a")
    install("b:1b", key="b")
    registry.remove("B:1b")
    registry.remove("short")
    assert registry.installed() == []
    with pytest.raises(ModelNotFound):
        registry.remove("short")


def test_copy_by_name_and_by_alias(store: Store, install: Install) -> None:
    install("a:1b", aliases=("a:latest",))
    registry = Registry(store)
    registry.copy("A", "Mine")
    registry.copy("mine", "host:1/me/other:2")
    assert {model.name for model in registry.installed()} == {"a:1b", "Mine:latest", "host:1/me/other:2"}
    assert registry.resolve("a").name == "a:1b"
    with pytest.raises(ModelNotFound):
        registry.copy("no-such", "b")
    for names in (("a b", "b"), ("a", "b c"), ("a", "b@sha256:" + "0" * 64)):
        with pytest.raises(InvalidModelName):
            registry.copy(*names)


def test_a_damaged_manifest_can_be_removed(store: Store, install: Install) -> None:
    install("a:1b")
    path = store.root / "manifests" / "a@1b.json"
    path.write_bytes(b"{")
    Registry(store).remove("a:1b")
    assert not path.exists()


def test_ones_own_cards_win_over_the_built_in_ones(store: Store, tmp_path: Path) -> None:
    write_card(tmp_path / "cards", "smollm2:135m")
    write_card(tmp_path / "cards", "mine:1b", "smollm2")
    registry = Registry(store, read_cards([tmp_path / "cards"]))
    own = registry.find_card("SmolLM2:135m")
    alias = registry.find_card("smollm2")
    assert own is not None
    assert own.title == "T"
    assert alias is not None
    assert alias.id == "mine:1b"
    assert [card.id for card in registry.cards].count("smollm2:135m") == 1
    assert registry.find_card("unheard-of") is None


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: write_card(folder, "a:1", extra="colour = 3"), "a-1.toml: colour"),
        (lambda folder: write_card(folder, "UPPER:1"), "UPPER-1.toml: id"),
        (lambda folder: write_card(folder, "a:1", "no good"), "a-1.toml: id or aliases: 'no good'"),
        (lambda folder: (folder / "a.toml").write_text("id = "), "a.toml"),
        (lambda folder: (folder / "a.toml").write_bytes(b"\xff"), "a.toml"),
    ],
)
def test_a_broken_card_of_ones_own_stops_the_start(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    (tmp_path / "cards").mkdir()
    write(tmp_path / "cards")
    with pytest.raises(SettingsError) as caught:
        read_cards([tmp_path / "cards"])
    assert words in caught.value.message
    assert caught.value.param == "card_dirs"
    assert caught.value.hint == "see model_cards/README.md"


def test_two_cards_of_one_name_and_a_missing_folder(tmp_path: Path) -> None:
    write_card(tmp_path / "cards", "a:1", "same")
    write_card(tmp_path / "cards", "b:1", "same:latest")
    with pytest.raises(SettingsError, match=r"b-1\.toml: the name same:latest is already taken by .*a-1\.toml"):
        read_cards([tmp_path / "cards"])
    with pytest.raises(SettingsError, match="none is not a folder"):
        read_cards([tmp_path / "none"])


def test_suggestions_are_names(store: Store, install: Install) -> None:
    install("MyModel:latest")
    assert "MyModel:latest" in Registry(store).suggest(ModelName.parse("mymodl"))
