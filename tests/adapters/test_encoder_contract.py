"""What every `Encoder` promises, whatever computes it (`vmm_adapters/base.py`)."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vmm_adapters import catalog, echo_encoder
from vmm_adapters.base import Encoder
from vmm_adapters.errors import AdapterError, UnsupportedModel
from vmm_adapters.types import EncoderInput, EncoderOptions, Pooling
from vmm_server.models.importers.encoder import import_encoder

TINY: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[1] / "data" / "encoder_reference" / "tiny_encoders.py")
)
MAX_LENGTH = 30
RUNTIMES = [pytest.param(name, marks=pytest.mark.runtime) for name in ("openvino", "onnxruntime")]
TEXTS = ([5], [6, 7, 8], list(range(2, 32)), [9, 8, 7], [39, 2, 11, 12])


def _echo(folder: Path) -> Path:
    echo_encoder.write_echo_encoder(folder, dim=24)
    return folder


def _imported(folder: Path) -> Path:
    source = TINY["write_encoder"](folder / "source", TINY["MODELS"]["roberta"])
    (folder / "target").mkdir()
    import_encoder(source, folder / "target")
    return folder / "target"


@pytest.fixture(
    scope="module",
    params=[pytest.param("echo"), *RUNTIMES],
)
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Encoder]:
    folder = {"echo": _echo, "openvino": _imported, "onnxruntime": _imported}[request.param](
        tmp_path_factory.mktemp("encoder")
    )

    def load(**options: Any) -> Encoder:
        chosen = EncoderOptions(**{"max_length": MAX_LENGTH, "pooling": Pooling.MEAN, "normalize": True} | options)
        return catalog.load_encoder(request.param, folder, chosen)

    return load


@pytest.fixture(scope="module")
def encoder(load: Callable[..., Encoder]) -> Iterator[Encoder]:
    loaded = load()
    loaded.warm_up()
    yield loaded
    loaded.close()


def test_the_sizes_are_sane(encoder: Encoder) -> None:
    assert (encoder.dim, encoder.max_length, encoder.device) == (24, MAX_LENGTH, "CPU")
    assert encoder.memory_bytes > 0


def test_a_row_is_its_texts_alone(encoder: Encoder) -> None:
    together = encoder.encode([EncoderInput(ids) for ids in TEXTS])
    assert together.shape == (len(TEXTS), encoder.dim)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.encode([EncoderInput(ids)]) for ids in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    backwards = encoder.encode([EncoderInput(ids) for ids in reversed(TEXTS)])
    np.testing.assert_allclose(together, backwards[::-1], rtol=0, atol=1e-5)


def test_rows_have_length_1_when_that_is_asked_for(load: Callable[..., Encoder], encoder: Encoder) -> None:
    inputs = [EncoderInput(ids) for ids in TEXTS]
    unit = encoder.encode(inputs)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    plain = load(normalize=False)
    rows = plain.encode(inputs)
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2)
    np.testing.assert_allclose(rows / np.linalg.norm(rows, axis=1, keepdims=True), unit, rtol=0, atol=1e-5)
    plain.close()


def test_the_array_is_the_callers(encoder: Encoder) -> None:
    first = encoder.encode([EncoderInput([5])])
    kept = first.copy()
    encoder.encode([EncoderInput([6])])
    np.testing.assert_array_equal(first, kept)


def test_nothing_gives_nothing(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_closing_twice_is_allowed(load: Callable[..., Encoder]) -> None:
    loaded = load()
    loaded.close()
    loaded.close()


@pytest.mark.parametrize("adapter", ["echo", *RUNTIMES])
def test_another_model_is_refused(adapter: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    with pytest.raises(UnsupportedModel):
        catalog.load_encoder(adapter, tmp_path, EncoderOptions(8))


# Runtimes alone


def write_graph(
    folder: Path, *, inputs: tuple[str, ...] = ("input_ids", "attention_mask"), fixed: bool = False
) -> None:
    """A graph whose hidden state is the token id (and, once more, the position) in float, and a row of its own."""
    shape: list[str | int] = [2, 8] if fixed else ["batch", "sequence"]
    ports = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs]
    source = "position_ids" if "position_ids" in inputs else "input_ids"
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [2])
    ones = helper.make_tensor("ones", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [source], ["other"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "axis"], ["left"]),
        helper.make_node("Unsqueeze", ["other", "axis"], ["right"]),
        helper.make_node("Concat", ["left", "right"], ["last_hidden_state"], axis=2),
        helper.make_node("ReduceSum", ["last_hidden_state", "ones"], ["sentence_embedding"], keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, 2]),
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, [shape[0], 2]),
    ]
    graph = helper.make_graph(nodes, "g", ports, outputs, [axis, ones])
    folder.mkdir(exist_ok=True)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("adapter", RUNTIMES)
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.MEAN, [[6, 6], [3, 3]]),
        (Pooling.CLS, [[5, 5], [3, 3]]),
        (Pooling.LAST_TOKEN, [[9, 9], [3, 3]]),
        (None, [[18, 18], [3, 3]]),
    ],
)
def test_pooling_leaves_padding_out(
    adapter: str, tmp_path: Path, pooling: Pooling | None, expected: list[list[float]]
) -> None:
    write_graph(tmp_path)
    encoder = catalog.load_encoder(adapter, tmp_path, EncoderOptions(8, pooling))
    assert encoder.encode([EncoderInput([5, 4, 9]), EncoderInput([3])]).tolist() == expected
    encoder.close()


@pytest.mark.parametrize("adapter", RUNTIMES)
def test_positions_are_given_to_a_graph_that_asks_for_them(adapter: str, tmp_path: Path) -> None:
    write_graph(tmp_path, inputs=("input_ids", "attention_mask", "position_ids"))
    encoder = catalog.load_encoder(adapter, tmp_path, EncoderOptions(8, Pooling.LAST_TOKEN))
    assert encoder.encode([EncoderInput([5, 4, 9]), EncoderInput([3])]).tolist() == [[9, 2], [3, 0]]
    encoder.close()


@pytest.mark.parametrize("adapter", RUNTIMES)
def test_padding_is_what_the_configuration_says(adapter: str, tmp_path: Path) -> None:
    """Some graphs count their positions by it; this one sums all there is."""
    write_graph(tmp_path)
    (tmp_path / "config.json").write_text('{"pad_token_id": 1}')
    encoder = catalog.load_encoder(adapter, tmp_path, EncoderOptions(8))
    assert encoder.encode([EncoderInput([5, 4, 9]), EncoderInput([3])]).tolist() == [[18, 18], [5, 5]]
    encoder.close()


@pytest.mark.parametrize("adapter", RUNTIMES)
def test_graphs_that_cannot_be_used_are_named(adapter: str, tmp_path: Path) -> None:
    def load(pooling: Pooling | None = Pooling.MEAN) -> None:
        catalog.load_encoder(adapter, tmp_path, EncoderOptions(8, pooling))

    write_graph(tmp_path, fixed=True)
    with pytest.raises(UnsupportedModel, match="fixed size"):
        load()
    write_graph(tmp_path, inputs=("input_ids", "pixels"))
    with pytest.raises(UnsupportedModel, match="inputs are input_ids, pixels"):
        load()
    write_graph(tmp_path, inputs=("input_ids",))
    with pytest.raises(UnsupportedModel, match="no input attention_mask"):
        load()
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModel, match=r"cannot read|loading"):
        load()


@pytest.mark.parametrize("adapter", RUNTIMES)
def test_what_the_runtime_cannot_take_is_an_adapter_error(adapter: str, tmp_path: Path) -> None:
    write_graph(tmp_path)
    encoder = catalog.load_encoder(adapter, tmp_path, EncoderOptions(8, Pooling.MEAN))
    for ids in ([], [1] * 9):
        with pytest.raises(AdapterError, match="1 to 8 can be encoded"):
            encoder.encode([EncoderInput(ids)])
    encoder.close()
    with pytest.raises(AdapterError, match="closed"):
        encoder.encode([EncoderInput([1])])
    with pytest.raises(AdapterError, match=r"no device|GPU\.7 cannot run"):
        catalog.load_encoder(adapter, tmp_path, EncoderOptions(8, Pooling.MEAN, device="GPU.7"))
