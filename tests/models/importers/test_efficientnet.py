"""EfficientNet-Lite's checkpoint → a classifier."""

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

from vmm_adapters import catalog
from vmm_adapters.types import SessionOptions
from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder
from vmm_server.models.importers.efficientnet import import_efficientnet

DATA = Path(__file__).parents[2] / "data" / "pickled"
SOURCE = DATA / "efficientnet.pth"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.mark.runtime
@pytest.mark.parametrize("adapter", ["onnxruntime", "openvino"])
def test_the_graph_computes_what_pytorch_does(target: Path, adapter: str) -> None:
    import_efficientnet(SOURCE, target)
    session = catalog.load_session(adapter, target / "model.onnx", SessionOptions())
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    found = session.run({"pixel_values": pixels})["logits"]
    session.close()
    np.testing.assert_allclose(found, np.load(DATA / "logits.npz")["logits"], rtol=0, atol=1e-5)


def test_the_folder_says_how_it_is_used(target: Path) -> None:
    seen: list[tuple[int, int]] = []
    described = import_efficientnet(SOURCE, target, lambda done, total: seen.append((done, total)))
    assert described == describe_folder(target)
    assert (described.capabilities, described.family) == (("classification",), "efficientnet-lite")
    assert described.vision
    image = described.vision.image
    assert image
    assert (image.resize, image.shortest_edge, image.height, image.interpolation) == ("shortest", 256, 224, "bicubic")
    assert (image.scale, image.mean[0], image.std[0]) == (1, 127, 128)
    assert seen[-1][0] == seen[-1][1] == (target / "model.onnx.data").stat().st_size
    onnx.checker.check_model(target / "model.onnx", full_check=True)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        import_efficientnet(SOURCE, tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        (b"_blocks.3._project_conv", b"_blocks.3._project_cone", UnsupportedArchitecture, "the layer _project_cone"),
        (b"_blocks.3._bn1", b"_blocks.3._se1", UnsupportedArchitecture, "the layer _se1"),
        (b"_blocks.7.", b"_blocke.7.", UnsupportedArchitecture, "has 6 stages, 7 are expected"),
        (b"_blocks.", b"_blocke.", UnsupportedArchitecture, "is no EfficientNet"),
        (b"_conv_head", b"_conv_heap", CorruptFile, r"has no tensor _conv_head\.weight"),
        (b"_fc.bias", b"_fc.biaz", CorruptFile, r"has no tensor _fc\.bias"),
    ],
)
def test_other_networks_are_refused_before_anything_is_written(
    tmp_path: Path, target: Path, old: bytes, new: bytes, error: type[ImportFailed], words: str
) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(SOURCE.read_bytes().replace(old, new))
    with pytest.raises(error, match=words):
        import_efficientnet(path, target)
    assert not list(target.iterdir())


def test_what_is_no_network_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="is no EfficientNet"):
        import_efficientnet(DATA / "tensors.pth", target)
    (tmp_path / "m.pth").write_bytes(pickle.dumps([1]))
    with pytest.raises(ImportFailed, match="is pickled"):
        import_efficientnet(tmp_path / "m.pth", target)
    (target / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        import_efficientnet(SOURCE, target / "file")
