"""`vmm quantize`, and what other commands do with variants, on an echo model: what is refused, told and removed."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_server.cli import main
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.names import ModelName
from vmm_server.models.store import InstalledModel, Store, Variant
from vmm_server.models.variants import with_variant

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledModel:
    """`m` with a variant, in a home of its own; no server answers."""
    for name in ("VMM_HOST", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VMM_PORT", "9")
    monkeypatch.setattr(sys, "stdin", StringIO())
    store = Store(tmp_path / "models")
    store.prepare()
    folders = [store.models_dir / name for name in ("own", "small")]
    for folder in folders:
        folder.mkdir()
        (folder / "note.txt").write_text("a")
    described = InstalledModel(
        name="m",
        aliases=(),
        digest="e" * 64,
        size_bytes=2_000_000,
        modified_at=datetime.now(UTC),
        adapter="openvino",
        folder=folders[0],
        format="onnx",
        family="llama",
        parameter_size="1M",
        quantization="F16",
        context_length=64,
        embedding_length=None,
        capabilities=("completion",),
        license=None,
        title="M",
        system=None,
        sampling=SamplingDefaults(),
        source="file:/nowhere",
    )
    store.install(described)
    variant = Variant("int8", folders[1], 1_000_000, "d" * 64, "onnx", "int8", "", 1.004)
    return store.set_variants(ModelName.parse("m"), lambda now: with_variant(now, now, variant))


@pytest.fixture
def run(model: InstalledModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in that home; what it printed on stdout and stderr."""

    def command(*words: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([*words, "--home", str(tmp_path)]) == code
        found = capsys.readouterr()
        return found.out, found.err

    return command


def test_show_lists_them(run: Run) -> None:
    assert "  Variants\n    int8    1.0 MB    perplexity +0.4%\n" in run("show", "m")[0]
    assert '"perplexity_ratio": 1.004' in run("show", "m", "--json")[0]


def test_rm_takes_one_away(run: Run, model: InstalledModel, tmp_path: Path) -> None:
    compiled = compiled_dir(tmp_path / "cache", model, "int8")
    compiled.mkdir(parents=True)
    assert run("rm", "m", "--variant", "int8")[0] == "deleted int8 of 'm'\n"
    assert not model.folders["int8"].exists()
    assert not compiled.exists()
    assert model.folder.exists()
    assert "it has: none" in run("rm", "m", "--variant", "int8", code=1)[1]


def test_what_cannot_be_quantised_is_told(run: Run, tmp_path: Path) -> None:
    assert "m has no model.onnx that could be quantised" in run("quantize", "m", "--to", "int8", code=1)[1]
    assert "model 'x' not found" in run("quantize", "x", "--to", "int8", code=1)[1]
    assert "'int2' is not one of 'int8', 'int4'" in run("quantize", "m", "--to", "int2", code=2)[1]
    assert "No such file" in run("quantize", "m", "--to", "int8", "--text", str(tmp_path / "none"), code=1)[1]


@pytest.mark.parametrize(
    "words", [("quantize", "m", "--to", "int8"), ("rm", "m", "--variant", "int8"), ("pull", "m", "--variant", "int8")]
)
def test_a_server_that_is_named_is_told_apart(words: tuple[str, ...], run: Run, model: InstalledModel) -> None:
    errors = run(*words, "--host", "127.0.0.1:9", code=1)[1]
    assert "works on models of this machine alone; a server is named" in errors
    assert "leave out --host" in errors
    assert model.folders["int8"].exists()


def test_pull_says_which_variants_there_are(run: Run) -> None:
    errors = run("pull", "smollm2:135m", "--variant", "int4", code=1)[1]
    assert "no 'int4' of smollm2:135m can be pulled; its card lists: none" in errors
    assert "hint: vmm quantize smollm2:135m --to int8 or int4 makes one" in errors
