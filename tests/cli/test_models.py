"""The commands on models, on a store and with a server that has the same models."""

import hashlib
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm_server.cli import main
from vmm_server.cli.embedded import embedded_server
from vmm_server.cli.uploads import resolve_from
from vmm_server.errors import InvalidRequest
from vmm_server.models.modelfile import parse_modelfile
from vmm_server.models.registry import Registry
from vmm_server.models.store import Store
from vmm_server.settings import read_settings

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PIRATE = '''FROM echo
PARAMETER temperature 0.5
PARAMETER stop "Ahoy"
SYSTEM """You are a pirate.
You say "Ahoy"."""
MESSAGE user Who are you?
MESSAGE assistant A pirate.
LICENSE Do what you want.
'''

Vmm = Callable[..., str]


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """A server of the same home."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
            patch.delenv(name)
        with embedded_server(read_settings(home=str(home))) as (url, _):
            yield url


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VMM_HOME", str(home))
    monkeypatch.setenv("VMM_PORT", "9")  # where nobody answers
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    yield
    registry = Registry(Store(home / "models"))
    for model in registry.installed():
        if model.name != "echo:latest":
            registry.remove(model.name)


@pytest.fixture(params=["store", "server"])
def place(request: pytest.FixtureRequest, url: str, home: Path) -> list[str]:
    """The flags that say where to work."""
    return ["--home", str(home)] if request.param == "store" else ["--host", url]


@pytest.fixture
def vmm(place: list[str], capsys: pytest.CaptureFixture[str]) -> Vmm:
    """Runs a command there and returns what it printed on stdout."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*words, *place]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_a_model_of_a_modelfile(vmm: Vmm, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(PIRATE)
    assert vmm("create", "pirate") == ""
    written = parse_modelfile(vmm("show", "pirate", "--modelfile"))
    said = parse_modelfile(PIRATE)
    assert (written.system, written.messages, written.licenses) == (said.system, said.messages, said.licenses)
    assert written.parameters.items() >= said.parameters.items()
    assert vmm("show", "pirate", "--system") == 'You are a pirate.\nYou say "Ahoy".\n'
    assert vmm("show", "pirate", "--license") == "Do what you want.\n"
    assert f'{"stop":<30} "Ahoy"' in vmm("show", "pirate", "--parameters").splitlines()
    assert "messages" in vmm("show", "pirate", "--template")


def test_a_shown_modelfile_makes_the_same_model(vmm: Vmm, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(PIRATE)
    vmm("create", "pirate")
    shown = vmm("show", "pirate", "--modelfile")
    (tmp_path / "shown").write_text(shown)
    vmm("create", "again", "-f", "shown")
    assert vmm("show", "again", "--modelfile") == shown.replace("FROM pirate:latest", "FROM again:latest")


def test_a_model_of_a_file(vmm: Vmm, tmp_path: Path) -> None:
    tiny = runpy.run_path(str(DATA / "gguf_reference" / "tiny_models.py"))
    (tmp_path / "weights").mkdir()
    tiny["write_gguf"](tmp_path / "weights" / "tiny.gguf", tiny["MODELS"]["llama"])
    (tmp_path / "weights" / "Modelfile").write_text("FROM ./tiny.gguf\nSYSTEM Hi")
    vmm("create", "org/tiny:1", "-f", "weights/Modelfile")
    shown = vmm("show", "org/tiny:1", "-v")
    assert "  Metadata\n    general.architecture" in shown
    assert "    token_embd.weight" in shown
    (tmp_path / "folder").write_text("FROM weights")
    vmm("create", "tiny", "-f", "folder")
    digest = hashlib.sha256((tmp_path / "weights" / "tiny.gguf").read_bytes()).hexdigest()
    (tmp_path / "uploaded").write_text(f"FROM @sha256:{digest}")
    vmm("create", "tiny", "-f", "uploaded")
    assert [line.split()[0] for line in vmm("list").splitlines()] == [
        "NAME",
        "tiny:latest",
        "org/tiny:1",
        "echo:latest",
    ]


def test_list_copy_and_remove(vmm: Vmm) -> None:
    assert vmm("cp", "echo", "org/second:a") == "copied 'echo' to 'org/second:a'\n"
    header, newest, oldest = vmm("ls").splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert newest.startswith("org/second:a    eeeeeeeeeeee    1.0 KB    ")
    assert oldest.startswith("echo:latest     eeeeeeeeeeee    1.0 KB    ")
    assert [line.split()[0] for line in vmm("list", "ORG/").splitlines()] == ["NAME", "org/second:a"]
    assert [model["name"] for model in json.loads(vmm("list", "--json"))] == ["org/second:a", "echo:latest"]
    vmm("cp", "echo", "third")
    assert vmm("rm", "third", "org/second:a") == "deleted 'third'\ndeleted 'org/second:a'\n"
    assert len(vmm("list").splitlines()) == 2


def test_show_has_the_facts_in_sections(vmm: Vmm) -> None:
    lines = vmm("show", "echo").splitlines()
    assert lines[0] == "  Model"
    assert "    architecture      echo" in lines
    assert "    context length    4096" in lines
    assert lines[lines.index("  Capabilities") + 1] == "    completion"
    assert lines[lines.index("  Parameters") + 1] == "    temperature    0"
    shown = json.loads(vmm("show", "echo", "--json"))
    assert shown["details"]["family"] == "echo"
    assert json.loads(vmm("show", "echo", "--json", "--system")) == ""


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["cp", "nonsense", "a"], 1, "model 'nonsense' not found"),
        (["cp", "echo", "a b"], 1, "invalid"),
        (["cp", "echo"], 2, "Missing argument"),
        (["rm", "nonsense"], 1, "model 'nonsense' not found"),
        (["rm"], 2, "Missing argument"),
        (["show", "nonsense", "--modelfile"], 1, "model 'nonsense' not found"),
        (["show", "echo", "--modelfile", "--system"], 2, "only one of --license, --modelfile"),
        (["push", "echo"], 1, "the name says no server to push to"),
        (["push", "127.0.0.1:9/library/echo"], 1, "not found"),
        (["create", "x"], 1, "Modelfile: No such file or directory"),
        (["create", "x", "-f", "."], 1, "Is a directory"),
        (["create", "x", "-f", "bad"], 1, "line 2: RENDERER is not supported"),
        (["create", "x", "-f", "adapter"], 1, "LoRA adapters are not supported"),
        (["create", "x", "-f", "nowhere"], 1, "FROM: there is no ./nowhere.gguf"),
        (["create", "x", "-f", "unknown"], 1, "model 'nonsense' not found"),
        (["create", "x", "-f", "broken"], 1, "broken.gguf"),
        (["create", "a b", "-f", "good"], 1, "invalid model name"),
        (["create", "x", "-f", "good", "-q", "nonsense"], 1, "nonsense"),
    ],
)
def test_what_goes_wrong_is_told_on_stderr(
    words: list[str], code: int, error: str, place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    for name, text in {
        "good": "FROM echo",
        "bad": "FROM echo\nRENDERER qwen3",
        "adapter": "FROM echo\nADAPTER ./lora",
        "nowhere": "FROM ./nowhere.gguf",
        "unknown": "FROM nonsense",
        "broken": "FROM ./broken.gguf",
    }.items():
        (tmp_path / name).write_text(text)
    assert main([*words, *place]) == code
    output = capsys.readouterr()
    assert output.out == ""
    (told,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert error in told


def test_a_modelfile_on_standard_input(vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"FROM echo\nSYSTEM Hi")))
    vmm("create", "piped", "-f", "-")
    assert vmm("show", "piped", "--system") == "Hi\n"


def test_a_push_to_another_server(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    with embedded_server(read_settings(home=str(tmp_path / "there"))) as (there, _):
        name = f"{there.removeprefix('http://')}/library/echo:pushed"
        for flags in (["--home", str(home)], ["--host", url]):
            assert main(["cp", "echo", name, *flags]) == 0
            assert main(["push", name, *flags]) == 0, capsys.readouterr().err
            assert main(["show", "echo:pushed", "--host", there]) == 0
            assert main(["rm", "echo:pushed", "--host", there]) == 0


@pytest.mark.parametrize(
    ("variable", "value", "server"),
    [
        ("VMM_PORT", "9", "127.0.0.1:9"),
        ("OLLAMA_HOST", "127.0.0.1:9", "127.0.0.1:9"),
        ("OLLAMA_HOST", "http://vmm.invalid:9", "vmm.invalid:9"),
        ("vmm.toml", "port = 9", "127.0.0.1:9"),
    ],
)
def test_a_server_that_is_named_is_asked_wherever_it_is(
    variable: str,
    value: str,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    home: Path,
) -> None:
    monkeypatch.delenv("VMM_PORT")
    if variable == "vmm.toml":
        (tmp_path / "vmm.toml").write_text(value)
        monkeypatch.setenv("VMM_HOME", str(tmp_path))
    else:
        monkeypatch.setenv(variable, value)
    for words in (["list"], ["show", "echo"], ["cp", "echo", "x"], ["rm", "x"], ["pull", "x"], ["push", "a.b/c/x"]):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert f"error: no server answers at http://{server}\n" in told
        assert f"hint: start it with: vmm serve; without {variable}, or with --home, " in told
    assert main(["list", "--home", str(home)]) == 0, "a flag wins"


@pytest.mark.parametrize(("variable", "value"), [("VMM_PORT", "0"), ("VMM_HOST", ""), ("OLLAMA_HOST", "")])
def test_what_names_no_server_leaves_the_store(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VMM_PORT")
    monkeypatch.setenv(variable, value)
    assert main(["list"]) == 0
    assert "echo:latest" in capsys.readouterr().out
    assert main(["cp", "echo", "x"]) == 0
    assert main(["rm", "x"]) == 0


def test_a_server_of_this_machine_that_is_named_has_its_own_models(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    monkeypatch.setenv("VMM_PORT", url.rpartition(":")[2])
    assert main(["list"]) == 0
    assert "echo:latest" in capsys.readouterr().out
    monkeypatch.delenv("VMM_PORT")
    assert main(["list"]) == 0
    assert "echo:latest" not in capsys.readouterr().out


def test_files_of_this_machine_are_pulled_by_any_server(vmm: Vmm, tmp_path: Path) -> None:
    tiny = runpy.run_path(str(DATA / "gguf_reference" / "tiny_models.py"))
    (tmp_path / "Tiny Llama").mkdir()
    path = tmp_path / "Tiny Llama" / "My Tiny.gguf"
    tiny["write_gguf"](path, tiny["MODELS"]["llama"])
    vmm("pull", f"file:{path}")
    vmm("pull", "file:./Tiny Llama/My Tiny.gguf", "--name", "org/mine:1")
    (tmp_path / "Modelfile").write_text(f"FROM file:{path}\nSYSTEM Hi")
    vmm("create", "made")
    names = [line.split()[0] for line in vmm("list").splitlines()]
    assert {"my-tiny:latest", "org/mine:1", "made:latest"} < set(names)
    assert vmm("show", "made", "--system") == "Hi\n"
    vmm("pull", "file:./gone.gguf", code=1)


@pytest.mark.parametrize("word", ["signin", "signout"])
def test_there_is_no_account(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert f"error: there is no {word}: models run here" in capsys.readouterr().err


def test_other_names_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "ls"]) == 0
    assert "List the models that are installed" in capsys.readouterr().out
    assert main(["start", "--port", "many"]) == 2


EXAMPLES = re.findall(r"```modelfile\n(.*?)```", (ROOT / "docs" / "modelfile.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.partition("\n")[2][:20])
def test_the_examples_of_the_documentation(text: str, vmm: Vmm, tmp_path: Path) -> None:
    tiny = runpy.run_path(str(DATA / "gguf_reference" / "tiny_models.py"))
    tiny["write_gguf"](tmp_path / "my-model.Q4_K_M.gguf", tiny["MODELS"]["llama"])
    (tmp_path / "Modelfile").write_text(text)
    vmm("cp", "echo", "smollm2:135m")
    vmm("create", "example")
    shown, said = parse_modelfile(vmm("show", "example", "--modelfile")), parse_modelfile(text)
    assert shown.system == said.system
    assert shown.messages == said.messages
    assert shown.parameters.items() >= said.parameters.items()
    assert said.template in (None, shown.template)


def test_what_from_means(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"")
    (tmp_path / "folder" / ".cache").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "pytorch_model.bin", "README.md", ".cache/x", "sub/b.bin"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert resolve_from("w.gguf", tmp_path) == (None, {"w.gguf": tmp_path / "w.gguf"})
    assert resolve_from(str(tmp_path / "w.gguf"), Path("/")) == (None, {"w.gguf": tmp_path / "w.gguf"})
    source, files = resolve_from("folder", tmp_path)
    assert (source, sorted(files)) == (None, ["config.json", "model.safetensors", "sub/b.bin"])
    (tmp_path / "folder" / "w.gguf").write_bytes(b"")
    assert resolve_from("folder", tmp_path) == (None, {"w.gguf": tmp_path / "folder" / "w.gguf"})
    names = [f"s-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    (tmp_path / "split").mkdir()
    for name in names:
        (tmp_path / "split" / name).write_bytes(b"")
    for from_ in ("split", "split/s-00001-of-00003.gguf"):
        assert resolve_from(from_, tmp_path) == (None, {name: tmp_path / "split" / name for name in names})
    (tmp_path / "split" / names[1]).unlink()
    for from_ in ("split", "split/s-00001-of-00003.gguf"):
        with pytest.raises(InvalidRequest, match=f"FROM: {names[1]}: is missing, of 3 parts"):
            resolve_from(from_, tmp_path)
    for name in ("llama3.2", "hf.co/org/repo:Q8_0", "file:./w.gguf", "x" * 5000):
        assert resolve_from(name, tmp_path) == (name, {})
    for name in ("./gone", "../gone", "/gone/x", "~/gone", "gone.gguf", "empty"):
        with pytest.raises(InvalidRequest, match="FROM: there is no"):
            resolve_from(name, tmp_path)
