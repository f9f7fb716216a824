"""safetensors → two ONNX graphs for CLIP and SigLIP; folders of such graphs that are used as they are."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from vmm_adapters import catalog
from vmm_adapters.types import SessionOptions
from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.clip import check_clip, import_clip
from vmm_server.models.importers.clip_config import read_clip_config
from vmm_server.models.importers.clip_folder import CLIP_LOGIT_SCALE
from vmm_server.models.importers.safetensors_folder import check_safetensors, import_safetensors

DATA = Path(__file__).parents[2] / "data" / "clip_reference"
FEATURES = np.load(DATA / "features.npz")
NAMES = ("clip", "clip_legacy", "siglip")
PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 24, "width": 24},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
TOKENIZER = {"version": "1.0", "added_tokens": [{"id": 3, "content": "<pad>", "special": True}], "model": {}}


def write_source(folder: Path, name: str) -> Path:
    shutil.copytree(DATA / name, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", "clip")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def rewrite(path: Path, part: str | None = None, **changes: object) -> None:
    content = json.loads(path.read_text())
    (content if part is None else content[part]).update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.runtime
@pytest.mark.parametrize("adapter", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graphs_compute_what_transformers_does(name: str, adapter: str, tmp_path: Path, target: Path) -> None:
    described = import_clip(write_source(tmp_path / "source", name), target)
    assert described.capabilities == ("embedding", "image-embedding")
    assert described.embedding_length == FEATURES[f"{name}/image_embeds"].shape[1]
    for file, kind in (("text_model.onnx", "text"), ("vision_model.onnx", "image")):
        session = catalog.load_session(adapter, target / file, SessionOptions())
        given = {port.name: FEATURES[f"{name}/{port.name}"] for port in session.inputs}
        found = session.run(given)[f"{kind}_embeds"]
        np.testing.assert_allclose(found, FEATURES[f"{name}/{kind}_embeds"], rtol=0, atol=1e-4)
        session.close()


@pytest.mark.runtime
@pytest.mark.parametrize("padding", [0, 1, 39])
@pytest.mark.parametrize("name", ["clip", "clip_legacy"])
def test_padding_changes_nothing(tmp_path: Path, target: Path, name: str, padding: int) -> None:
    import_clip(write_source(tmp_path / "source", name), target)
    session = catalog.load_session("onnxruntime", target / "text_model.onnx", SessionOptions())
    ids, mask = FEATURES[f"{name}/input_ids"].copy(), FEATURES[f"{name}/attention_mask"]
    ids[mask == 0] = padding
    found = session.run({"input_ids": ids, "attention_mask": mask})["text_embeds"]
    np.testing.assert_allclose(found, FEATURES[f"{name}/text_embeds"], rtol=0, atol=1e-4)
    one = session.run({"input_ids": ids[1:2, :4], "attention_mask": mask[1:2, :4]})["text_embeds"]
    np.testing.assert_allclose(one, found[1:2], rtol=0, atol=1e-5)
    session.close()


def test_the_new_folder_says_how_it_is_used(source: Path, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    (source / "README.md").write_text("not needed")
    described = import_safetensors(source, target, lambda done, total: seen.append((done, total)))
    assert described == describe_folder(target)
    assert described.vision
    assert described.vision.image
    assert (described.vision.image.height, described.vision.image.mean) == (24, (0.5, 0.5, 0.5))
    weights = load_file(source / "model.safetensors")
    assert described.vision.logit_scale == pytest.approx(math.exp(float(weights["logit_scale"])))
    assert (described.vision.logit_bias, described.vision.text_length) == (None, None)
    assert (described.context_length, described.quantization, described.parameter_size) == (9, "F32", "20K")
    assert not (target / "README.md").exists()
    assert seen == sorted(seen)
    total = sum(path.stat().st_size for path in target.glob("*.data"))
    assert seen[-1] == (total, total)
    for name in ("text_model.onnx", "vision_model.onnx"):
        onnx.checker.check_model(target / name, full_check=True)


@pytest.mark.parametrize(("padding", "expected"), [(None, 1), ("<pad>", 3), ({"content": "<pad>"}, 3), ("no", 1)])
def test_siglip_pads_its_texts_with_the_tokenisers_token(
    tmp_path: Path, target: Path, padding: object, expected: int
) -> None:
    source = write_source(tmp_path / "source", "siglip")
    (source / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))
    recipe = import_clip(source, target).vision
    assert recipe
    assert (recipe.text_length, recipe.pad_token_id) == (9, expected)
    assert recipe.logit_bias is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_same_files_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    contents = []
    source = write_source(tmp_path / "source", name)
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        import_clip(source, tmp_path / out)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("part", "change", "error", "words"),
    [
        (None, {"model_type": "siglip2"}, UnsupportedArchitecture, "'siglip2' is not supported"),
        (None, {"text_config": []}, CorruptFile, "text_config is no object"),
        (None, {"projection_dim": 13}, CorruptFile, r"text_projection.weight has the shape \(12, 16\)"),
        ("text_config", {"hidden_act": "silu"}, UnsupportedArchitecture, "hidden_act 'silu'"),
        ("text_config", {"num_attention_heads": 3}, UnsupportedArchitecture, "3 heads and a width of 16"),
        ("text_config", {"num_hidden_layers": 1000}, UnsupportedArchitecture, "1000 layers"),
        ("text_config", {"num_hidden_layers": 3}, CorruptFile, r"lacks the tensor .*layers\.2"),
        ("text_config", {"max_position_embeddings": 10}, CorruptFile, r"position_embedding.weight has the shape"),
        ("text_config", {"layer_norm_eps": "x"}, CorruptFile, "layer_norm_eps is 'x'"),
        ("vision_config", {"num_channels": 4}, UnsupportedArchitecture, "3 channels"),
        ("vision_config", {"image_size": 4}, UnsupportedArchitecture, "have no patch"),
        ("vision_config", {"image_size": "24"}, CorruptFile, "image_size is '24'"),
        ("vision_config", {"image_size": 32}, CorruptFile, "position_embedding"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(
    source: Path, target: Path, part: str | None, change: dict[str, object], error: type[ImportFailed], words: str
) -> None:
    rewrite(source / "config.json", part, **change)
    with pytest.raises(error, match=words):
        import_clip(source, target)
    assert not list(target.iterdir())


def test_small_files_alone_show_most_of_it(source: Path) -> None:
    check_safetensors(source)
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(ImportFailed, match=r"no preprocessor_config\.json"):
        check_safetensors(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(ImportFailed, match=r"no tokenizer\.json"):
        check_clip(source)


def test_weights_that_are_wrong_are_named(source: Path, target: Path) -> None:
    path = source / "model.safetensors"
    weights = load_file(path)
    for value in (np.array(np.nan, np.float32), np.array(1000.0, np.float32), np.zeros(2, np.float32)):
        save_file(weights | {"logit_scale": value}, path)
        with pytest.raises(CorruptFile, match="logit_scale"):
            import_clip(source, target)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=r"model\.safetensors: is cut off"):
        import_clip(source, target)
    save_file(weights, path)
    (target / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        import_clip(source, target / "file")


def test_what_transformers_leaves_out_is_its_default(tmp_path: Path) -> None:
    for family, length, size in (("clip", 77, 32), ("siglip", 64, 16)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "text_config": {}}))
        config = read_clip_config(tmp_path)
        assert (config.max_length, config.patch_size, config.image_size) == (length, (size, size), (224, 224))
    assert (config.projection, config.text.activation, config.text.epsilon) == (768, "gelu_tanh", 1e-6)
    old = {"model_type": "clip", "text_config": {"num_hidden_layers": 1}, "text_config_dict": {"num_hidden_layers": 2}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_clip_config(tmp_path).text.num_layers == 2


# Folders that are used as they are


def write_graph(path: Path, inputs: dict[str, list[str | int]], outputs: dict[str, list[str | int]]) -> None:
    """An ONNX file with these inputs and outputs, and nothing between."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if len(shape) == 4 else TensorProto.INT64, shape)
        for name, shape in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(helper.make_model(helper.make_graph([], "g", ports, results)).SerializeToString())


@pytest.fixture
def exported(source: Path) -> Path:
    """A folder as exporters for the hub write it."""
    (source / "model.safetensors").unlink()
    write_graph(source / "onnx/text_model.onnx", {"input_ids": ["b", "s"]}, {"text_embeds": ["b", 12]})
    write_graph(
        source / "onnx/vision_model.onnx",
        {"pixel_values": ["b", 3, "h", "w"]},
        {"last_hidden_state": ["b", 9, 24], "image_embeds": ["b", 12]},
    )
    return source


def test_an_exported_folder_is_described(exported: Path) -> None:
    assert detect_format(exported) == "onnx"
    described = describe_folder(exported)
    assert (described.family, described.embedding_length, described.context_length) == ("clip", 12, 9)
    assert described.vision
    assert described.vision.logit_scale == CLIP_LOGIT_SCALE
    rewrite(exported / "config.json", logit_scale=50, logit_bias=-3)
    found = describe_folder(exported).vision
    assert found
    assert (found.logit_scale, found.logit_bias) == (50, -3)


def test_siglips_exports_call_their_outputs_otherwise(exported: Path) -> None:
    rewrite(exported / "config.json", model_type="siglip")
    write_graph(
        exported / "onnx/text_model.onnx",
        {"input_ids": ["b", "s"]},
        {"last_hidden_state": ["b", "s", 24], "pooler_output": ["b", 24]},
    )
    described = describe_folder(exported)
    assert described.embedding_length == 24
    assert described.vision
    assert (described.vision.text_length, described.vision.logit_scale) == (9, None)


@pytest.mark.parametrize(
    ("file", "inputs", "outputs", "words"),
    [
        (
            "text",
            {"input_ids": ["b", "s"], "pixel_values": ["b", 3, 8, 8]},
            {"text_embeds": ["b", 2]},
            "has the inputs",
        ),
        ("text", {"input_ids": ["b", "s"]}, {"last_hidden_state": ["b", "s", 2]}, "has the outputs last_hidden_state"),
        ("vision", {"pixels": ["b", 8]}, {"image_embeds": ["b", 2]}, "takes no pictures; its inputs are pixels"),
        ("vision", {"pixels": ["b", 8, 8, 3]}, {"image_embeds": ["b", 2]}, r"\[\?, 8, 8, 3\]"),
        ("vision", {"pixels": ["b", 3, 8, 8]}, {"image_embeds": ["b", 2, 1]}, "one of text_embeds, image_embeds"),
    ],
)
def test_graphs_of_another_kind_are_refused(
    exported: Path, file: str, inputs: dict[str, list[str | int]], outputs: dict[str, list[str | int]], words: str
) -> None:
    write_graph(exported / f"onnx/{file}_model.onnx", inputs, outputs)
    with pytest.raises(UnsupportedArchitecture, match=words):
        describe_folder(exported)


def test_files_that_are_missing_or_wrong_are_named(exported: Path) -> None:
    (exported / "tokenizer.json").rename(exported / "t")
    with pytest.raises(ImportFailed, match=r"no tokenizer\.json"):
        describe_folder(exported)
    (exported / "t").rename(exported / "tokenizer.json")
    rewrite(exported / "config.json", model_type="chinese_clip")
    with pytest.raises(UnsupportedArchitecture, match="'chinese_clip' is not supported"):
        describe_folder(exported)
    rewrite(exported / "config.json", model_type="clip")
    (exported / "onnx/text_model.onnx").write_bytes(b"\xff")
    with pytest.raises(CorruptFile, match="no readable ONNX"):
        describe_folder(exported)
