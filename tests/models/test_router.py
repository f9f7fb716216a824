import pytest

from vmm_server.errors import ModelLoadFailed
from vmm_server.models.router import Placement, placements

DEVICES = ("CPU", "GPU.0", "GPU.1", "NPU")
SMALL, LARGE = 100 << 20, 4 << 30


def test_small_models_try_the_cpu_first_and_large_ones_a_gpu() -> None:
    assert [place.device for place in placements("openvino", SMALL, DEVICES, "auto")] == ["CPU", "GPU.0", "GPU.1"]
    assert [place.device for place in placements("openvino", LARGE, DEVICES, "auto")] == ["GPU.0", "GPU.1", "CPU"]


def test_a_device_asked_for_is_the_only_one_tried() -> None:
    assert placements("openvino", LARGE, DEVICES, "cpu") == (Placement("openvino", "CPU"),)
    assert [place.device for place in placements("openvino", SMALL, DEVICES, "GPU")] == ["GPU.0", "GPU.1"]
    assert [place.device for place in placements("openvino", SMALL, DEVICES, "NPU")] == ["NPU"]


def test_a_missing_device_names_what_there_is() -> None:
    with pytest.raises(ModelLoadFailed, match=r"no device 'GPU' for openvino; there is CPU"):
        placements("openvino", SMALL, ("CPU",), "GPU")
