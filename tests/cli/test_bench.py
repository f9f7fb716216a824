"""`vmm bench`: what it prints, and what it asks the server for."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_server.cli import main
from vmm_server.cli.bench import measure, print_report
from vmm_server.cli.client import Client

PROFILE = {"decode_1": 69.44, "decode_8": 294.1, "prefill": 3749.2, "load_s": 1.94, "memory_bytes": 650_117_120}


def row(placement: str, profile: dict[str, float] | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"placement": placement, "profile": profile, "reason": reason}


def choice(work: str, placement: str) -> dict[str, str]:
    return {"work": work, "placement": placement}


REPORT: dict[str, Any] = {
    "model": "m:latest",
    "is_measured": False,
    "placements": [
        row("openvino/CPU", PROFILE),
        row("openvino/GPU.0", PROFILE | {"decode_1": 210.0, "decode_8": 6.06, "load_s": 0.0}),
        row("onnxruntime-genai/CPU"),
        row("onnxruntime-genai/CUDA.0", reason="cannot load 'm:latest': no driver"),
    ],
    "choices": [choice("1 stream", "openvino/CPU"), choice("16 streams", "openvino/CPU")],
}


def test_the_table_has_a_row_for_each_placement_and_the_reasons_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT)
    assert capsys.readouterr().out == (
        "PLACEMENT                   DECODE 1    DECODE 8    PREFILL 512    LOAD     MEMORY    CHOSEN FOR\n"
        "openvino/CPU                69.4        294         3749           1.9 s    650 MB    1 stream, 16 streams\n"
        "openvino/GPU.0              210         6.1         3749           0.0 s    650 MB    -\n"
        "onnxruntime-genai/CPU       -           -           -              -        -         -\n"
        "onnxruntime-genai/CUDA.0    failed      failed      failed         -        -         -\n"
        "\n"
        "onnxruntime-genai/CUDA.0: cannot load 'm:latest': no driver\n"
        "not all were measured, so rules of thumb decide: vmm bench m:latest --calibrate\n"
    )


def test_of_what_answers_whole_answers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("openvino/CPU", PROFILE), row("onnxruntime/CPU", reason="no driver")]
    print_report(REPORT | {"unit": "answers", "is_measured": True, "placements": rows})
    header, measured, failed, *_ = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "PLACEMENT ALONE 8 AT A TIME LOAD MEMORY CHOSEN FOR"
    assert measured.split()[1:4] == ["69.4", "294", "1.9"]
    assert failed.split()[1:4] == ["failed", "failed", "-"]


def test_where_all_was_measured_there_is_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT | {"is_measured": True, "placements": [row("openvino/CPU", PROFILE)]})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_where_nothing_was_measured_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT | {"placements": [row("openvino/CPU")]})
    expected = "nothing was measured of m:latest here: vmm bench m:latest --calibrate"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_progress_goes_to_stderr_and_the_wishes_to_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    bodies: list[dict[str, Any]] = []
    events = [
        {"status": "measuring openvino/GPU.0 (1 of 1)"},
        {"status": "failed openvino/GPU.0", "reason": "no memory", "profile": None},
        {"status": "success", **REPORT},
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/vmm/calibrate"
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content="\n".join(map(json.dumps, events)))

    with Client("http://127.0.0.1:11434", transport=httpx.MockTransport(answer)) as client:
        assert measure(client, "m", "GPU", None) == REPORT
    assert bodies == [{"model": "m", "device": "GPU", "stream": True}]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "measuring openvino/GPU.0 (1 of 1)\nfailed openvino/GPU.0: no memory\n"


@pytest.fixture
def home(no_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("VMM_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    return tmp_path


def test_a_wish_without_a_measurement_is_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "m", "--device", "CPU"]) == 2
    assert "--device and --backend say what to measure" in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_show(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VMM_DEFAULT_MODEL", "")
    assert main(["bench"]) == 1
    assert "no model is named" in capsys.readouterr().err
