import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm_server import __version__
from vmm_server.cli import COMMANDS, main
from vmm_server.cli.listener import bind, listen


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("VMM_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VMM_HOME", str(tmp_path))


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"vmm {__version__}\n"


def test_help_lists_every_command_and_explains_each(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-h"], ["--help"], ["help"]):
        assert main(words) == 0
        listed = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in listed
        assert summary in listed
        assert main(["help", name]) == 0
        explained = capsys.readouterr().out
        assert explained.startswith(f"Usage: vmm {name}")
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out == explained


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["nonsense"], 2, "there is no command 'nonsense'"),
        (["lst"], 2, "there is no command 'lst'. Did you mean 'list'?"),
        (["help", "rnu"], 2, "there is no command 'rnu'. Did you mean 'run'?"),
        (["delete", "smollm2"], 2, "there is no command 'delete'. Did you mean 'rm'?"),
        (["list", "--jsn"], 2, "Did you mean '--json'?"),
        (["help", "nonsense"], 2, "there is no command 'nonsense'"),
        (["pull"], 2, "Missing argument"),
        (["list", "--nonsense"], 2, "No such option"),
        (["serve", "--port", "many"], 2, "setting port"),
        (["serve", "--keep-alive", "soon"], 2, "setting keep_alive"),
        (["show", "nonsense"], 1, "model 'nonsense' not found"),
        (["rm", "nonsense"], 1, "model 'nonsense' not found"),
        (["pull", "nonsense"], 1, "nonsense"),
        (["pull", "file:./nonsense.gguf"], 1, "nonsense.gguf"),
        (["ps", "--host", "127.0.0.1:9"], 1, "no server answers at http://127.0.0.1:9"),
        (["stop", "smollm2", "--host", "127.0.0.1:9"], 1, "no server answers"),
    ],
)
def test_what_goes_wrong_is_told_on_stderr_with_a_hint(
    arguments: list[str], code: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    told = [line for line in output.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.partition(":")[0] for line in told] == ["error", "hint"]
    assert error in told[0]


def test_a_port_in_use_fails_before_anything_is_pulled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        listen(taken)
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert f"error: port {port} on 127.0.0.1 is in use\nhint: " in output.err
    assert "--port" in output.err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_is_a_header_or_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_a_runtime_is_not_imported_to_print_a_version() -> None:
    program = "import sys, vmm_server.cli; print(vmm_server.cli.main(['--version']), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"openvino", "onnx", "litestar", "numpy", "tokenizers", "huggingface_hub", "uvicorn", "rich", "httpx"}
    assert heavy & set(done.stdout.split()) == set()
