"""Precisions of one model: in its manifest, in the store, fetched by a card's word, and made of the model here."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import CardSource, CardVariant, ModelCard
from vmm_adapters.device import DeviceKind
from vmm_server.errors import (
    ImportFailed,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    RequestCancelled,
    StoreError,
    UnsupportedCapability,
)
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.names import ModelName
from vmm_server.models.perplexity import text_windows
from vmm_server.models.placing import variants_of
from vmm_server.models.pull import Puller
from vmm_server.models.quantizing import MAX_RATIO, Made, Progress, Quantizer, Wish, default_text, score_on_cpu
from vmm_server.models.registry import Registry
from vmm_server.models.router import Candidate, Placement, Profile, VariantFiles, order, variant_for
from vmm_server.models.shown import variant_fields
from vmm_server.models.store import InstalledModel, Store, Variant
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.models.variants import check_variant_name, remove_variant, with_variant
from vmm_server.requests import ANYWHERE, Wanted

Install = Callable[..., InstalledModel]
MB = 1 << 20
NAME = ModelName.parse("m")


def variant(store: Store, name: str, content: bytes = b"small", **fields: Any) -> Variant:
    """One with a folder of its own in the store."""
    folder = store.models_dir / f"folder-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    described: dict[str, Any] = {
        "size_bytes": len(content),
        "digest": "d" * 64,
        "format": "onnx",
        "quantization": name,
        "source": "",
    }
    return Variant(name, folder, **described | fields)


def add(store: Store, name: str, **fields: Any) -> InstalledModel:
    made = variant(store, name, **fields)
    return store.set_variants(NAME, lambda now: with_variant(now, now, made))


# In the store


def test_a_manifest_keeps_them_and_an_older_one_has_none(store: Store, install: Install) -> None:
    assert install("m").variants == ()
    model = add(store, "int8", perplexity_ratio=1.01)
    assert [each.name for each in add(store, "int4").variants] == ["int4", "int8"], "by name"
    (read,) = Store(store.root).installed()
    assert read.variants[1] == model.variants[0]
    assert read.folders == {name: store.models_dir / f"folder-{name}" for name in ("int4", "int8")} | {"": read.folder}
    path = store.root / "manifests" / "m@latest.json"
    manifest = json.loads(path.read_text())
    assert manifest["model"]["variants"][1]["folder"] == "models/folder-int8", "the store can be moved"
    del manifest["model"]["variants"]
    for state in manifest["files"]:
        del state["variant"]
    path.write_text(json.dumps(manifest))
    (read,) = Store(store.root).installed()
    assert read.variants == ()


def test_files_are_checked_of_the_variant_that_is_loaded(store: Store, install: Install) -> None:
    install("m")
    model = add(store, "int8")
    for name in ("", "int8"):
        store.check_files(model, name)
    (model.folders["int8"] / "model.onnx").write_bytes(b"other than before")
    store.check_files(model)
    with pytest.raises(ModelLoadFailed, match="has changed since") as caught:
        store.check_files(model, "int8")
    assert caught.value.hint == "vmm rm m --variant int8, and make or pull it again"
    add(store, "int4")
    with pytest.raises(ModelLoadFailed):
        store.check_files(model, "int8")  # what another variant brings does not make this one whole


def test_removed_variants_and_models_leave_no_files(store: Store, install: Install) -> None:
    model = install("m")
    add(store, "int8")
    model = add(store, "int4")
    remove_variant(store, model, "int8")
    assert not (store.models_dir / "folder-int8").exists()
    (model,) = store.installed()
    assert [each.name for each in model.variants] == ["int4"]
    store.check_files(model, "int4")
    with pytest.raises(InvalidRequest, match="has no variant 'int8'; it has: int4"):
        remove_variant(store, model, "int8")
    store.remove(NAME)
    assert not any(store.models_dir.iterdir())


def test_a_copy_keeps_them_as_long_as_it_is_there(store: Store, install: Install) -> None:
    install("m")
    model = add(store, "int8")
    store.copy(NAME, ModelName.parse("copy"))
    store.remove(NAME)
    (copy,) = store.installed()
    assert copy.variants == model.variants
    store.check_files(copy, "int8")
    made = store.install(replace(copy, name="made", parent="copy"))
    store.check_files(made, "int8")
    assert (copy.folders["int8"] / "model.onnx").exists()


def test_one_of_the_same_name_takes_the_place(store: Store, install: Install) -> None:
    install("m")
    add(store, "int8")
    model = add(store, "int8", content=b"another")
    assert [each.size_bytes for each in model.variants] == [len(b"another")]
    store.check_files(model, "int8")
    with pytest.raises(ModelNotFound):
        store.set_variants(ModelName.parse("nobody"), lambda now: ())


def test_a_model_that_was_replaced_meanwhile_gets_none(store: Store, install: Install) -> None:
    before = install("m")
    install("m", digest="cd" * 32)
    made = variant(store, "int8")
    with pytest.raises(ModelNotFound, match="replaced meanwhile"):
        store.set_variants(NAME, lambda now: with_variant(now, before, made))


@pytest.mark.parametrize("name", ["", "original", "auto", "Int8", "a b", "../x", "x" * 33])
def test_names(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_variant_name(name)
    assert check_variant_name("int4-npu.v2") == "int4-npu.v2"


def test_what_adapters_compiled_lies_apart(store: Store, install: Install, tmp_path: Path) -> None:
    install("m")
    model = add(store, "int8")
    assert compiled_dir(tmp_path, model, "int8").parent == compiled_dir(tmp_path, model)
    assert variants_of(model) == (VariantFiles("", 7, "onnx"), VariantFiles("int8", 5, "onnx"))
    assert variant_fields(model.variants[0])["size"] == 5


# Where they run


def on(device: str, kind: DeviceKind, memory: int, **sizes: int) -> list[Candidate]:
    return [
        Candidate(Placement("openvino", device, "" if name == "own" else name), kind, size * MB, size <= memory)
        for name, size in sizes.items()
    ]


@pytest.mark.parametrize(
    ("memory", "chosen"),
    [(9000, ""), (4000, ""), (3999, "int8"), (2000, "int8"), (1999, "int4"), (1000, "int4"), (999, "")],
)
def test_a_device_gets_the_largest_that_fits(memory: int, chosen: str) -> None:
    found = on("CPU", DeviceKind.CPU, memory, int4=1000, own=4000, int8=2000)
    assert order(found, {}, ANYWHERE)[0].variant == chosen
    assert len(order(found, {}, ANYWHERE)) == 3, "the others are tried after it"


def test_what_is_smaller_goes_to_the_gpu_that_it_fits() -> None:
    found = on("CPU", DeviceKind.CPU, 9000, own=4000, int4=1100) + on(
        "GPU.0", DeviceKind.GPU, 2000, own=4000, int4=1100
    )
    assert [str(each) for each in order(found, {}, ANYWHERE)][:2] == ["openvino/GPU.0/int4", "openvino/CPU"]


def test_an_npu_gets_the_smallest_and_a_wish_is_a_wish() -> None:
    found = on("NPU", DeviceKind.NPU, 9000, own=4000, int8=2000, int4=1000)
    assert order(found, {}, Wanted("NPU"))[0].variant == "int4"
    assert [each.variant for each in order(found, {}, Wanted("NPU", variant=""))] == [""]
    assert [each.variant for each in order(found, {}, Wanted("NPU", variant="int8"))] == ["int8"]


def test_a_fast_variant_is_still_not_what_was_asked_for() -> None:
    found = on("CPU", DeviceKind.CPU, 9000, own=4000, int4=1000)
    profiles = {
        each.placement: Profile(speed, speed, 1000, 1, 1) for each, speed in zip(found, (10.0, 99.0), strict=True)
    }
    assert order(found, profiles, ANYWHERE)[0].variant == ""


@given(
    st.dictionaries(st.sampled_from(["own", "int8", "int4", "npu"]), st.integers(1, 100), min_size=1),
    st.integers(0, 120),
    st.sampled_from(DeviceKind),
)
def test_what_fits_goes_before_what_does_not(sizes: dict[str, int], memory: int, kind: DeviceKind) -> None:
    found = on("X", kind, memory, **sizes)
    chosen = next(each for each in found if each.placement.variant == variant_for(found))
    fitting = [each for each in found if each.fits]
    assert chosen.fits or not fitting
    own = next((each for each in found if not each.placement.variant), None)
    if kind is DeviceKind.NPU and fitting:
        assert chosen.size_bytes == min(each.size_bytes for each in fitting)
    elif own in fitting:
        assert chosen == own
    elif fitting:
        assert chosen.size_bytes == max(each.size_bytes for each in fitting)


# Made here


@pytest.fixture
def tiny(store: Store, install: Install, write_tiny: Callable[..., Path]) -> Callable[..., InstalledModel]:
    """`tiny("F16")`: a random decoder with that quantization, installed as `m`."""

    def make(kind: str = "F16", **fields: Any) -> InstalledModel:
        store.prepare()
        folder = store.models_dir / "tiny"
        folder.mkdir()
        import_gguf(write_tiny("llama3", quantization=kind), folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        described: dict[str, Any] = {"adapter": "openvino", "format": "gguf", "quantization": kind, "size_bytes": size}
        return install("m", folder=folder, files={"note.txt": b"a"}, **described | fields)

    return make


class Scored:
    """A judge that finds what it is told, and remembers what it saw."""

    def __init__(self, *perplexities: float) -> None:
        self.perplexities = list(perplexities)
        self.seen: list[set[str]] = []

    def __call__(self, folder: Path, windows: Sequence[Sequence[int]], progress: Progress) -> tuple[float, int]:
        self.seen.append({path.name for path in folder.iterdir()})
        progress(1, 1)
        return self.perplexities.pop(0), 31


def quantize(store: Store, wish: Wish, *perplexities: float, memory: int = 1 << 40, stop: bool = False) -> Made:
    cancelled = Event()
    if stop:
        cancelled.set()
    quantizer = Quantizer(store, memory, Scored(*perplexities))
    return quantizer.quantize(NAME, wish, lambda status, **figures: None, cancelled)


def folders(store: Store) -> set[str]:
    return {path.name for path in store.models_dir.iterdir()}


TEXT = "one two three four five six seven eight nine ten " * 40


def test_it_is_measured_before_and_after_and_kept(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    model = tiny()
    made = quantize(store, Wish("int8", TEXT), 10.0, 10.2)
    assert (made.before, made.after, made.num_tokens) == (10.0, 10.2, 31)
    (installed,) = store.installed()
    (found,) = installed.variants
    assert found == made.variant
    assert (found.name, found.format) == ("int8", "onnx")
    assert found.perplexity_ratio == pytest.approx(1.02)
    assert found.size_bytes == sum(path.stat().st_size for path in found.folder.iterdir()) < model.size_bytes
    names = {path.name for path in found.folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "genai_config.json"} <= names
    again = quantize(store, Wish("int8", TEXT), 10.0, 10.2)
    assert again.variant == found
    store.check_files(installed, "int8")


def test_what_is_much_worse_is_refused_and_leaves_nothing(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny()
    before = folders(store)
    with pytest.raises(InvalidRequest, match=r"perplexity of 11.01, 10.00 as installed: \+10.1 %") as caught:
        quantize(store, Wish("int4", TEXT), 10.0, 10 * MAX_RATIO + 0.01)
    assert caught.value.hint == "--to int8 loses less; --force makes it all the same"
    assert folders(store) == before
    assert store.installed()[0].variants == ()
    assert quantize(store, Wish("int4", TEXT, force=True), 10.0, 20.0).variant.perplexity_ratio == 2.0


def test_what_is_stopped_or_killed_leaves_nothing(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny()
    before = folders(store)
    with pytest.raises(RequestCancelled):
        quantize(store, Wish("int8", TEXT), 10.0, 10.0, stop=True)
    assert folders(store) == before
    made = quantize(store, Wish("int8", TEXT), 10.0, 10.0)
    remove_variant(store, made.model, "int8")
    killed = made.variant.folder.with_name(f"{made.variant.folder.name}.partial")
    killed.mkdir()
    (killed / "model.onnx").write_bytes(b"half")
    store.collect()
    assert folders(store) == before
    killed.mkdir()
    quantize(store, Wish("int8", TEXT), 10.0, 10.0)
    assert folders(store) == {*before, made.variant.folder.name}


@pytest.mark.parametrize("to", ["int4", "int8"])
def test_what_is_small_already_is_refused(to: Any, store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny("Q4_1")
    with pytest.raises(InvalidRequest, match=rf"has 4 bits a weight already \(Q4_1\): {to} makes nothing smaller"):
        quantize(store, Wish(to, TEXT))
    if to == "int8":
        quantize(store, Wish(to, TEXT, force=True), 10.0, 10.0)
    else:
        with pytest.raises(InvalidRequest, match="makes nothing smaller"):
            quantize(store, Wish(to, TEXT, force=True))


def test_what_cannot_be_compared_needs_force(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny()
    with pytest.raises(InvalidRequest, match="cannot be compared with its variant: it takes 0 MB, 0 MB of memory"):
        quantize(store, Wish("int8", TEXT), memory=1000)
    made = quantize(store, Wish("int8", TEXT, force=True), memory=1000)
    assert (made.before, made.variant.perplexity_ratio) == (None, None)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"capabilities": ("embedding",)}, UnsupportedCapability, "only of text models"),
        ({"format": "openvino"}, InvalidRequest, "is OpenVINO IR"),
        ({"adapter": "onnxruntime-genai"}, InvalidRequest, "only onnxruntime-genai runs it"),
    ],
)
def test_what_is_no_onnx_text_model_is_refused(
    fields: dict[str, Any], error: type[InvalidRequest], words: str, store: Store, tiny: Callable[..., InstalledModel]
) -> None:
    tiny(**fields)
    with pytest.raises(error, match=words):
        quantize(store, Wish("int8", TEXT))


def test_there_is_room_or_nothing_is_begun(tmp_path: Path, store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny()
    full = Store(store.root, free_bytes=lambda folder: 1000)
    with pytest.raises(StoreError, match="not enough disk space for m in int8"):
        quantize(full, Wish("int8", TEXT), 10.0)
    with pytest.raises(ModelNotFound):
        Quantizer(store, 1, Scored()).quantize(ModelName.parse("x"), Wish("int8"), lambda *_, **__: None, Event())


def test_a_text_has_to_be_long_enough(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    model = tiny()
    with pytest.raises(InvalidRequest, match=r"text: has .* tokens, at least 64 are needed"):
        quantize(store, Wish("int8", "short"))
    windows = text_windows(read_tokenizer(model), TEXT, 64)
    assert {len(window) for window in windows} == {64}
    assert len(default_text().split()) == pytest.approx(2500, rel=0.02)


@pytest.mark.runtime
def test_a_random_decoder_is_measured_by_the_runtime(store: Store, tiny: Callable[..., InstalledModel]) -> None:
    tiny()
    quantizer = Quantizer(store, 1 << 40, score_on_cpu)
    made = quantizer.quantize(NAME, Wish("int8", TEXT), lambda status, **figures: None, Event())
    assert made.before is not None
    assert made.variant.perplexity_ratio == pytest.approx(1, abs=0.05)
    assert made.num_tokens > 0


# Fetched


def test_a_variant_of_a_card_is_fetched_when_it_is_asked_for(
    store: Store, tmp_path: Path, write_tiny: Callable[..., Path]
) -> None:
    own = write_tiny("llama3", quantization="F16").rename(tmp_path / "own.gguf")
    small = write_tiny("llama3", quantization="Q8_0").rename(tmp_path / "small.gguf")
    other = write_tiny("qwen3", quantization="Q8_0")
    card = ModelCard(
        id="m:latest",
        title="M",
        license="MIT",
        origin="us",
        source=CardSource(uri=f"file:{own}"),
        family="llama",
        parameter_size="1K",
        quantization="F16",
        context_length=64,
        variants=(
            CardVariant(name="int8", quantization="Q8_0", source=CardSource(uri=f"file:{small}")),
            CardVariant(name="wrong", quantization="Q8_0", source=CardSource(uri=f"file:{other}")),
        ),
    )

    async def pull(variant: str | None) -> list[str]:
        puller = Puller(store, Registry(store, [card]))
        async with aclosing(puller.pull("m", variant=variant)) as events:
            return [event.status async for event in events]

    asyncio.run(pull(None))
    assert store.installed()[0].variants == ()
    assert asyncio.run(pull("int8"))[-1] == "success"
    (model,) = store.installed()
    (found,) = model.variants
    assert (found.name, found.quantization, found.source) == ("int8", "Q8_0", f"file:{small}")
    assert found.size_bytes < model.size_bytes
    assert "pulling variant int8" not in asyncio.run(pull("int8")), "it is there"
    with pytest.raises(ImportFailed, match="is qwen3, completion; m:latest is llama"):
        asyncio.run(pull("wrong"))
    with pytest.raises(InvalidRequest, match="no 'int2' of m can be pulled; its card lists: int8, wrong"):
        asyncio.run(pull("int2"))
    remove_variant(store, model, "int8")
    assert folders(store) >= {model.folder.name}
    assert found.folder.name not in folders(store)
