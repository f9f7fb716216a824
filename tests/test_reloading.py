"""Settings, cards and keys read again: all of them, or none."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vmm_server.errors import SettingsError
from vmm_server.keys import KEYS_FILE, KeyRing
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import Store
from vmm_server.reloading import Reloader
from vmm_server.settings import AT_NEXT_LOAD, AT_ONCE, Changes, LiveSettings, Settings, read_settings

CARD = """id = "mine:1b"
title = "Mine"
license = "MIT"
origin = "a test"
family = "llama"
parameter_size = "1B"
quantization = "Q4_1"
context_length = 512
[source]
uri = "file:/nowhere"
"""


class Running:
    """What a server has that a reload changes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.cards_dir = home / "cards"
        self.cards_dir.mkdir()
        read = partial(read_settings, home=home, card_dirs=str(self.cards_dir), default_model="")
        self.settings = LiveSettings(read(), read)
        self.store = Store(self.settings.now.store_dir)
        self.registry = Registry(self.store, read_cards(self.settings.now.card_dirs))
        self.keys = KeyRing(home / KEYS_FILE)
        self.reloader = Reloader(self.settings, self.registry, self.keys)
        self.told: list[Changes] = []
        self.reloader.on_change(self.told.append)

    def write(self, toml: str) -> None:
        (self.home / "vmm.toml").write_text(toml)

    def reload(self) -> Any:
        return asyncio.run(self.reloader.reload())

    @property
    def state(self) -> tuple[object, ...]:
        return self.settings.now, self.registry.cards, self.keys.keys


@pytest.fixture
def running(tmp_path: Path, no_environment: None) -> Running:
    return Running(tmp_path / "home")


def test_what_can_change_changes_and_the_rest_is_named(running: Running) -> None:
    running.write('keep_alive = "1h"\nmax_sequences = 7\nport = 1234\nimage_urls = "off"')
    reloaded = running.reload()
    now = running.settings.now
    assert (now.keep_alive.seconds, now.max_sequences, now.image_urls) == (3600.0, 7, "off")
    assert now.port == Settings.model_fields["port"].default
    assert {*reloaded.changes.at_once} == {"keep_alive", "image_urls"}
    assert reloaded.changes.at_next_load == ("max_sequences",)
    assert reloaded.changes.at_restart == ("port",)
    assert running.told == [reloaded.changes]
    assert running.reload().changes == Changes(at_restart=("port",)), "told as long as it is so"


def test_cards_and_keys_are_read_again(running: Running) -> None:
    (running.cards_dir / "mine.toml").write_text(CARD)
    secret = KeyRing(running.home / KEYS_FILE).create("someone")[1]
    assert running.registry.find_card("mine:1b") is None
    reloaded = running.reload()
    assert running.registry.find_card("mine:1b") is not None
    assert running.keys.find(secret) is not None
    assert (reloaded.num_keys, reloaded.num_cards) == (1, len(running.registry.cards))


def break_settings(running: Running) -> str:
    running.write("max_queue = -1")
    return "vmm.toml: setting max_queue:"


def break_toml(running: Running) -> str:
    running.write("max_queue = ")
    return "vmm.toml: "


def break_card(running: Running) -> str:
    (running.cards_dir / "bad.toml").write_text(CARD.replace('family = "llama"', "family = 3"))
    return "bad.toml: family"


def break_keys(running: Running) -> str:
    (running.home / KEYS_FILE).write_text("[[keys]]\nid = 3\n")
    return "keys.toml"


def miss_default_model(running: Running) -> str:
    running.settings.read = lambda: running.settings.now.model_copy(update={"default_model": "nobody"})
    return "setting default_model: model 'nobody' not found"


@pytest.mark.parametrize("broken", [break_settings, break_toml, break_card, break_keys, miss_default_model])
def test_one_broken_file_leaves_everything_as_it_was(running: Running, broken: Callable[[Running], str]) -> None:
    running.write("max_queue = 3")
    (running.cards_dir / "mine.toml").write_text(CARD)
    KeyRing(running.home / KEYS_FILE).create("someone")
    words, before = broken(running), running.state
    with pytest.raises(SettingsError) as caught:
        running.reload()
    assert words in caught.value.message
    assert running.state == before
    assert running.told == []


def test_every_setting_that_can_change_is_one() -> None:
    assert not AT_ONCE & AT_NEXT_LOAD
    assert {*Settings.model_fields} >= AT_ONCE | AT_NEXT_LOAD
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text("utf-8")
    for names, when in ((AT_ONCE, "at once"), (AT_NEXT_LOAD, "for models that are loaded from then on")):
        listed = ", ".join(f"`{name}`" for name in Settings.model_fields if name in names)
        assert f"| {listed} | {when} |" in page
    places = ("home", "models_dir", "host", "port", "tls_certificate", "tls_key", "allow_anonymous")
    assert not {*places} & (AT_ONCE | AT_NEXT_LOAD)
