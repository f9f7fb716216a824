from collections.abc import Callable
from pathlib import Path

from vmm_server.models.compiled import compiled_dir, delete_compiled
from vmm_server.models.store import InstalledModel


def test_only_what_no_installed_model_uses_goes(tmp_path: Path, install: Callable[..., InstalledModel]) -> None:
    kept, gone = install("kept:latest", digest="a" * 64), install("gone:latest", digest="b" * 64)
    for model in (kept, gone):
        folder = compiled_dir(tmp_path / "cache", model)
        folder.mkdir(parents=True)
        (folder / "decoder.bin").write_bytes(b"x")
    (tmp_path / "cache" / "notes").mkdir()
    delete_compiled(tmp_path / "cache", keep=[kept])
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {kept.digest, "notes"}


def test_without_a_cache_there_is_nothing_to_do(tmp_path: Path) -> None:
    delete_compiled(tmp_path / "none", keep=())
    assert list(tmp_path.iterdir()) == []
