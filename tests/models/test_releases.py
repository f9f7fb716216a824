"""What plain names mean: the file, shares, and who gets which turn."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.callers import Caller, caller
from vmm_server.errors import InvalidModelName, InvalidRequest, ModelArriving, ModelNotFound, StoreError
from vmm_server.models.names import ModelName
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.releases import ALL, Release, Releases, check_shares
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.turns import MAX_CONVERSATIONS, Conversation, Turns, conversation_of
from vmm_server.requests import ChatPrompt, GenerateRequest, Message, TextPrompt

Install = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, read_cards(()))


@pytest.fixture
def install(store: Store, tmp_path: Path) -> Install:
    def install(*names: str) -> None:
        for name in names:
            folder = tmp_path / ModelName.parse(name).file_stem
            folder.mkdir(exist_ok=True)
            store.install(_model(name, folder))

    return install


def _model(name: str, folder: Path) -> InstalledModel:
    return InstalledModel(
        name=name,
        aliases=(),
        digest=name.encode().hex().ljust(64, "0"),
        size_bytes=1,
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        adapter="echo",
        folder=folder,
        format="onnx",
        family="echo",
        parameter_size="0",
        quantization="F32",
        context_length=512,
        embedding_length=None,
        capabilities=("completion",),
        license=None,
        title=name,
        system=None,
        sampling=SamplingDefaults(),
        source="file:/echo",
    )


def shares_of(release: Release) -> dict[str, int]:
    return {str(model): share for model, share in release.shares}


def of_shares(*shares: int) -> Release:
    name = ModelName.parse("m")
    return Release(name, tuple((name.at(f"v{index}"), share) for index, share in enumerate(shares)))


def chat(*turns: str, system: str = "", model: str = "m") -> GenerateRequest:
    """Of the user and the assistant in turn."""
    said = [Message("system", system)] if system else []
    said += [Message(("user", "assistant")[index % 2], text) for index, text in enumerate(turns)]
    return GenerateRequest(model, ChatPrompt(tuple(said)), SamplingParams())


def test_versions_are_models_of_their_own(registry: Registry, install: Install) -> None:
    install("m:latest", "m:latest@v1", "m:latest@v2")
    assert [registry.resolve(name).name for name in ("m", "m@v1", "M:Latest@V2")] == [
        "m:latest",
        "m:latest@v1",
        "m:latest@v2",
    ]
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve("m@v3")
    assert caught.value.hint == "there is m:latest, m:latest@v1, m:latest@v2"


def test_a_version_is_found_under_an_alias_of_its_model(registry: Registry, install: Install) -> None:
    install("smollm2:135m@v2")
    assert registry.resolve("smollm2@v2").name == "smollm2:135m@v2"
    with pytest.raises(ModelNotFound):
        registry.resolve("smollm2")


def test_a_release_moves_a_plain_name_and_its_aliases(registry: Registry, install: Install) -> None:
    install("smollm2:135m", "smollm2:135m@v2")
    release = registry.release("smollm2", {"v2": 100})
    assert (str(release.name), shares_of(release)) == ("smollm2:135m", {"smollm2:135m@v2": 100})
    for name in ("smollm2", "smollm2:135m"):
        assert registry.resolve(name).name == registry.choose(name).name == "smollm2:135m@v2"
    registry.clear_release("smollm2")
    assert registry.resolve("smollm2").name == "smollm2:135m"
    with pytest.raises(ModelNotFound, match="is not released"):
        registry.clear_release("smollm2")


def test_a_name_of_its_own_may_mean_any_model(registry: Registry, install: Install) -> None:
    install("m:latest@v1", "other:1b", "v1:latest")
    registry.release("chat", {"m@v1": 60, "other:1b": 40})
    assert [model.name for model in registry.meant("chat")] == ["m:latest@v1", "other:1b"]
    assert [model.name for model in registry.listed()].count("chat:latest") == 1
    assert "chat:latest" not in [model.name for model in registry.installed()]
    release = registry.release("m", {"v1": 100})
    assert shares_of(release) == {"m:latest@v1": 100}, "its own version comes before a model of that name"
    assert shares_of(registry.release("chat", {"v1": 100})) == {"v1:latest": 100}


def test_the_plain_model_may_have_a_share_of_its_own_name(registry: Registry, install: Install) -> None:
    install("m:latest", "m:latest@v2")
    registry.release("m", {"m": 90, "v2": 10})
    assert Counter(registry.choose("m").name for _ in range(100)) == {"m:latest": 90, "m:latest@v2": 10}
    assert registry.resolve("m").name == "m:latest"


@pytest.mark.parametrize(
    ("name", "shares", "kind"),
    [
        ("m", {"v9": 100}, ModelNotFound),
        ("m", {"nobody:7b": 100}, ModelNotFound),
        ("m@v1", {"v1": 100}, InvalidRequest),
        (f"m@sha256:{'0' * 64}", {"v1": 100}, InvalidRequest),
        ("m", {}, InvalidRequest),
        ("m", {"v1": 90}, InvalidRequest),
        ("m", {"v1": 110, "v2": -10}, InvalidRequest),
        ("m", {"v1": 50, "m@v1": 50}, InvalidRequest),
        ("m", {"a/b/c/d": 100}, InvalidModelName),
        ("a b", {"v1": 100}, InvalidModelName),
    ],
)
def test_what_cannot_be_released_changes_nothing(
    registry: Registry, install: Install, name: str, shares: dict[str, int], kind: type[Exception]
) -> None:
    install("m:latest", "m:latest@v1", "m:latest@v2")
    registry.release("m", {"v2": 100})
    with pytest.raises(kind):
        registry.release(name, shares)
    assert [shares_of(release) for release in registry.releases()] == [{"m:latest@v2": 100}]


def test_what_a_release_names_cannot_be_removed(registry: Registry, install: Install) -> None:
    install("m:latest", "m:latest@v1", "m:latest@v2")
    registry.release("m", {"v1": 99, "v2": 1})
    with pytest.raises(InvalidRequest, match=r"m:latest@v2 is released: m:latest → m:latest@v1 99 %, m:latest@v2 1 %"):
        registry.remove("m@v2")
    registry.remove("m")
    assert registry.resolve("m").name == "m:latest@v1", "what a plain name has on disk is not what it means"
    with pytest.raises(ModelNotFound) as caught:
        registry.remove("m")
    assert "vmm release m:latest --clear" in (caught.value.hint or "")
    registry.clear_release("m")
    registry.remove("m@v2")


def test_a_digest_is_looked_for_in_all_that_a_name_may_mean(registry: Registry, install: Install) -> None:
    install("m:latest", "m:latest@v1", "m:latest@v2")
    registry.release("m", {"v1": 90, "v2": 10})
    for name in ("m", "m@v1", "m@v2"):
        full = str(ModelName.parse(name))
        digest = full.encode().hex().ljust(64, "0")
        assert registry.resolve(f"m@sha256:{digest}").name == full
    with pytest.raises(ModelNotFound):
        registry.resolve(f"m@sha256:{'f' * 64}")


def test_a_copy_is_of_the_model_that_has_the_name_else_of_what_it_means(registry: Registry, install: Install) -> None:
    install("m:latest", "m:latest@v1")
    registry.release("m", {"v1": 100})
    registry.release("chat", {"m@v1": 100})
    registry.copy("m", "plain")
    registry.copy("chat", "meant")
    assert registry.resolve("plain").title == "m:latest"
    assert registry.resolve("meant").title == "m:latest@v1"


def test_a_model_that_is_fetched_for_the_start_is_no_unknown_name(registry: Registry) -> None:
    with registry.arriving("smollm2:135m"):
        for name in ("smollm2:135m", "smollm2"):
            with pytest.raises(ModelArriving):
                registry.resolve(name)
        with pytest.raises(ModelNotFound) as other:
            registry.resolve("nobody")
    assert not isinstance(other.value, ModelArriving)
    with pytest.raises(ModelNotFound) as after:
        registry.resolve("smollm2")
    assert not isinstance(after.value, ModelArriving)


def test_another_process_sees_a_release_with_its_next_request(
    registry: Registry, install: Install, store: Store
) -> None:
    install("m:latest", "m:latest@v2")
    other = Registry(Store(store.root))
    assert other.resolve("m").name == "m:latest"
    registry.release("m", {"v2": 100})
    assert other.resolve("m").name == "m:latest@v2"
    registry.clear_release("m")
    assert other.resolve("m").name == "m:latest"


DAMAGES = [
    "",
    "{",
    "[]",
    '{"releases": {"m": {}}}',
    '{"releases": {"m": {"m@v1": 90}}}',
    '{"releases": {"a b": {"m": 100}}}',
]


@pytest.mark.parametrize("text", DAMAGES)
def test_a_damaged_file_changes_nothing_and_is_told(
    registry: Registry, install: Install, store: Store, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    install("m:latest", "m:latest@v2")
    registry.release("m", {"v2": 100})
    store.releases.path.write_text(text)
    assert registry.resolve("m").name == "m:latest@v2"
    assert "cannot be read" in caplog.text
    with pytest.raises(StoreError, match="cannot be read"):
        Registry(Store(store.root)).resolve("m")


@given(st.text() | st.binary().map(lambda content: content.decode("latin-1")) | st.sampled_from(DAMAGES))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("releases", numbered=True)
    (folder / "releases.json").write_text(text, "utf-8")
    try:
        found = Releases(folder).all()
    except StoreError:
        return
    assert all(isinstance(release, Release) for release in found.values())


def test_the_file_is_plain(registry: Registry, install: Install, store: Store) -> None:
    install("m:latest@v1", "m:latest@v2")
    registry.release("m", {"v1": 90, "v2": 10})
    assert json.loads(store.releases.path.read_text()) == {
        "version": 1,
        "releases": {"m:latest": {"m:latest@v1": 90, "m:latest@v2": 10}},
    }


hundreds = st.lists(st.integers(1, 99), min_size=1, max_size=12).map(
    lambda cuts: [
        later - earlier for earlier, later in zip([0, *sorted({*cuts})], [*sorted({*cuts}), ALL], strict=True)
    ]
)


@given(hundreds, st.integers(0, 250))
def test_any_hundred_requests_in_a_row_are_divided_exactly(shares: Sequence[int], first: int) -> None:
    release, turns = of_shares(*shares), Turns()
    went = [turns.take(release, lambda: None) for _ in range(first + 100)]
    assert Counter(went[first:]) == dict(release.shares)


@given(hundreds)
def test_turns_are_spread_evenly(shares: Sequence[int]) -> None:
    release, turns = of_shares(*shares), Turns()
    went: Counter[Any] = Counter()
    for asked in range(1, 101):
        went[turns.take(release, lambda: None)] += 1
        for model, share in release.shares:
            assert abs(went[model] - asked * share / ALL) < len(shares)


def test_shares_that_change_are_dealt_anew() -> None:
    turns = Turns()
    for _ in range(7):
        turns.take(of_shares(90, 10), lambda: None)
    release = of_shares(50, 50)
    assert Counter(turns.take(release, lambda: None) for _ in range(100)) == dict(release.shares)


def test_a_conversation_stays_where_it_began() -> None:
    turns, release = Turns(), of_shares(50, 50)

    def go(*said: str, tenant: str = "") -> ModelName:
        token = caller.set(Caller(tenant))
        try:
            return turns.take(release, lambda: conversation_of(chat(*said, system="Be kind.")))
        finally:
            caller.reset(token)

    began = {text: go(text) for text in ("a", "b", "c", "d", "e")}
    assert len({*began.values()}) == 2
    for _ in range(3):
        for text, went in began.items():
            assert go(text, "answer", "more") == went
    assert len({go("a", "answer", "more", tenant=f"t{index}") for index in range(2)}) == 2, "others begin their own"


def test_requests_that_are_alike_are_divided_while_nothing_is_answered() -> None:
    turns, release = Turns(), of_shares(90, 10)
    went = [turns.take(release, lambda: conversation_of(chat("hello"))) for _ in range(100)]
    assert Counter(went) == dict(release.shares)


def test_a_conversation_moves_on_when_its_model_is_no_longer_released() -> None:
    turns = Turns()
    turns.take(of_shares(100), lambda: Conversation(b"x", begins=True))
    wide = of_shares(1, 99)
    assert turns.take(wide, lambda: Conversation(b"x", begins=True)) == wide.main
    narrow = Release(wide.name, ((wide.name.at("v6"), 1), (wide.name.at("v7"), 99)))
    assert turns.take(narrow, lambda: Conversation(b"x", begins=False)) == narrow.main


def test_what_is_remembered_is_bounded() -> None:
    turns, release = Turns(), of_shares(50, 50)
    first = turns.take(release, lambda: Conversation(b"first", begins=True))
    for index in range(MAX_CONVERSATIONS):
        turns.take(release, lambda index=index: Conversation(str(index).encode(), begins=True))  # type: ignore[misc]
    again = [turns.take(release, lambda: Conversation(b"first", begins=False)) for _ in range(2)]
    assert again[0] == again[1]
    assert first in (model for model, _ in release.shares)


def test_where_there_is_no_choice_nothing_is_asked() -> None:
    def fail() -> Conversation:
        raise AssertionError

    assert Turns().take(of_shares(100), fail) == of_shares(100).main


def test_a_prompt_that_is_no_chat_is_no_conversation() -> None:
    assert conversation_of(GenerateRequest("m", TextPrompt("a"), SamplingParams())) is None
    assert conversation_of(chat("\udc80")) is not None, "whatever JSON can hold"


def test_shares_must_be_a_hundred() -> None:
    check_shares(of_shares(1, 99).shares)
    with pytest.raises(InvalidRequest, match="all together 100"):
        check_shares(of_shares(1, 98).shares)
