"""Models made of models and of uploaded files."""

import asyncio
import hashlib
import json
import runpy
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import CardSource, ModelCard, SamplingDefaults
from vmm_server.errors import ImportFailed, InvalidModelName, InvalidRequest, ModelLoadFailed, ModelNotFound, VMMError
from vmm_server.models.building import Importer
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.names import ModelName
from vmm_server.models.pull import IMPORTER, Puller, PullEvent
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel, Store

GGUF = b"GGUF" + bytes(range(256)) * 400
SHA256 = hashlib.sha256(GGUF).hexdigest()
Install = Callable[..., InstalledModel]
MakeCreator = Callable[..., Creator]


@pytest.fixture
def make_creator(store: Store, make_importer: Callable[..., Importer]) -> MakeCreator:
    def make(*cards: ModelCard, importer: Importer | None = None) -> Creator:
        importer = importer or make_importer()
        registry = Registry(store, cards)
        return Creator(store, registry, Puller(store, registry, importer=importer), importer=importer)

    return make


@pytest.fixture
def creator(make_creator: MakeCreator) -> Creator:
    return make_creator()


def put(store: Store, content: bytes) -> str:
    async def sent() -> AsyncIterator[bytes]:
        yield content

    digest = hashlib.sha256(content).hexdigest()
    asyncio.run(store.put_blob(digest, sent()))
    return f"sha256:{digest}"


def create(creator: Creator, name: str, from_: str | None = None, **fields: Any) -> list[PullEvent]:
    async def main() -> list[PullEvent]:
        return [event async for event in creator.create(CreateRequest(name, from_, **fields))]

    return asyncio.run(main())


def statuses(events: list[PullEvent]) -> list[str]:
    found = [event.status for event in events]
    return [status for status, before in zip(found, ["", *found], strict=False) if status != before]


def get(store: Store, name: str) -> InstalledModel:
    manifest = store.manifest(ModelName.parse(name))
    assert manifest is not None
    store.check_files(manifest.model)
    return manifest.model


# From a model


def test_everything_a_modelfile_says_is_put_on_top_of_the_same_weights(
    store: Store, install: Install, creator: Creator
) -> None:
    parent = install("a:latest", aliases=("b:latest",), sampling=SamplingDefaults(temperature=0.2, top_k=5), key="k")
    events = create(
        creator,
        "Me/Child:1",
        "B",
        system="Be brief.",
        template="{{ messages[0].content }}",
        parameters={"temperature": 1, "stop": ["x"], "num_ctx": 48, "num_gpu": 1, "seed": 3},
        messages=(("user", "1"), ("assistant", "one")),
        licenses=("Do what you want.",),
    )
    assert statuses(events) == [f"using existing layer sha256:{parent.weights}", "writing manifest", "success"]
    child = get(store, "me/child:1")
    assert (child.name, child.aliases, child.parent) == ("Me/Child:1", (), "a:latest")
    assert (child.folder, child.weights, child.source) == (parent.folder, parent.weights, parent.source)
    assert child.digest not in (parent.digest, "")
    assert (child.system, child.template) == ("Be brief.", "{{ messages[0].content }}")
    assert child.sampling == SamplingDefaults(temperature=1.0, top_k=5, stop=("x",), seed=3)
    assert child.parameters == {"temperature": 1.0, "stop": ["x"], "num_ctx": 48, "num_gpu": 1, "seed": 3}
    assert (child.num_ctx, child.messages) == (48, (("user", "1"), ("assistant", "one")))
    assert child.license_texts == ("Do what you want.",)
    assert get(store, "a") == parent


def test_what_a_child_leaves_out_it_has_of_its_parent(store: Store, install: Install, creator: Creator) -> None:
    install("a:latest")
    create(
        creator, "b", "a", system="1", parameters={"top_k": 3, "seed": 1}, licenses=("L",), messages=(("user", "x"),)
    )
    create(creator, "c", "b", parameters={"seed": -1}, licenses=("L", "M"))
    parent, child = get(store, "b"), get(store, "c")
    assert (child.system, child.messages) == ("1", (("user", "x"),))
    assert child.sampling == SamplingDefaults(top_k=3)
    assert child.parameters == {"top_k": 3, "seed": -1}
    assert child.license_texts == ("L", "M")
    assert child.parent == "b:latest"
    assert len({get(store, "a").digest, parent.digest, child.digest}) == 3


def test_the_digest_is_of_what_a_model_is_not_of_how_it_came_about(
    store: Store, install: Install, creator: Creator
) -> None:
    install("a:latest")
    create(creator, "b", "a", system="1", parameters={"top_k": 3})
    create(creator, "same", "a", parameters={"top_k": 3.0}, system="1")
    create(creator, "bare", "a")
    create(creator, "other", "a", system="2", parameters={"top_k": 3})
    assert get(store, "b").digest == get(store, "same").digest != get(store, "other").digest
    assert get(store, "bare").digest == get(store, "a").digest


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_model_and_its_child_are_deleted_independently(
    store: Store, install: Install, creator: Creator, order: tuple[str, str]
) -> None:
    install("a:latest", blobs=("1" * 64,))
    create(creator, "b", "a", system="1")
    store.remove(ModelName.parse(order[0]))
    get(store, order[1])
    assert store.blob("1" * 64).exists()
    store.remove(ModelName.parse(order[1]))
    assert list(store.models_dir.iterdir()) == list(store.blobs_dir.iterdir()) == []


def test_a_model_may_be_made_of_itself_and_replaces_what_has_its_name(
    store: Store, install: Install, creator: Creator
) -> None:
    install("a:latest", key="a", system="old")
    install("b:latest", key="b")
    create(creator, "a", "A", system="new")
    create(creator, "b", "a")
    assert (get(store, "a").system, get(store, "b").system) == ("new", "new")
    assert [path.name for path in store.models_dir.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("template", "added"),
    [
        ("{% for tool in tools %}{{ tool }}{% endfor %}", ("tools",)),
        ("{{ .Tools }}{{ range .Messages }}{{ .Content }}{{ end }}", ("tools",)),
        ("{{ range .Messages }}<think>{{ .Thinking }}</think>{{ .Content }}{{ end }}", ("thinking",)),
        ("{{ .Prompt }}<fim>{{ .Suffix }}", ("insert",)),
        ("{{ .Prompt }}", ()),
    ],
)
def test_what_a_template_has_places_for_the_model_can(
    template: str, added: tuple[str, ...], store: Store, install: Install, creator: Creator
) -> None:
    install("a:latest")
    create(creator, "child", "a", template=template)
    assert get(store, "child").capabilities == ("completion", *added)


def test_a_parent_that_is_not_here_is_pulled_first(web: Any, store: Store, make_creator: MakeCreator) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    events = statuses(create(make_creator(card), "child", "tiny", system="Hi"))
    assert events[0] == "pulling manifest"
    assert events[-3:] == [f"using existing layer sha256:{SHA256}", "writing manifest", "success"]
    assert events.count("success") == 1
    assert get(store, "child").parent == get(store, Registry(store, [card]).resolve("tiny").name).name


def test_a_source_may_be_named_instead_of_a_model(web: Any, store: Store, creator: Creator) -> None:
    url = web.serve("/w.gguf", GGUF)
    create(creator, "child", url, system="Hi")
    create(creator, "other", url, system="Ho")
    assert get(store, "child").parent == get(store, "other").parent == "w:latest"
    assert web.ranges() == [None]


def test_a_pull_after_a_creation_under_a_cards_name_brings_the_cards_model(
    web: Any, store: Store, make_creator: MakeCreator
) -> None:
    creator = make_creator(card_for(web.serve("/w.gguf", GGUF)))
    create(creator, "child", "tiny")
    create(creator, "tiny:1k", "child", system="Not as its authors have it.")
    create(creator, "other", "tiny:1k")
    assert get(store, "other").system == "Not as its authors have it."

    async def pull() -> None:
        async for _ in creator._puller.pull("tiny:1k"):
            pass

    asyncio.run(pull())
    assert get(store, "tiny:1k").system is None


def test_a_damaged_parent_is_said(store: Store, install: Install, creator: Creator) -> None:
    model = install("a:latest")
    (model.folder / "model.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match="the files of a:latest are not as they were installed"):
        create(creator, "b", "a")
    assert store.manifest(ModelName.parse("b")) is None


def card_for(uri: str) -> ModelCard:
    return ModelCard(
        id="tiny:1k",
        aliases=("tiny",),
        title="Tiny",
        license="MIT",
        origin="us",
        source=CardSource(uri=uri, sha256=SHA256, size_bytes=len(GGUF)),
        family="llama",
        parameter_size="1.0K",
        quantization="Q4_1",
        context_length=64,
    )


# From files


def test_a_gguf_file_becomes_a_model(store: Store, creator: Creator) -> None:
    digest = put(store, GGUF)
    events = create(creator, "m", files={"w.gguf": digest}, system="Hi")
    assert statuses(events) == [
        "parsing GGUF",
        "converting model",
        f"creating new layer {digest}",
        "writing manifest",
        "success",
    ]
    converting = [event for event in events if event.status == "converting model"]
    assert (converting[-1].completed, converting[-1].total) == (len(GGUF), len(GGUF))
    model = get(store, "m")
    assert (model.weights, model.source, model.format, model.system) == (SHA256, "upload:w.gguf", "gguf", "Hi")
    assert (model.parent, model.license) == (None, "MIT")
    assert (model.folder / "model.onnx").read_bytes() == GGUF
    assert store.blob(SHA256).exists()
    again = statuses(create(creator, "n", files={"a name without an ending": digest}))
    assert f"using existing layer {digest}" in again
    assert get(store, "n").digest == SHA256
    store.remove(ModelName.parse("m"))
    store.remove(ModelName.parse("n"))
    assert list(store.blobs_dir.iterdir()) == list(store.models_dir.iterdir()) == []


def test_several_files_make_a_folder_that_is_run_as_it_is(store: Store, creator: Creator) -> None:
    files = {"genai_config.json": b"{}", "model.onnx": b"onnx", "sub/x.txt": b"x"}
    create(creator, "m", files={path: put(store, content) for path, content in files.items()})
    model = get(store, "m")
    found = {p.relative_to(model.folder).as_posix(): p.read_bytes() for p in model.folder.rglob("*") if p.is_file()}
    assert found == files
    assert model.source == "upload:genai_config.json, model.onnx, sub/x.txt"


def test_safetensors_of_an_unknown_family_are_refused_with_what_to_do(store: Store, make_creator: MakeCreator) -> None:
    config = json.dumps({"model_type": "mamba", "hidden_size": 8}).encode()
    files = {"config.json": put(store, config), "model.safetensors": put(store, b"w")}
    with pytest.raises(ImportFailed, match=r"the uploaded files/config\.json: .*'mamba'") as caught:
        create(make_creator(importer=IMPORTER), "m", files=files)
    assert caught.value.hint is not None
    assert "GGUF" in caught.value.hint
    assert store.installed() == []


def test_what_cannot_be_imported_is_named_by_its_file_name(store: Store, make_creator: MakeCreator) -> None:
    with pytest.raises(ImportFailed, match=r"^w\.gguf: ") as caught:
        create(make_creator(importer=IMPORTER), "m", files={"w.gguf": put(store, GGUF)})
    assert str(store.root) not in caught.value.message


def test_safetensors_of_an_encoder_are_imported(store: Store, make_creator: MakeCreator, tmp_path: Path) -> None:
    encoders = runpy.run_path(str(Path(__file__).parents[1] / "data" / "encoder_reference" / "tiny_encoders.py"))
    folder: Path = encoders["write_encoder"](tmp_path / "repository", encoders["MODELS"]["bert"])
    encoders["write_sentence_transformer"](folder)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): put(store, path.read_bytes()) for path in paths}
    events = create(make_creator(importer=IMPORTER), "m", files=files, parameters={"num_ctx": 8})
    assert statuses(events)[0] == "converting model"
    model = get(store, "m")
    assert (model.capabilities, model.format, model.num_ctx) == (("embedding",), "safetensors", 8)
    assert list(store.blobs_dir.iterdir()) == [], "the folder has all of it"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1": GGUF, "2": GGUF + b"2"}, "2 is no part of the model that 1 is of; a model is made of one"),
        ({"1": GGUF, "README.md": b"?"}, "nothing goes with a GGUF file; leave out README.md"),
    ],
)
def test_one_gguf_a_model(store: Store, creator: Creator, files: dict[str, bytes], message: str) -> None:
    uploaded = {path: put(store, content) for path, content in files.items()}
    with pytest.raises(InvalidRequest, match=message):
        creator.create(CreateRequest("m", files=uploaded))


def test_what_has_no_float_weights_is_not_quantised(store: Store, creator: Creator) -> None:
    with pytest.raises(InvalidRequest, match="only GGUF files and safetensors can be quantized"):
        creator.create(CreateRequest("m", files={"model.onnx": put(store, b"onnx")}, quantize="q8_0"))


# Refused before anything happens

MISSING = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({}, InvalidRequest, "from"),
        ({"from_": "a", "files": {"x": MISSING}}, InvalidRequest, "files"),
        ({"from_": "no-such"}, ModelNotFound, "model"),
        ({"from_": "a b"}, InvalidModelName, "model"),
        ({"from_": "hf:"}, InvalidRequest, "model"),
        ({"name": "a b", "from_": "a"}, InvalidModelName, "model"),
        ({"from_": "a", "adapters": {"x": MISSING}}, InvalidRequest, "adapters"),
        ({"from_": "a", "template": "{% for %}"}, InvalidRequest, "template"),
        ({"from_": "a", "parameters": {"nope": 1}}, InvalidRequest, "parameters.nope"),
        ({"from_": "a", "messages": (("user", ""), ("robot", ""))}, InvalidRequest, "messages[1].role"),
        ({"from_": "a", "quantize": "q4_K_M"}, InvalidRequest, "quantize"),
        ({"from_": "a", "quantize": "q8_0"}, InvalidRequest, "quantize"),
        ({"from_": "encoder", "system": "x"}, InvalidRequest, "system"),
        ({"from_": "encoder", "template": "x"}, InvalidRequest, "template"),
        ({"files": {"x": MISSING}}, InvalidRequest, "files"),
        ({"files": {"x": "md5:1"}}, InvalidRequest, "files.x"),
        ({"files": {"../x": MISSING}}, InvalidRequest, "files"),
        ({"files": {"/x": MISSING}}, InvalidRequest, "files"),
        ({"files": {"a//x": MISSING}}, InvalidRequest, "files"),
        ({"files": {"a\\x": MISSING}}, InvalidRequest, "files"),
        ({"files": {"": MISSING}}, InvalidRequest, "files"),
        ({"files": {"a": MISSING, "a/b": MISSING}}, InvalidRequest, "files"),
        ({"files": {"a" * 256: MISSING}}, InvalidRequest, "files"),
        ({"files": {"adapter_model.safetensors": MISSING}}, InvalidRequest, "files"),
        ({"files": {str(index): MISSING for index in range(1025)}}, InvalidRequest, "files"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_at_once(
    install: Install, creator: Creator, store: Store, fields: dict[str, Any], error: type[VMMError], param: str
) -> None:
    install("a:latest")
    install("encoder:latest", capabilities=("embedding",), key="encoder")
    with pytest.raises(error) as caught:
        creator.create(CreateRequest(**{"name": "m"} | fields))
    assert caught.value.param == param
    assert {model.name for model in store.installed()} == {"a:latest", "encoder:latest"}


def test_parameters_are_for_encoders_too(install: Install, creator: Creator, store: Store) -> None:
    install("encoder:latest", capabilities=("embedding",))
    create(creator, "m", "encoder", parameters={"num_ctx": 256})
    assert get(store, "m").num_ctx == 256


# Several at once, and stopped


def test_of_two_that_create_one_name_the_second_waits(
    store: Store, install: Install, make_creator: MakeCreator
) -> None:
    install("a:latest")
    one, other = make_creator(), make_creator()

    async def main() -> list[list[str]]:
        async def make(creator: Creator, text: str) -> list[str]:
            return [event.status async for event in creator.create(CreateRequest("m", "a", system=text))]

        return await asyncio.gather(*[make(creator, text) for creator in (one, other) for text in "12345"])

    assert all(statuses[-1] == "success" for statuses in asyncio.run(main()))
    assert get(store, "m").system in set("12345")
    assert {model.name for model in store.installed()} == {"a:latest", "m:latest"}


class Hasty(Store):
    """Somebody else deletes the parent just before the child's manifest is written."""

    def install(self, model: InstalledModel, **made_of: Any) -> InstalledModel:
        Store(self.root).remove(ModelName.parse("a"))
        return super().install(model, **made_of)


def test_a_parent_that_is_deleted_meanwhile_leaves_its_files(store: Store, install: Install) -> None:
    install("a:latest", blobs=("1" * 64,))
    hasty = Hasty(store.root)
    registry = Registry(hasty)
    create(Creator(hasty, registry, Puller(hasty, registry)), "b", "a")
    assert [model.name for model in store.installed()] == ["b:latest"]
    get(store, "b")
    assert store.blob("1" * 64).exists()


def test_a_client_that_goes_away_stops_the_import(store: Store, make_creator: MakeCreator) -> None:
    big = b"GGUF" + bytes(8_000_000)
    digest = put(store, big)

    async def main() -> None:
        creator = make_creator()
        async with aclosing(creator.create(CreateRequest("m", files={"w.gguf": digest}))) as events:
            async for event in events:
                if event.completed is not None:
                    break
        await creator.aclose()

    asyncio.run(main())
    assert store.installed() == []
    assert list(store.models_dir.iterdir()) == []


# Quantised


@pytest.fixture
def floats(write_tiny: Callable[..., Path]) -> bytes:
    return write_tiny("llama").read_bytes()


def test_a_file_of_floats_is_quantised(store: Store, make_creator: MakeCreator, floats: bytes) -> None:
    creator = make_creator(importer=IMPORTER)
    digest = put(store, floats)
    events = create(creator, "m", files={"w.gguf": digest}, quantize="Q8_0")
    found = statuses(events)
    assert found[:4] == ["parsing GGUF", "quantizing model to Q8_0", "verifying conversion", "converting model"]
    assert found[-2:] == ["writing manifest", "success"]
    quantizing = [event for event in events if event.status.startswith("quantizing")]
    assert quantizing[-1].completed == quantizing[-1].total
    model, manifest = get(store, "m"), store.manifest(ModelName.parse("m"))
    assert manifest is not None
    assert (model.quantization, model.format) == ("Q8_0", "gguf")
    assert manifest.blobs == (model.weights,)
    assert hashlib.sha256(store.blob(model.weights).read_bytes()).hexdigest() == model.weights
    assert model.weights != digest.removeprefix("sha256:")
    assert not list(store.blobs_dir.glob("*.partial"))


def test_an_installed_model_of_floats_is_quantised_and_keeps_what_is_on_top(
    store: Store, make_creator: MakeCreator, floats: bytes
) -> None:
    creator = make_creator(importer=IMPORTER)
    create(creator, "a", files={"w.gguf": put(store, floats)}, system="Hi")
    create(creator, "b", "a", quantize="q4_0", parameters={"seed": 1})
    parent, child = get(store, "a"), get(store, "b")
    assert (child.quantization, child.system, child.parent) == ("Q4_0", "Hi", "a:latest")
    assert child.weights != parent.weights
    assert child.size_bytes < parent.size_bytes / 2
    create(creator, "bare", files={"w.gguf": put(store, floats)}, quantize="q4_0")
    assert len({get(store, name).digest for name in ("a", "b", "bare")} | {child.weights, parent.weights}) == 4
    with pytest.raises(InvalidRequest, match="b:latest is Q4_0 already"):
        creator.create(CreateRequest("c", "b", quantize="q8_0"))


def test_a_file_that_is_gone_cannot_be_quantised(store: Store, make_creator: MakeCreator, floats: bytes) -> None:
    creator = make_creator(importer=IMPORTER)
    create(creator, "a", files={"w.gguf": put(store, floats)})
    store.blob(get(store, "a").weights).unlink()
    with pytest.raises(InvalidRequest, match="the file that a:latest was made of is gone"):
        create(creator, "b", "a", quantize="q4_0")


def test_a_quantised_file_is_not_quantised_again(
    store: Store, make_creator: MakeCreator, write_tiny: Callable[..., Path]
) -> None:
    digest = put(store, write_tiny("llama", quantization="Q8_0").read_bytes())
    with pytest.raises(InvalidRequest, match="has Q8_0 weights already"):
        create(make_creator(importer=IMPORTER), "m", files={"w": digest}, quantize="q4_0")
    assert store.installed() == []
