"""Packages that matter, from folders of metadata alone."""

from pathlib import Path

import pytest

from vmm_adapters.probing.packages import installed_packages, plug_in_modules


def write_package(folder: Path, name: str, version: str, *files: str) -> None:
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_packages_are_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_package(first, "OnnxRuntime_EP_Test", "1.5", "onnxruntime_ep_test/__init__.py", "onnxruntime_ep_test/x.so")
    write_package(first, "onnxruntime-migraphx", "1.27.1", "onnxruntime/__init__.py", "onnxruntime/capi/__init__.py")
    write_package(first, "unrelated", "1.0", "onnxruntime_unrelated/__init__.py")
    write_package(second, "onnxruntime-migraphx", "1.0.0")
    (second / "openvino_left-1.0.dist-info").mkdir()  # as an uninstall leaves it
    monkeypatch.syspath_prepend(second)
    monkeypatch.syspath_prepend(first)
    found = installed_packages()
    assert found["onnxruntime-ep-test"] == "1.5"
    assert found["onnxruntime-migraphx"] == "1.27.1"
    assert "unrelated" not in found
    assert list(found) == sorted(found)
    assert "onnxruntime_ep_test" in plug_in_modules()
    assert not {"onnxruntime", "onnxruntime_genai", "onnxruntime_unrelated"} & set(plug_in_modules())
