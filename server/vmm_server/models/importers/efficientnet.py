"""EfficientNet-Lite from PyTorch's checkpoint → a classifier's ONNX folder.

The network is a stem, seven stages of inverted bottlenecks (widen, convolve each channel for itself, narrow) and a
head; the Lite kinds have ReLU6 and no squeeze-and-excitation. Which stages halve the picture is not in the weights, but
is the same for all of them. Norms are folded into the convolutions before them. Padding is TensorFlow's SAME, since the
weights come from there: the odd pixel goes to the right and the bottom.
Architecture: arXiv:1905.11946, and tpu/models/official/efficientnet/lite of TensorFlow's TPU models (Apache-2.0).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import StoreError, UnsupportedArchitecture
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.onnx_writer import ModelWriter, TensorSpec
from vmm_server.models.importers.pickled_weights import PickledWeights
from vmm_server.models.importers.vision_folder import describe_vision

_OPSET = 17
_STEM_STRIDE = 2
_STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EPSILON = 1e-3
"""Of the norms; TensorFlow's."""
_MAX_BLOCKS = 100
_IMAGE_SIZE, _SHORTEST_EDGE = 224, 256
"""Of Lite 0; a card may say another."""
_PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": _SHORTEST_EDGE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE},
    "do_rescale": False,
    "do_normalize": True,
    "image_mean": [127.0, 127.0, 127.0],
    "image_std": [128.0, 128.0, 128.0],
}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)\.weight")


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def import_efficientnet(
    source: Path, folder: Path, progress: Callable[[int, int], None] = _no_progress
) -> ImportedModel:
    """Write the model in the file `source` into the empty `folder`; the same file gives the same bytes.

    `progress` gets (bytes written, bytes in all). Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or
    `StoreError` when `folder` cannot be written; `folder` is then incomplete and of no use.
    """
    weights = PickledWeights(source)
    writer = _Builder(weights).build()
    try:
        for name, content in (("preprocessor_config", _PREPROCESSOR), ("config", {"model_type": "efficientnet-lite"})):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8", newline="\n")
        writer.write(folder, progress)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
        ) from error
    return describe_vision(folder)


class _Builder:
    def __init__(self, weights: PickledWeights) -> None:
        self._weights = weights
        self._writer = ModelWriter("efficientnet-lite", standard_opset=_OPSET)

    def build(self) -> ModelWriter:
        """The whole graph, to be written. Raises `CorruptFile`, `UnsupportedArchitecture`."""
        writer = self._writer
        strides = self._strides()
        pixels = writer.input("pixel_values", TensorProto.FLOAT, ["batch", 3, _IMAGE_SIZE, _IMAGE_SIZE])
        value, width = self._convolution(pixels, 3, "_conv_stem", "_bn0", _STEM_STRIDE)
        for index, stride in enumerate(strides):
            value, width = self._block(value, width, f"_blocks.{index}.", stride)
        value, width = self._convolution(value, width, "_conv_head", "_bn1", 1)
        value = writer.node("GlobalAveragePool", [value], "/pool")
        value = writer.node("Flatten", [value], "/Flatten", axis=1)
        rows, _ = self._shape("_fc.weight", 2)
        matrix, bias = self._constant("_fc.weight", (rows, width)), self._constant("_fc.bias", (rows,))
        writer.node("Gemm", [value, matrix, bias], "/classifier", ["logits"], transB=1)
        writer.output("logits", TensorProto.FLOAT, ["batch", rows])
        return writer

    def _strides(self) -> list[int]:
        """Of each block; a stage begins where the channels that leave change. Raises `UnsupportedArchitecture`."""
        found = [match for name in self._weights.tensors if (match := _BLOCK.fullmatch(name))]
        if others := sorted({match[2] for match in found} - _BLOCK_PARTS):
            raise self._unsupported(f"has the layer {others[0]}; EfficientNet-Lite is read")
        count = max((int(match[1]) for match in found), default=-1) + 1
        if not 1 <= count <= _MAX_BLOCKS:
            raise self._unsupported("is no EfficientNet")
        widths = [self._shape(f"_blocks.{index}._project_conv.weight", 4)[0] for index in range(count)]
        begins = [index == 0 or widths[index - 1] != width for index, width in enumerate(widths)]
        if sum(begins) != len(_STAGE_STRIDES):
            raise self._unsupported(f"has {sum(begins)} stages, {len(_STAGE_STRIDES)} are expected")
        strides = iter(_STAGE_STRIDES)
        return [next(strides) if begin else 1 for begin in begins]

    def _block(self, value: str, width: int, base: str, stride: int) -> tuple[str, int]:
        """An inverted bottleneck, added to what goes in where that has its shape; and how many channels leave it."""
        inner, inside = value, width
        if f"{base}_expand_conv.weight" in self._weights.tensors:
            inner, inside = self._convolution(inner, width, f"{base}_expand_conv", f"{base}_bn0", 1)
        inner, _ = self._convolution(inner, inside, f"{base}_depthwise_conv", f"{base}_bn1", stride, by_channel=True)
        inner, out = self._convolution(inner, inside, f"{base}_project_conv", f"{base}_bn2", 1, is_last=True)
        if stride != 1 or width != out:
            return inner, out
        return self._writer.node("Add", [value, inner], f"/{base}Add"), out

    def _convolution(
        self,
        value: str,
        width: int,
        name: str,
        norm: str,
        stride: int,
        *,
        by_channel: bool = False,
        is_last: bool = False,
    ) -> tuple[str, int]:
        """A convolution with its norm folded in, and ReLU6 unless it narrows a block; and its channels."""
        shape = self._shape(f"{name}.weight", 4)
        channels = shape[0]
        if shape[1] != (1 if by_channel else width) or (by_channel and channels != width):
            raise self._unsupported(f"{name}.weight has the shape {shape}, {width} channels come in")
        for part in ("weight", "bias", "running_mean", "running_var"):
            self._check(f"{norm}.{part}", (channels,))
        specs = [
            TensorSpec(f"{name}.weight", TensorProto.FLOAT, shape),
            TensorSpec(f"{name}.bias", TensorProto.FLOAT, (channels,)),
        ]
        self._writer.stream(specs, lambda: [self._folded(name, norm)])
        value = self._writer.node(
            "Conv",
            [value, *(spec.name for spec in specs)],
            f"/{name}",
            auto_pad="SAME_UPPER",
            group=channels if by_channel else 1,
            kernel_shape=list(shape[2:]),
            strides=[stride, stride],
        )
        if is_last:
            return value, channels
        bounds = [self._writer.constant(0.0), self._writer.constant(6.0)]
        return self._writer.node("Clip", [value, *bounds], f"/{name}/Clip"), channels

    def _folded(self, name: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight and bias of a convolution that does what it and the norm after it did."""
        read = self._weights.read
        scale = read(f"{norm}.weight") / np.sqrt(read(f"{norm}.running_var") + np.float32(_EPSILON))
        weight = read(f"{name}.weight") * scale[:, None, None, None]
        return weight, read(f"{norm}.bias") - read(f"{norm}.running_mean") * scale

    def _constant(self, name: str, shape: tuple[int, ...]) -> str:
        self._check(name, shape)
        self._writer.stream([TensorSpec(name, TensorProto.FLOAT, shape)], lambda: [(self._weights.read(name),)])
        return name

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        found = self._weights.shape(name)
        if len(found) != rank:
            raise self._unsupported(f"{name} has the shape {found}")
        return found

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if self._weights.shape(name) != shape:
            raise self._unsupported(f"{name} has the shape {self._weights.shape(name)}, {shape} is expected")

    def _unsupported(self, what: str) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(f"{self._weights.path}: {what}")


_BLOCK_PARTS = {"_expand_conv", "_depthwise_conv", "_project_conv", "_bn0", "_bn1", "_bn2"}
