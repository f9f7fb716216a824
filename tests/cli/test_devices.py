"""`vmm devices` and `vmm doctor`, on this machine and on one that is written down."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from vmm_adapters.device import AdapterUse, Machine
from vmm_server.api.vmm.examples import MACHINE
from vmm_server.cli import main
from vmm_server.cli.client import Client
from vmm_server.cli.devices import print_devices
from vmm_server.cli.doctor import find_installation, find_setup, write_error
from vmm_server.models.machine import describe
from vmm_server.settings import Settings


@pytest.fixture
def home(no_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    monkeypatch.setenv("VMM_PORT", str(port))
    return tmp_path


def test_the_table_has_a_row_for_every_device_and_the_reasons_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_devices({**describe(MACHINE), "problems": ["openvino crashed (SIGSEGV)"]})
    header, cpu, cuda, _, *details = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "DEVICE", "MEMORY", "DRIVER", "USED", "BY"]
    assert cpu.startswith("CPU ")
    assert "69 GB, 63 GB free" in cpu
    assert cuda.split("    ")[-1] == "onnxruntime"
    assert "CPU: 16 cores, 32 threads; avx2 avx512f avx512_vnni amx_int8 amx_bf16" in details
    assert "CUDA.0: onnxruntime with CUDAExecutionProvider" in details
    assert "CUDA.0: not openvino: OpenVINO lists Intel's GPUs only" in details
    assert details[-1] == "problem: openvino crashed (SIGSEGV)"


def test_an_adapter_that_is_slow_on_a_device_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    slow = AdapterUse("cpu", "CPU", is_slow=True)
    print_devices(describe(Machine((replace(MACHINE.devices[0], uses=(slow,)),))))
    assert capsys.readouterr().out.splitlines()[-1].startswith("CPU: cpu is slow here")


def test_a_server_is_asked_for_its_machine() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/vmm/devices"
        return httpx.Response(200, json=describe(MACHINE))

    with Client("http://127.0.0.1:11434", transport=httpx.MockTransport(answer)) as client:
        assert client.devices() == json.loads(json.dumps(describe(MACHINE)))


def test_a_server_that_is_not_there_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--host", "127.0.0.1:9"]) == 1
    assert "no server answers" in capsys.readouterr().err


@pytest.mark.runtime
def test_devices_of_this_machine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["devices"][0]["name"] == "CPU"
    assert shown["packages"]["openvino"]
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("CPU ")
    assert list(home.iterdir()) == []


@pytest.mark.runtime
def test_the_doctor_finds_what_was_broken_on_purpose(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = os.environ["VMM_PORT"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(port)))
        monkeypatch.setenv("VMM_DEVICE", "NPU.7")
        assert main(["doctor", "--json"]) == 1
    broken = [each["message"] for each in json.loads(capsys.readouterr().out)["findings"]]
    assert "setting device: there is no NPU.7 here" in broken
    assert [message for message in broken if port in message]
    monkeypatch.setenv("VMM_DEVICE", "auto")
    monkeypatch.setenv("VMM_MAX_QUEUE", "-1")
    assert main(["doctor"]) == 1
    assert "broken: setting max_queue" in capsys.readouterr().out


def test_what_is_installed_is_known_with_what_it_requires() -> None:
    found = find_installation({"vmm-server": "0.1.0", "no-such-package": "1"})
    assert any(text.startswith("numpy") for text in found.requirements["vmm-server"])
    assert found.packages["numpy"].startswith("2.")
    assert found.packages["vmm-server"] == "0.1.0"


def test_what_the_settings_come_to_is_found_without_writing_anything(
    tmp_path: Path, no_environment: None, settings: Callable[..., Settings]
) -> None:
    setup = find_setup(settings(home=tmp_path / "a" / "b", port=0))
    assert (setup.home_error, setup.models_dir_error, setup.address_error) == (None, None, None)
    assert setup.free_disk_bytes
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    broken = find_setup(settings(home=tmp_path / "file" / "home", port=0))
    assert broken.home_error == broken.models_dir_error == "Not a directory"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_of_somebody_else_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert write_error(tmp_path / "models") == "Permission denied"
