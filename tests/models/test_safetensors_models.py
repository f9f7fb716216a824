"""Text models in safetensors from hubs, folders and uploads, through the real importer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest, SourceNotFound, UnsupportedArchitecture
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.facts import FactsReader
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.names import ModelName
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.shown import shown
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.sources.hub_files import choose_files
from vmm_server.models.store import InstalledModel, Store

RETRY = RetryPolicy(attempts=1, first_delay_s=0.0, max_delay_s=0.0)
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
GENERATES = {"config": {"architectures": ["LlamaForCausalLM"]}}
Write = Callable[..., Path]


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def pull(store: Store, reference: str, name: str | None = None) -> InstalledModel:
    async def main() -> None:
        async for _ in Puller(store, Registry(store, ()), retry=RETRY).pull(reference, name=name):
            pass

    asyncio.run(main())
    return store.installed()[0]


def put(store: Store, content: bytes) -> str:
    async def sent() -> AsyncIterator[bytes]:
        yield content

    digest = sha256(content).hexdigest()
    asyncio.run(store.put_blob(digest, sent()))
    return f"sha256:{digest}"


def create(store: Store, name: str, folder: Path, **fields: Any) -> InstalledModel:
    registry = Registry(store, ())
    creator = Creator(store, registry, Puller(store, registry, retry=RETRY))

    async def main() -> None:
        async for _ in creator.create(CreateRequest(name, files=digests, **fields)):
            pass

    digests = {path: put(store, content) for path, content in read(folder).items()}
    asyncio.run(main())
    manifest = store.manifest(ModelName.parse(name))
    assert manifest is not None
    store.check_files(manifest.model)
    return manifest.model


def fetched(web: Any) -> list[str]:
    return [one.path.rpartition("/resolve/")[2].partition("/")[2] for one in web.requests if "/resolve/" in one.path]


# Pulled


def test_a_repository_of_a_text_model(store: Store, hub: Any, web: Any, write_folder: Write) -> None:
    files = read(write_folder("llama", dtype="BF16", shards=2))
    files |= {"README.md": b"about", "original/consolidated.00.pth": b"pickled", "pytorch_model.bin": b"pickled"}
    hub.repo("org/tiny", files, lfs=(".safetensors",), **GENERATES)
    model = pull(store, "hf:org/tiny")
    assert (model.name, model.format, model.family) == ("tiny:latest", "safetensors", "llama")
    assert (model.quantization, model.parameter_size, model.capabilities) == ("BF16", "105K", ("completion",))
    assert (model.folder / "model.onnx.data").is_file()
    assert not [path for path in store.blobs_dir.iterdir() if path.suffix != ".digest"], "the folder has all of it"
    order = list(dict.fromkeys(fetched(web)))
    assert order[0] == "config.json"
    assert order[-3:] == [INDEX, *SHARDS]
    assert set(order) == {*SMALL, INDEX, *SHARDS}


def test_a_quantisation_that_is_asked_for_is_made(store: Store, hub: Any, write_folder: Write) -> None:
    folder = write_folder("llama", dtype="BF16")
    hub.repo("org/tiny", read(folder), lfs=(".safetensors",), **GENERATES)
    model = pull(store, "hf.co/org/tiny:q8_0")
    assert (model.name, model.format, model.quantization) == ("hf.co/org/tiny:q8_0", "safetensors", "Q8_0")
    uploaded = create(store, "m", folder, quantize="Q8_0")
    assert (uploaded.weights, uploaded.folder) == (model.weights, model.folder), "it is the same, however it came"
    assert pull(store, "hf:org/tiny", name="whole").weights != model.weights


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "mamba"}, UnsupportedArchitecture, "the model family 'mamba'"),
        ({"quantization_config": {"quant_method": "awq"}}, ImportFailed, "quantised by awq"),
    ],
)
def test_weights_that_could_not_be_read_are_not_fetched(
    changes: dict[str, object],
    error: type[Exception],
    words: str,
    store: Store,
    hub: Any,
    web: Any,
    write_folder: Write,
) -> None:
    hub.repo("org/tiny", read(write_folder("llama", config=changes)), lfs=(".safetensors",), **GENERATES)
    with pytest.raises(error, match=rf"^hf:org/tiny/config\.json: .*{words}"):
        pull(store, "hf:org/tiny")
    assert "model.safetensors" not in fetched(web)
    assert store.installed() == []


def test_nor_are_those_of_a_model_without_an_end(store: Store, hub: Any, web: Any, write_folder: Write) -> None:
    files = read(write_folder("llama", shards=2)) | {"generation_config.json": b"{}", "tokenizer_config.json": b"{}"}
    hub.repo("org/tiny", files, lfs=(".safetensors",), **GENERATES)
    with pytest.raises(CorruptFile, match=r"^hf:org/tiny: nothing says which token ends an answer"):
        pull(store, "hf:org/tiny")
    assert set(fetched(web)) == {*SMALL, INDEX}


def test_a_folder_on_this_machine(store: Store, write_folder: Write) -> None:
    folder = write_folder("qwen2", shards=2)
    model = pull(store, f"file:{folder}")
    assert (model.name, model.format, model.source) == ("qwen2-folder:latest", "safetensors", f"file:{folder}")
    assert model.folder.is_relative_to(store.models_dir)
    assert pull(store, f"file:{model.folder}", name="again").format == "onnx", "what an import wrote is run as it is"
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CorruptFile, match=r"model-00002-of-00002\.safetensors: is missing"):
        pull(store, f"file:{folder}", name="other")


# Chosen


def choose(paths: list[str], *, generates: bool = True, path: str = "", quantization: str | None = None) -> Any:
    return choose_files("hf:o/r", "o/r", sorted(paths), path=path, quantization=quantization, generates=generates)


@pytest.mark.parametrize("generates", [True, False])
def test_of_a_repository_come_weights_and_what_says_how_to_use_them(generates: bool) -> None:
    more = ["README.md", ".gitattributes", "training_args.bin", "pytorch_model.bin", "consolidated.safetensors"]
    expected = ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"]
    paths, root = choose([*SMALL, *more, INDEX, *SHARDS], generates=generates)
    assert root == ""
    assert paths == [*expected, INDEX, *SHARDS]
    paths, root = choose([*SMALL, *more, "model.safetensors", INDEX, *SHARDS], generates=generates)
    assert paths == [*expected, "model.safetensors"]


def test_safetensors_in_a_folder_of_the_repository() -> None:
    paths, root = choose(["README.md", *(f"sft/{name}" for name in [*SMALL, "model.safetensors"])], path="sft")
    assert root == "sft/"
    assert paths[0] == "sft/config.json"
    assert paths[-1] == "sft/model.safetensors"


@pytest.mark.parametrize("others", [["m-Q4_K_M.gguf"], ["cpu/genai_config.json", "cpu/model.onnx"]])
def test_what_can_be_run_as_it_is_comes_first(others: list[str]) -> None:
    paths, _ = choose([*SMALL, "model.safetensors", *others])
    assert paths == others


def test_a_text_model_with_an_onnx_file_of_another_kind_is_taken_as_safetensors() -> None:
    paths, _ = choose([*SMALL, "model.safetensors", "onnx/model.onnx"])
    assert paths[-1] == "model.safetensors"


def test_a_quantisation_is_fetched_where_it_is_and_made_where_it_can_be() -> None:
    files = [*SMALL, "model.safetensors"]
    assert choose([*files, "m-Q8_0.gguf"], quantization="Q8_0") == (["m-Q8_0.gguf"], None)
    paths, root = choose([*files, "cpu/genai_config.json", "onnx/model.onnx"], quantization="q4_k_m")
    assert (root, paths[-1]) == ("", "model.safetensors")
    for quantization, more, generates in (("Q8_0", ["m-Q4_0.gguf"], True), ("IQ3_M", [], True), ("Q8_0", [], False)):
        with pytest.raises(SourceNotFound, match=f"no GGUF file {quantization} there"):
            choose([*files, *more], quantization=quantization, generates=generates)


def test_parts_that_are_missing_are_known_before_others_are_fetched() -> None:
    with pytest.raises(ImportFailed, match="1 of the 2 parts of its safetensors are there"):
        choose([*SMALL, INDEX, SHARDS[0]])


def test_pickled_weights_are_never_taken() -> None:
    with pytest.raises(ImportFailed, match=r"pytorch_model\.bin is pickled, and is never read") as caught:
        choose([*SMALL, "pytorch_model.bin"])
    assert "safetensors" in (caught.value.hint or "")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_safetensors_alone_say_too_little(missing: str) -> None:
    with pytest.raises(SourceNotFound) as caught:
        choose([*(name for name in SMALL if name != missing), "model.safetensors"])
    assert "config.json and tokenizer.json beside them" in (caught.value.hint or "")


# Created of uploaded files


def test_uploaded_safetensors_make_a_model(store: Store, write_folder: Write) -> None:
    model = create(store, "m", write_folder("gemma3", shards=2), system="Hi", parameters={"num_ctx": 8})
    assert (model.format, model.family, model.quantization) == ("safetensors", "gemma3", "F32")
    assert (model.system, model.num_ctx, model.parent) == ("Hi", 8, None)
    assert list(store.blobs_dir.iterdir()) == [], "the folder has all of it"


def test_uploaded_safetensors_are_quantised_as_gguf_is(
    store: Store, write_folder: Write, write_tiny: Write, tmp_path: Path
) -> None:
    folder = write_folder("qwen3")
    whole, small = create(store, "m", folder), create(store, "s", folder, quantize="Q8_0")
    assert (small.quantization, small.parameter_size) == ("Q8_0", whole.parameter_size)
    assert len({whole.digest, small.digest}) == len({whole.weights, small.weights}) == 2
    assert create(store, "again", folder, quantize="q8_0").folder == small.folder != whole.folder
    (tmp_path / "gguf").mkdir()
    import_gguf(write_tiny("qwen3", quantization="Q8_0"), tmp_path / "gguf")
    sizes = [(path / "model.onnx.data").stat().st_size for path in (tmp_path / "gguf", small.folder, whole.folder)]
    assert sizes[0] == sizes[1] < sizes[2]
    store.remove(ModelName.parse("m"))
    store.check_files(small)


def test_a_folder_that_is_run_as_it_is_cannot_be_quantised(store: Store, write_folder: Write) -> None:
    folder = write_folder("llama")
    (folder / "genai_config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="only GGUF files and safetensors can be quantized"):
        create(store, "m", folder, quantize="q8_0")
    assert store.installed() == []


def test_a_model_that_is_quantised_stays_so(store: Store, write_folder: Write) -> None:
    create(store, "m", write_folder("llama"))
    registry = Registry(store, ())
    creator = Creator(store, registry, Puller(store, registry, retry=RETRY))
    with pytest.raises(InvalidRequest, match="has no GGUF file that could be quantized"):
        creator.create(CreateRequest("n", "m", quantize="q8_0"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", r"^the uploaded files/config\.json"),
        ("config.json", None, "no config.json, which says what they are"),
        ("tokenizer.json", None, r"^the uploaded files: has no tokenizer\.json"),
        ("model.safetensors", b"\x80\x04pickled", r"^the uploaded files/model\.safetensors: is no safetensors file"),
    ],
)
def test_what_is_wrong_with_uploaded_files_is_named(
    name: str, content: bytes | None, words: str, store: Store, write_folder: Write
) -> None:
    folder = write_folder("llama")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ImportFailed, match=words):
        create(store, "m", folder)
    assert store.installed() == []
    assert not [path for path in store.models_dir.iterdir() if path.name.endswith(".partial")]


# Told


def test_what_is_shown_of_them(store: Store, write_folder: Write) -> None:
    model = create(store, "m", write_folder("mistral", dtype="F16"))
    fields = shown(model, FactsReader(store).read(model))
    info: Any = fields["model_info"]
    assert info["general.architecture"] == "llama"
    assert (info["llama.block_count"], info["llama.attention.sliding_window"]) == (3, 6)
    assert (info["llama.context_length"], info["llama.embedding_length"], info["llama.vocab_size"]) == (64, 64, 96)
    assert "for message in messages" in str(fields["template"])
    details: Any = fields["details"]
    assert (details["format"], details["quantization_level"]) == ("safetensors", "F16")
    json.dumps(fields)
    tensors = FactsReader(store).read(model, verbose=True).tensors
    assert any(tensor.type == "FLOAT16" for tensor in tensors)
