"""preprocessor_config.json of transformers' image processors, as their repositories on the hub have them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import ImageRecipe
from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.onnx_file import Port
from vmm_server.models.importers.preprocessor_config import fit_image, read_image_recipe

HALF = (0.5, 0.5, 0.5)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(folder: Path, config: object, name: str = "preprocessor_config.json") -> ImageRecipe:
    (folder / name).write_text(json.dumps(config))
    recipe = read_image_recipe(folder)
    assert recipe is not None
    return recipe


def sizes(recipe: ImageRecipe) -> tuple[object, ...]:
    return recipe.height, recipe.width, recipe.resize, recipe.shortest_edge


def test_clips_old_and_new_form_say_the_same(folder: Path) -> None:
    new = CLIP | {
        "crop_size": {"height": 224, "width": 224},
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "rescale_factor": 0.00392156862745098,
    }
    new.pop("feature_extractor_type")
    recipe = read(folder, CLIP)
    assert recipe == read(folder, new)
    assert sizes(recipe) == (224, 224, "shortest", 224)
    assert (recipe.interpolation, recipe.channels) == ("bicubic", "rgb")
    assert recipe.scale == pytest.approx(1 / 255)
    assert recipe.mean == tuple(CLIP["image_mean"])
    assert read(folder, {"image_processor_type": "CLIPImageProcessor"} | CLIP) == recipe


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def shortest(side: int, **more: int) -> dict[str, int]:
    return {"shortest_edge": side, **more}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("ViTImageProcessor", {"size": {"height": 224, "width": 192}}, (224, 192, "stretch", None)),
        ("ViTFeatureExtractor", {"size": 224}, (224, 224, "stretch", None)),
        ("SiglipImageProcessorFast", {"size": square(384)}, (384, 384, "stretch", None)),
        ("ConvNextImageProcessor", {"size": shortest(224), "crop_pct": 0.875}, (224, 224, "shortest", 256)),
        ("ConvNextFeatureExtractor", {"size": 224, "crop_pct": None}, (224, 224, "shortest", 256)),
        ("ConvNextImageProcessor", {"size": shortest(384), "crop_pct": 0.875}, (384, 384, "stretch", None)),
        ("MobileNetV2ImageProcessor", {"size": shortest(256), "crop_size": square(224)}, (224, 224, "shortest", 256)),
        ("MobileViTImageProcessor", {"size": shortest(288), "crop_size": square(256)}, (256, 256, "shortest", 288)),
        ("DetrImageProcessor", {"size": shortest(800, longest_edge=1333)}, (800, 800, "stretch", None)),
        ("RTDetrImageProcessor", {"size": square(640), "do_pad": False}, (640, 640, "stretch", None)),
        ("", {"size": square(224), "do_center_crop": True, "crop_size": square(224)}, (224, 224, "stretch", None)),
        ("", {"size": shortest(256), "do_center_crop": True, "crop_size": 224}, (224, 224, "shortest", 256)),
        ("", {"size": shortest(256), "do_center_crop": False, "crop_size": 224}, (256, 256, "stretch", None)),
    ],
)
def test_sizes_are_read_as_each_kind_means_them(
    folder: Path, kind: str, config: dict[str, object], expected: tuple[object, ...]
) -> None:
    key = "feature_extractor_type" if kind.endswith("Extractor") else "image_processor_type"
    assert sizes(read(folder, {key: kind} | config)) == expected


def test_numbers_are_read_as_each_kind_means_them(folder: Path) -> None:
    size = {"size": {"height": 8, "width": 8}}
    assert read(folder, size | {"do_normalize": False} | IMAGENET).mean == (0, 0, 0)
    assert read(folder, size).std == (1, 1, 1)
    assert read(folder, size | {"do_rescale": False}).scale == 1
    assert read(folder, size | {"do_normalize": True, "image_mean": 0.5, "image_std": 0.5}).mean == HALF
    assert read(folder, size | {"do_flip_channel_order": True}).channels == "bgr"
    shifted = read(folder, size | {"rescale_factor": 1 / 127.5, "rescale_offset": True})
    assert (255 * shifted.scale - shifted.mean[0]) / shifted.std[0] == pytest.approx(1)
    assert (0 * shifted.scale - shifted.mean[0]) / shifted.std[0] == pytest.approx(-1)
    twice = read(folder, size | {"image_processor_type": "EfficientNetImageProcessor", "include_top": True} | IMAGENET)
    assert twice.mean == (0.485, 0.456, 0.406)
    assert twice.std == pytest.approx((0.229**2, 0.224**2, 0.225**2))


@pytest.mark.parametrize(
    ("resample", "kind", "expected"),
    [
        (0, "", "nearest"),
        (1, "", "lanczos"),
        (2, "", "bilinear"),
        (3, "", "bicubic"),
        ("bilinear", "", "bilinear"),
        (None, "ViT", "bilinear"),
        (None, "CLIP", "bicubic"),
        (None, "Siglip", "bicubic"),
    ],
)
def test_interpolations(folder: Path, resample: object, kind: str, expected: str) -> None:
    config = {"image_processor_type": f"{kind}ImageProcessor", "resample": resample, "size": {"height": 8, "width": 8}}
    assert read(folder, config | {"crop_size": 8}).interpolation == expected


def test_timms_own_words(folder: Path) -> None:
    config = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": HALF, "std": HALF}
    timm = {"image_processor_type": "TimmWrapperImageProcessor"}
    recipe = read(folder, timm | {"pretrained_cfg": config})
    assert (*sizes(recipe), recipe.interpolation, recipe.mean) == (224, 224, "shortest", 248, "bicubic", HALF)
    assert sizes(read(folder, timm | {"pretrained_cfg": config | {"crop_mode": "squash"}})) == (
        224,
        224,
        "stretch",
        None,
    )
    with pytest.raises(UnsupportedArchitecture, match="crop_mode 'border'"):
        read(folder, timm | {"pretrained_cfg": config | {"crop_mode": "border"}})
    with pytest.raises(CorruptFile, match=r"pretrained_cfg\.input_size"):
        read(folder, timm | {"pretrained_cfg": config | {"input_size": None}})


def test_transformers_5_puts_it_into_another_file(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert read_image_recipe(folder) is None
    inner = CLIP | {"image_processor_type": "CLIPImageProcessorFast"}
    recipe = read(folder, {"image_processor": inner, "processor_class": "CLIPProcessor"}, "processor_config.json")
    assert sizes(recipe) == (224, 224, "shortest", 224)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"size": None}, CorruptFile, "size is 'None'"),
        ({"size": {"shortest_edge": 0}}, CorruptFile, "size is '0'"),
        ({"size": {"height": 224}}, CorruptFile, "size is 'None'"),
        ({"size": {"height": True, "width": 1}}, CorruptFile, r"size\.height is 'True'"),
        ({"size": 10**9}, CorruptFile, "size is '1000000000'"),
        (
            {"size": {"height": 256, "width": 256}},
            UnsupportedArchitecture,
            "stretched to 256x256 and then cut to 224x224",
        ),
        ({"crop_size": {"height": 224}}, CorruptFile, r"crop_size\.width"),
        ({"do_resize": False}, UnsupportedArchitecture, "do_resize is false"),
        ({"resample": 4}, UnsupportedArchitecture, "resample 4"),
        ({"resample": []}, UnsupportedArchitecture, r"resample \[\]"),
        ({"image_mean": None}, CorruptFile, "image_mean is 'None'"),
        ({"image_mean": [1, 2]}, CorruptFile, "image_mean"),
        ({"image_std": [1, 1, 0]}, CorruptFile, "image_std is '0'"),
        ({"image_std": ["a"] * 3}, CorruptFile, "image_std is 'a'"),
        ({"rescale_factor": -1}, CorruptFile, "rescale_factor"),
        ({"rescale_factor": float("nan")}, CorruptFile, "rescale_factor is 'nan'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    folder: Path, change: dict[str, object], error: type[ImportFailed], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read(folder, CLIP | change)
    assert "preprocessor_config.json" in caught.value.message


def test_a_graph_of_one_size_takes_no_other() -> None:
    recipe = ImageRecipe(height=800, width=800)
    assert fit_image(recipe, Port("p", 1, (None, 3, None, None)), Path("m")) == recipe
    fitted = fit_image(recipe, Port("p", 1, (1, 3, 480, 640)), Path("m"))
    assert fitted
    assert (fitted.height, fitted.width) == (480, 640)
    cut = ImageRecipe(height=224, width=224, resize="shortest")
    with pytest.raises(ImportFailed, match=r"takes pictures of 256x256.*makes 224x224"):
        fit_image(cut, Port("p", 1, (1, 3, 256, 256)), Path("m"))
    assert fit_image(None, Port("p", 1, (1, 3, 256, 256)), Path("m")) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge", "longest_edge"]), inner)
    ),
    max_leaves=5,
)
keys = st.sampled_from(
    [*CLIP, "rescale_factor", "do_rescale", "rescale_offset", "crop_pct", "image_processor_type", "pretrained_cfg"]
)


@given(st.dictionaries(keys, values))
def test_whatever_a_file_says_it_is_a_recipe_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, change: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with suppress(ImportFailed):
        recipe = read(folder, CLIP | change)
        assert recipe.height > 0
        assert all(recipe.std)
