"""safetensors → ONNX for BERT and its kin; folders of encoders that are used as they are."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from vmm_adapters import catalog
from vmm_adapters.card import EmbeddingRecipe
from vmm_adapters.types import EncoderInput, EncoderOptions, Pooling
from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.encoder import check_encoder, import_encoder
from vmm_server.models.importers.encoder_folder import encoder_files
from vmm_server.models.importers.encoder_graph import distance_buckets

DATA = Path(__file__).parents[2] / "data" / "encoder_reference"
TINY: dict[str, Any] = runpy.run_path(str(DATA / "tiny_encoders.py"))
MODELS = TINY["MODELS"]
ROWS = np.load(DATA / "rows.npz")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny BERT as sentence-transformers keeps it."""
    folder: Path = TINY["write_encoder"](tmp_path / "source", MODELS["bert"])
    TINY["write_sentence_transformer"](folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def rewrite(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def graph(outputs: dict[str, list[str | int]], inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> bytes:
    """An ONNX file with these inputs and outputs, and nothing between."""
    ports = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    content: bytes = helper.make_model(helper.make_graph([], "g", ports, results)).SerializeToString()
    return content


@pytest.fixture
def onnx_folder(source: Path) -> Path:
    """An encoder's folder as the hub has it: onnx/model.onnx beside the other files."""
    (source / "model.safetensors").unlink()
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(graph({"last_hidden_state": ["b", "s", 24]}))
    return source


@pytest.mark.runtime
@pytest.mark.parametrize("name", MODELS)
def test_the_onnx_computes_what_transformers_does(name: str, tmp_path: Path, target: Path) -> None:
    model = MODELS[name]
    described = import_encoder(TINY["write_encoder"](tmp_path / "source", model), target)
    assert described.family == model.model_type
    assert described.context_length == (32 if model.layout in ("roberta", "mpnet") else 34)
    assert described.capabilities == (("rerank",) if model.scores else ("embedding",))
    assert described.embedding is None, "nothing says how it is pooled"
    pooling = None if model.scores else Pooling.MEAN
    encoder = catalog.load_encoder("openvino", target, EncoderOptions(described.context_length, pooling))
    inputs = []
    for ids in TINY["INPUTS"]:
        types = [int(2 * index >= len(ids)) for index in range(len(ids))] if model.types > 1 else []
        inputs.append(EncoderInput(ids, types))
    np.testing.assert_allclose(encoder.encode(inputs), ROWS[name], rtol=0, atol=1e-5)
    encoder.close()


def test_the_new_folder_says_all_that_the_old_one_said(source: Path, target: Path) -> None:
    rewrite(source / "config.json", max_position_embeddings=1000)  # not true: the table has 34 rows
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (source / "README.md").write_text("not needed")
    seen: list[tuple[int, int]] = []
    described = import_encoder(source, target, lambda done, total: seen.append((done, total)))
    assert described.embedding == EmbeddingRecipe(pooling=Pooling.MEAN, normalize=True)
    assert (described.context_length, described.embedding_length) == (20, 24)
    assert (described.quantization, described.parameter_size) == ("F32", "10K")
    assert not (target / "README.md").exists()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == (target / "model.onnx.data").stat().st_size
    (target / "sentence_bert_config.json").unlink()
    assert describe_folder(target).context_length == 34
    onnx.checker.check_model(target / "model.onnx")


def test_the_same_files_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        import_encoder(source, folder)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(source: Path, tmp_path: Path, target: Path, dtype: str) -> None:
    weights = TINY["weights"](MODELS["bert"])
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16 if dtype == "bfloat16" else TensorProto.FLOAT16)
    save_file({name: array.astype(kind) for name, array in weights.items()}, source / "model.safetensors")
    import_encoder(source, target)
    found = {each.name: each for each in onnx.load(target / "model.onnx").graph.initializer}
    stored = onnx.numpy_helper.to_array(found["words.weight"])
    expected = weights["embeddings.word_embeddings.weight"].astype(kind).astype(np.float32)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "nomic_bert"}, UnsupportedArchitecture, "'nomic_bert' is not supported"),
        ({"model_type": None}, UnsupportedArchitecture, "None is not supported"),
        ({"hidden_act": "silu"}, UnsupportedArchitecture, "hidden_act 'silu'"),
        ({"position_embedding_type": "relative_key"}, UnsupportedArchitecture, "relative_key"),
        ({"num_attention_heads": 5}, UnsupportedArchitecture, "5 heads do not divide 24"),
        ({"num_hidden_layers": "2"}, CorruptFile, "num_hidden_layers is '2'"),
        ({"num_hidden_layers": 3}, CorruptFile, r"no tensor encoder\.layer\.2"),
        ({"hidden_size": 12}, CorruptFile, r"has the shape \(34, 24\)"),
        ({"architectures": ["BertForSequenceClassification"]}, CorruptFile, r"no tensor bert\.pooler\.dense"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(
    source: Path, target: Path, change: dict[str, object], error: type[ImportFailed], words: str
) -> None:
    rewrite(source / "config.json", **change)
    with pytest.raises(error, match=words):
        import_encoder(source, target)
    assert not list(target.iterdir())
    if error is UnsupportedArchitecture:
        with pytest.raises(error, match=words):
            check_encoder(source)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_file_that_is_cut_off_is_named(source: Path, target: Path, keep: int) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match=r"model\.safetensors: is damaged or cut off"):
        import_encoder(source, target)


def test_what_is_missing_is_named(source: Path, target: Path) -> None:
    (source / "tokenizer.json").rename(source / "t")
    with pytest.raises(ImportFailed, match=r"no tokenizer\.json"):
        import_encoder(source, target)
    (source / "t").rename(source / "tokenizer.json")
    (source / "model.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"model\.safetensors: is missing"):
        import_encoder(source, target)
    TINY["write_encoder"](source, MODELS["bert"])
    (target / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        import_encoder(source, target / "file")


def test_distances_fall_into_the_buckets_of_t5() -> None:
    buckets = distance_buckets(200, 32)
    near = {distance: int(buckets[distance + 199]) for distance in (-199, -128, -16, -8, -7, -1, 0, 1, 7, 8, 16, 199)}
    assert near == {-199: 15, -128: 15, -16: 10, -8: 8, -7: 7, -1: 1, 0: 0, 1: 17, 7: 23, 8: 24, 16: 26, 199: 31}


# Folders that are used as they are


def test_formats_of_encoders_are_told_apart(source: Path) -> None:
    assert detect_format(source) == "safetensors"
    with pytest.raises(ImportFailed, match="have to be imported first"):
        describe_folder(source)
    (source / "model.onnx").write_bytes(graph({"last_hidden_state": ["b", "s", 24]}))
    assert detect_format(source) == "onnx"


def test_a_hub_folder_is_described(onnx_folder: Path) -> None:
    (onnx_folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "Q: ", "document": ""}, "default_prompt_name": "query"})
    )
    described = describe_folder(onnx_folder)
    assert described.embedding == EmbeddingRecipe(
        pooling=Pooling.MEAN, normalize=True, prompts={"query": "Q: "}, default_prompt="query"
    )
    assert (described.capabilities, described.context_length) == (("embedding",), 34)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"pooling_mode": "cls"}, Pooling.CLS),
        ({"pooling_mode": ["lasttoken"]}, Pooling.LAST_TOKEN),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, Pooling.LAST_TOKEN),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, Pooling.MEAN),
    ],
)
def test_pooling_is_read_as_every_version_writes_it(
    onnx_folder: Path, flags: dict[str, object], expected: Pooling
) -> None:
    (onnx_folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    described = describe_folder(onnx_folder)
    assert described.embedding
    assert described.embedding.pooling is expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pooling_mode": "max"}, r"\['max'\] is not supported; one of mean, cls, lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls', 'mean'\]"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(onnx_folder: Path, flags: dict[str, object], words: str) -> None:
    (onnx_folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "Q: "}}')
    (onnx_folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    with pytest.raises(UnsupportedArchitecture, match=words):
        describe_folder(onnx_folder)


@pytest.mark.parametrize(
    ("modules", "error", "words"),
    [
        (["Transformer", "Pooling", "Dense"], UnsupportedArchitecture, "Transformer, Pooling, Dense"),
        (["Transformer"], UnsupportedArchitecture, "the modules Transformer are not supported"),
        ([None], CorruptFile, "no list of modules"),
    ],
)
def test_modules_that_are_not_known_are_refused(
    onnx_folder: Path, modules: list[str | None], error: type[ImportFailed], words: str
) -> None:
    content = [{"type": name and f"sentence_transformers.models.{name}", "path": "1_Pooling"} for name in modules]
    (onnx_folder / "modules.json").write_text(json.dumps(content))
    with pytest.raises(error, match=words):
        describe_folder(onnx_folder)


@pytest.mark.parametrize(
    ("tokenizer", "sentences", "expected"),
    [(None, None, 34), (12, None, 12), (12, 20, 20), (10**30, None, 34), (100, 100, 34), ("x", None, 34)],
)
def test_the_longest_input_is_told_by_the_first_that_knows(
    onnx_folder: Path, tokenizer: object, sentences: int | None, expected: int
) -> None:
    if tokenizer is not None:
        (onnx_folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer}))
    if sentences is not None:
        (onnx_folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": sentences}))
    assert describe_folder(onnx_folder).context_length == expected


def test_lower_case_that_the_tokeniser_does_not_make_is_refused(onnx_folder: Path) -> None:
    (onnx_folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(UnsupportedArchitecture, match="do_lower_case is not supported"):
        describe_folder(onnx_folder)


def test_a_module_outside_of_the_folder_is_refused(onnx_folder: Path) -> None:
    (onnx_folder / "modules.json").write_text('[{"type": "x.Transformer", "path": "../.."}]')
    with pytest.raises(CorruptFile, match="no list of modules"):
        describe_folder(onnx_folder)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"last_hidden_state": ["b", "s", 24]}, None),
        ({"last_hidden_state": ["b", "s", 24], "pooler_output": ["b", 24]}, None),
        ({"token_embeddings": ["b", "s", 24], "sentence_embedding": ["b", 12]}, 12),
        ({"sentence_embedding": ["b", 12]}, 12),
    ],
)
def test_a_graph_that_pools_by_itself_needs_no_other_word(
    onnx_folder: Path, outputs: dict[str, list[str | int]], expected: int | None
) -> None:
    shutil.rmtree(onnx_folder / "1_Pooling")
    (onnx_folder / "modules.json").unlink()
    (onnx_folder / "onnx" / "model.onnx").write_bytes(graph(outputs))
    described = describe_folder(onnx_folder)
    if expected is None:
        assert described.embedding is None, "not guessed"
    else:
        assert described.embedding == EmbeddingRecipe(pooling=None, normalize=False)
        assert described.embedding_length == expected


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_has_one_label(onnx_folder: Path, labels: int) -> None:
    (onnx_folder / "modules.json").unlink()
    rewrite(onnx_folder / "config.json", architectures=["BertForSequenceClassification"])
    (onnx_folder / "onnx" / "model.onnx").write_bytes(graph({"logits": ["b", labels]}))
    if labels == 1:
        described = describe_folder(onnx_folder)
        assert (described.capabilities, described.embedding) == (("rerank",), None)
        return
    with pytest.raises(UnsupportedArchitecture, match="a classifier of 3 labels"):
        describe_folder(onnx_folder)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"\xff", CorruptFile, "no readable ONNX"),
        (graph({"x": ["b"]}), UnsupportedArchitecture, "no output with hidden states"),
        (graph({"x": ["b", 2]}, inputs=("pixels",)), UnsupportedArchitecture, "has the inputs pixels"),
        (graph({"x": ["b", 2]}, inputs=("input_ids", "past.0.key")), UnsupportedArchitecture, r"input_ids, past\.0"),
    ],
)
def test_a_graph_that_is_no_encoder_is_refused(
    onnx_folder: Path, content: bytes, error: type[ImportFailed], words: str
) -> None:
    (onnx_folder / "onnx" / "model.onnx").write_bytes(content)
    with pytest.raises(error, match=words):
        describe_folder(onnx_folder)


SMALL = ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"]


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["README.md", "onnx/model.onnx", "onnx/model_O4.onnx", "model.safetensors", *SMALL], ["onnx/model.onnx"]),
        (["model.onnx", "model.onnx_data", "model.safetensors", *SMALL], ["model.onnx", "model.onnx_data"]),
        (["model.safetensors", "pytorch_model.bin", "openvino/model.xml", *SMALL], ["model.safetensors"]),
    ],
)
def test_the_files_of_a_repository_that_are_needed(paths: list[str], chosen: list[str]) -> None:
    assert encoder_files(paths) == [*SMALL, *chosen]


@pytest.mark.parametrize(
    "paths",
    [
        ["model.safetensors", "config.json", "tokenizer.json"],  # a language model, as likely as not
        ["model.onnx", "config.json"],
        ["model-00001-of-00002.safetensors", *SMALL],
        [],
    ],
)
def test_a_repository_that_is_no_encoder(paths: list[str]) -> None:
    assert encoder_files(paths) == []
