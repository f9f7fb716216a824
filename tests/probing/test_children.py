"""Probes that crash, hang, print nonsense or print without end: each is a problem in words, and back in time."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic

import pytest

from vmm_adapters.device import DeviceKind
from vmm_adapters.probing import probe, providers_to_try
from vmm_adapters.probing.children import MAX_OUTPUT_BYTES, Outcome, Probe, last_words, run_probes
from vmm_adapters.probing.findings import Accelerator, NvidiaDriver, OnnxRuntime, OpenVINOCore, ProviderTrial

WORKS = 'print(\'{"providers": ["CPUExecutionProvider"]}\')'
BAD: dict[str, tuple[str, str]] = {
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the test crashed (SIGSEGV)"),
    "fails": ("raise OSError('libze_loader.so: no such file')", "exit code 1: OSError: libze_loader.so: no such file"),
    "ends early": ("import os; os._exit(3)", "the test failed with exit code 3"),
    "says nothing": ("pass", "the test gave no answer that can be read"),
    "prints no JSON": ("print('Segmentation fault')", "the test gave no answer that can be read"),
    "prints other JSON": ("print('{\"providers\": 7}')", "that can be read: providers: Input should be"),
    "prints bytes": (r"import os; os.write(1, b'\xff\x00\xfe')", "the test gave no answer that can be read"),
    "prints 10 MB": ("print('x' * 10_000_000)", "the test printed more than 1 MB"),
    "complains 10 MB": ("import sys; sys.stderr.write('x' * 10_000_000)", "the test printed more than 1 MB"),
}


def scripted(code: str, finding: type = OnnxRuntime, name: str = "the test") -> Probe:
    return Probe(name, (sys.executable, "-c", code), finding)


def run(code: str, timeout_s: float = 30.0) -> Outcome:
    return run_probes([scripted(code)], timeout_s)[0]


def test_an_answer_is_read() -> None:
    assert run(WORKS).finding == OnnxRuntime(("CPUExecutionProvider",))


@pytest.mark.parametrize("name", BAD)
def test_what_a_probe_does_wrong_is_a_problem_in_words(name: str) -> None:
    code, words = BAD[name]
    outcome = run(code)
    assert outcome.finding is None
    assert words in (outcome.problem or "")
    assert len(outcome.problem or "") < 500


def test_a_probe_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = (
        f"import os, subprocess, sys, time; held = os.open({str(fifo)!r}, os.O_WRONLY); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], pass_fds=[held]); time.sleep(600)"
    )
    began = monotonic()
    ended: list[bytes] = []

    def watch() -> None:
        ended.append(fifo.read_bytes())  # ends when both are gone

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert run(code, timeout_s=1.5).problem == "the test did not answer within 1.5 s"
    watcher.join(10)
    assert ended == [b""]
    assert monotonic() - began < 20


def test_a_probe_ends_with_whoever_asked(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    hangs = f"import os, time; held = os.open({str(fifo)!r}, os.O_WRONLY); time.sleep(600)"
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from vmm_adapters.probing.children import Probe, run_probes\n"
        "from vmm_adapters.probing.findings import OnnxRuntime\n"
        f"run_probes([Probe('it', (sys.executable, '-c', {hangs!r}), OnnxRuntime)], 600.0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as asking, fifo.open("rb") as alive:
        asking.send_signal(signal.SIGINT)
        assert alive.read() == b""  # the probe is gone
        assert asking.wait(20) != 0


def test_a_stranger_that_holds_the_pipe_is_not_waited_for() -> None:
    child = "import time; time.sleep(6)"
    code = (
        f"import subprocess, sys; {WORKS}; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    )
    began = monotonic()
    assert run(code, timeout_s=0.5).problem in (None, "the test did not answer within 0.5 s")  # on a busy machine
    assert monotonic() - began < 5


def test_an_answer_counts_although_a_child_of_the_probe_stays() -> None:
    child = "import time; time.sleep(600)"
    code = f"import subprocess, sys; {WORKS}; subprocess.Popen([sys.executable, '-c', {child!r}])"
    assert run(code, timeout_s=1.5).finding is not None


def test_what_a_library_prints_and_how_it_ends_spoils_no_answer() -> None:
    code = (
        "import atexit, os\n"
        "from vmm_adapters.probes.answering import answer\n"
        "from vmm_adapters.probing.findings import OnnxRuntime\n"
        "def ask():\n    os.write(1, b'loading the driver')\n    print('more')\n    return OnnxRuntime(('A',))\n"
        "atexit.register(os.abort)\n"
        "answer(ask)"
    )
    outcome = run(code)
    assert outcome.finding == OnnxRuntime(("A",))
    assert outcome.last_words.startswith("loading the driver")


def test_a_program_that_is_not_there_is_a_problem() -> None:
    outcome = run_probes([Probe("the test", ("/nonexistent/program",), OnnxRuntime)], 5.0)[0]
    assert "the test could not be asked" in (outcome.problem or "")


def test_probes_run_at_the_same_time_and_see_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    pipes = [tmp_path / "one", tmp_path / "two"]
    for pipe in pipes:
        os.mkfifo(pipe)
    monkeypatch.setenv("VMM_TEST_PIPES", " ".join(map(str, pipes)))
    begin = "import os; pipes = os.environ['VMM_TEST_PIPES'].split()"
    first = scripted(f"{begin}; open(pipes[0], 'w').close(); open(pipes[1]).read(); {WORKS}")
    second = scripted(f"{begin}; open(pipes[0]).read(); open(pipes[1], 'w').close(); {WORKS}")
    assert [outcome.problem for outcome in run_probes([first, second], 30.0)] == [None, None]


def test_the_last_line_of_a_log_is_what_a_reason_is_made_of() -> None:
    log = (
        b"2026-01-01 10:00:00.123 [E:onnxruntime:Default, provider_bridge_ort.cc:2195 TryGet] Failed to load library "
        b"libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file\n\n"
    )
    assert last_words(log).startswith("Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt")
    coloured = b"\x1b[0;93m2026-11-22 03:37:11.84 [W:onnxruntime:Default, x.cc:1 F] Require CUDA 13.*\x1b[m\n\x1b[m\n"
    assert last_words(coloured) == "Require CUDA 13.*"
    assert last_words(b"") == ""
    assert len(last_words(b"y" * MAX_OUTPUT_BYTES)) <= 300


def test_a_machine_is_known_although_every_runtime_breaks() -> None:
    crash = "import os; os.abort()"
    machine = probe(
        30.0,
        probes=[
            scripted(crash, OpenVINOCore, "openvino"),
            scripted(crash, OnnxRuntime, "onnxruntime"),
            scripted("print('rubbish')", NvidiaDriver, "NVIDIA's driver"),
        ],
    )
    assert [device.kind for device in machine.devices] == [DeviceKind.CPU]
    reasons = {use.adapter: use.reason for use in machine.devices[0].uses}
    assert reasons["openvino"] == "openvino crashed (SIGABRT)"
    assert reasons["onnxruntime"] == "onnxruntime crashed (SIGABRT)"
    assert len(machine.problems) == 3
    assert machine.devices[0].use("openvino") is None


def test_providers_are_tried_and_those_that_do_not_start_say_why() -> None:
    gpu = '[{"kind": "gpu", "vendor": "NVIDIA", "name": "A GPU", "number": "0", "driver": "470.82"}]'
    log = "[E:onnxruntime:Default, x.cc:1 F] libcudnn.so.9: cannot open shared object file"
    answers = {
        "CUDAExecutionProvider": f"import sys; sys.stderr.write({log!r}); "
        'print(\'{"provider": "CUDAExecutionProvider", "works": false}\')',
        "TensorrtExecutionProvider": "import os; os.abort()",
        "DmlExecutionProvider": 'print(\'{"provider": "DmlExecutionProvider", "works": true}\')',
    }
    machine = probe(
        60.0,
        probes=[
            scripted(f"import json; print(json.dumps({{'providers': {[*answers, 'CPUExecutionProvider']}}}))"),
            scripted(f"print('{{\"accelerators\": {gpu}}}')", NvidiaDriver),
        ],
        trial=lambda provider: scripted(answers[provider], ProviderTrial, provider),
    )
    cpu, gpu_device = machine.devices
    use = gpu_device.use("onnxruntime")
    assert use is not None
    assert (use.spelling, use.providers) == ("CUDA.0", ("DmlExecutionProvider",))
    assert machine.problems == ("TensorrtExecutionProvider crashed (SIGABRT)",)
    only_cuda = probe(
        60.0,
        probes=[
            scripted('print(\'{"providers": ["CUDAExecutionProvider"]}\')'),
            scripted(f"print('{{\"accelerators\": {gpu}}}')", NvidiaDriver),
        ],
        trial=lambda provider: scripted(answers[provider], ProviderTrial, provider),
    )
    reason = next(use.reason for use in only_cuda.devices[1].uses if use.adapter == "onnxruntime")
    assert reason == (
        "CUDAExecutionProvider does not start: libcudnn.so.9: cannot open shared object file; "
        "driver 470.82 is too old for CUDA 12: install 525 or newer"
    )
    assert cpu.name == "CPU"


def test_providers_with_nothing_to_run_on_are_not_tried() -> None:
    built_in = ["TensorrtExecutionProvider", "DmlExecutionProvider", "NewExecutionProvider", "CPUExecutionProvider"]
    assert providers_to_try(built_in, []) == ["NewExecutionProvider"]
    amd = Accelerator(DeviceKind.GPU, "AMD", "A GPU")
    assert providers_to_try(built_in, [amd]) == ["DmlExecutionProvider", "NewExecutionProvider"]
    nvidia = Accelerator(DeviceKind.GPU, "NVIDIA", "A GPU")
    assert providers_to_try(built_in, [nvidia]) == built_in[:3]


@pytest.mark.runtime
def test_this_machine_can_run_models() -> None:
    machine = probe(60.0)
    cpu = machine.devices[0]
    assert (cpu.name, cpu.kind) == ("CPU", DeviceKind.CPU)
    assert machine.packages["openvino"]
    openvino, onnxruntime = cpu.use("openvino"), cpu.use("onnxruntime")
    assert openvino is not None
    assert openvino.spelling == "CPU"
    assert onnxruntime is not None
    assert onnxruntime.providers[-1] == "CPUExecutionProvider"
    assert not machine.problems
