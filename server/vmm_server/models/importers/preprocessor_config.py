"""transformers' preprocessor_config.json → how a picture becomes numbers.

Each class of image processors there has keys, defaults and habits of its own; these are those of transformers 4 and 5
for models that classify, detect and embed. What a file asks for and we do not do is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vmm_adapters.card import ImageRecipe
from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_file import Port

FILES = ("preprocessor_config.json", "processor_config.json")
"""The second is what transformers 5 writes for models that read texts too."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL.Image.Resampling's numbers."""
_NAMES: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
_BICUBIC = ("CLIP", "Siglip", "ConvNext", "ChineseCLIP", "Bit", "Deit", "DeiT", "PoolFormer")
"""Kinds that resize so when their file does not say."""
_SHORTEST = ("CLIP", "ConvNext", "ChineseCLIP", "Bit", "Levit", "MobileNet", "MobileViT", "PoolFormer")
"""Kinds to which a lone number as size is the shorter side."""
_WARPED_FROM = 384
"""ConvNext's: pictures for such a size and more are stretched, not cut."""
_CONVNEXT_CROP = 224 / 256
_SUFFIXES = ("ImageProcessorPil", "ImageProcessorFast", "ImageProcessor", "FeatureExtractor")
_Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Resize:
    height: int
    width: int
    resize: Literal["stretch", "shortest"] = "stretch"
    shortest_edge: int | None = None


def read_image_recipe(folder: Path) -> ImageRecipe | None:
    """What the folder's file says; `None` where it has none.

    Raises `CorruptFile`, `UnsupportedArchitecture` naming the file and the key.
    """
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        config: object = read_json_object(path)
        if isinstance(config, dict) and isinstance(config.get("image_processor"), dict):
            config = config["image_processor"]
        if isinstance(config, dict) and (name == FILES[0] or "image_processor_type" in config):
            return _Reader(path, config).recipe()
    return None


def fit_image(image: ImageRecipe | None, port: Port, path: Path) -> ImageRecipe | None:
    """The recipe, if pictures made by it fit what the graph takes. Raises `ImportFailed`."""
    height, width = port.shape[2:]
    if image is None or (height in (None, image.height) and width in (None, image.width)):
        return image
    if image.resize == "stretch":  # sizes of a DETR that would take any, exported for one
        return image.model_copy(update={"height": height or image.height, "width": width or image.width})
    raise ImportFailed(
        f"{path}: takes pictures of {width or 'any'}x{height or 'any'}, its preprocessor_config.json makes "
        f"{image.width}x{image.height}",
        hint="mend preprocessor_config.json, or say it in a model card: [vision.image]",
    )


class _Reader:
    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        self._path = path
        self._config = config
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        for suffix in _SUFFIXES:
            kind = kind.removesuffix(suffix)
        self._kind = kind

    def recipe(self) -> ImageRecipe:
        pretrained = self._config.get("pretrained_cfg")
        try:
            return self._timm(pretrained) if isinstance(pretrained, dict) else self._transformers()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise self._corrupt(where, first["input"]) from error

    def _transformers(self) -> ImageRecipe:
        size, config = self._size(), self._config
        scale, mean, std = self._numbers()
        return ImageRecipe(
            height=size.height,
            width=size.width,
            resize=size.resize,
            shortest_edge=size.shortest_edge,
            interpolation=self._interpolation(config.get("resample")),
            scale=scale,
            mean=mean,
            std=std,
            channels="bgr" if config.get("do_flip_channel_order") else "rgb",
        )

    # Sizes

    def _size(self) -> _Resize:
        config, size = self._config, self._config.get("size")
        crop = self._box("crop_size") if config.get("do_center_crop", self._kind in _CROPPED) else None
        if config.get("do_resize") is False:
            raise UnsupportedArchitecture(f"{self._path}: do_resize is false, pictures of any size are not taken")
        if isinstance(size, dict) and "height" in size and "width" in size:
            whole = _Resize(self._whole(size["height"], "size.height"), self._whole(size["width"], "size.width"))
            return self._stretched_then_cut(whole, crop) if crop else whole
        edge = size.get("shortest_edge", size.get("longest_edge")) if isinstance(size, dict) else size
        edge = self._whole(edge, "size")
        if self._kind == "ConvNext":
            return self._convnext(edge)
        if crop is not None and (isinstance(size, dict) or self._kind in _SHORTEST or not self._kind):
            return _Resize(*crop, "shortest", edge)
        # Without a crop each picture would have a shape of its own (DETR, YOLOS); batches have one
        return self._stretched_then_cut(_Resize(edge, edge), crop) if crop else _Resize(edge, edge)

    def _convnext(self, edge: int) -> _Resize:
        if edge >= _WARPED_FROM:
            return _Resize(edge, edge)
        share = self._config.get("crop_pct")
        share = _CONVNEXT_CROP if share is None else self._number(share, "crop_pct")
        if not 0 < share <= 1:
            raise self._corrupt("crop_pct", share)
        return _Resize(edge, edge, "shortest", int(edge / share))

    def _stretched_then_cut(self, whole: _Resize, crop: tuple[int, int]) -> _Resize:
        if crop != (whole.height, whole.width):
            raise UnsupportedArchitecture(
                f"{self._path}: a picture that is stretched to {whole.width}x{whole.height} and then cut to "
                f"{crop[1]}x{crop[0]} is not supported",
                hint="say it in a model card: [vision.image]",
            )
        return whole

    def _box(self, key: str) -> tuple[int, int]:
        value = self._config.get(key)
        if isinstance(value, dict):
            return self._whole(value.get("height"), f"{key}.height"), self._whole(value.get("width"), f"{key}.width")
        if value is None and isinstance(size := self._config.get("size"), dict):
            value = size.get("shortest_edge")
        whole = self._whole(value, key)
        return whole, whole

    # Numbers

    def _numbers(self) -> tuple[float, _Triple, _Triple]:
        """Scale, mean and standard deviation of `(pixel * scale - mean) / std`."""
        config = self._config
        scale = 1.0
        if config.get("do_rescale", True):
            scale = self._number(config.get("rescale_factor", 1 / 255), "rescale_factor")
        mean: _Triple = (0.0, 0.0, 0.0)
        std: _Triple = (1.0, 1.0, 1.0)
        if config.get("do_normalize", "image_mean" in config):
            mean, std = (
                self._triple(config.get("image_mean"), "image_mean"),
                self._triple(config.get("image_std"), "image_std"),
            )
        if config.get("rescale_offset"):  # [0, 2] becomes [-1, 1]
            mean = (mean[0] + 1, mean[1] + 1, mean[2] + 1)
        if self._kind == "EfficientNet" and config.get("include_top", True):  # divided once more
            again = self._triple(config.get("image_std"), "image_std")
            std = (std[0] * again[0], std[1] * again[1], std[2] * again[2])
        return scale, mean, std

    def _interpolation(self, value: object) -> Interpolation:
        if value is None:
            return "bicubic" if self._kind.startswith(_BICUBIC) else "bilinear"
        if isinstance(value, str):
            found = next((name for name in _NAMES if name == value), None)
        else:
            found = _RESAMPLE.get(value) if type(value) is int else None
        if found is None:
            raise UnsupportedArchitecture(
                f"{self._path}: resample {value!r} is not supported; 0 to 3 are",
                hint="say it in a card: [vision.image]",
            )
        return found

    def _timm(self, pretrained: Mapping[str, object]) -> ImageRecipe:
        """timm's own words, in what transformers writes for its models."""
        shape = pretrained.get("test_input_size") or pretrained.get("input_size")
        sizes = list(shape) if isinstance(shape, list | tuple) else []
        if len(sizes) != 3:
            raise self._corrupt("pretrained_cfg.input_size", shape)
        height, width = (self._whole(size, "pretrained_cfg.input_size") for size in sizes[1:])
        share = pretrained.get("test_crop_pct") or pretrained.get("crop_pct") or 0.875
        mode = pretrained.get("crop_mode", "center")
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise UnsupportedArchitecture(f"{self._path}: crop_mode {mode!r} of {width}x{height} is not supported")
        edge = int(height / self._number(share, "pretrained_cfg.crop_pct"))
        return ImageRecipe(
            height=height,
            width=width,
            resize="shortest" if mode == "center" else "stretch",
            shortest_edge=edge if mode == "center" else None,
            interpolation=self._interpolation(pretrained.get("interpolation", "bicubic")),
            mean=self._triple(pretrained.get("mean"), "pretrained_cfg.mean"),
            std=self._triple(pretrained.get("std"), "pretrained_cfg.std"),
        )

    def _triple(self, value: object, key: str) -> _Triple:
        values = list(value) if isinstance(value, list | tuple) else [value] * 3
        if len(values) != 3:
            raise self._corrupt(key, value)
        first, second, third = (self._number(each, key) for each in values)
        return first, second, third

    def _number(self, value: object, key: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e6:
            raise self._corrupt(key, value)
        if value <= 0 and key.rpartition(".")[2] in ("rescale_factor", "image_std", "std", "crop_pct"):
            raise self._corrupt(key, value)
        return float(value)

    def _whole(self, value: object, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
            raise self._corrupt(key, value)
        return value

    def _corrupt(self, key: str, value: object) -> CorruptFile:
        return CorruptFile(f"{self._path}: {key} is {str(value)[:100]!r}", hint="mend it, or say it in a model card")


MAX_SIDE = 8192
"""Pixels; models take far less."""
_CROPPED = ("CLIP", "ChineseCLIP", "MobileNetV1", "MobileNetV2", "MobileViT", "Levit", "Deit", "DeiT", "Bit")
"""Kinds that cut the middle out when their file does not say."""
