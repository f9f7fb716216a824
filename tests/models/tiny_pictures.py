"""Models that look at pictures, of a few numbers each, whose answers can be worked out by hand."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DIM = 5
VOCAB = 12
Floats = NDArray[np.float32]


def weights(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], output: str, **kept: Floats
) -> None:
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(array, name) for name, array in kept.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def save_classifier(
    path: Path, matrix: Floats, *, size: int = 8, softmax: bool = False, output: str = "logits"
) -> None:
    """`matrix [3, classes]` times the mean colour; a softmax behind it if asked for."""
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["colour", "matrix"], ["product" if softmax else output]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["product"], [output], axis=1))
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])
    _save(path, nodes, [pixels], output, matrix=matrix)


def save_text(path: Path, table: Floats, *, masked: bool = True, output: str = "text_embeds") -> None:
    """The sum of the rows of `table [VOCAB, dim]` that a text's tokens name; those of the padding too if not masked."""
    ids = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    if masked:
        ids.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]))
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["kept"]),
        ]
    nodes.append(helper.make_node("ReduceSum", ["kept" if masked else "rows", "middle"], [output], keepdims=0))
    kept = {"last": np.array([2], np.int64)} if masked else {}
    _save(path, nodes, ids, output, table=table, middle=np.array([1], np.int64), **kept)
