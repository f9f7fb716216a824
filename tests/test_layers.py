"""Who may import whom: `cli → app → api → inference → models, engine, prompt → vmm_adapters' contract`.

Every import counts: at the top, under `TYPE_CHECKING`, inside a function.
"""

import ast
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = {"types", "base", "errors", "card", "device", "catalog", "probing"}
BASE = ("errors", "requests", "durations", "settings", "callers")
"""Modules of `vmm_server` that every other one may import."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "callers": (),
    "keys": (*BASE, "models"),
    "admission": (*BASE, "keys"),
    "requests": (),
    "durations": ("requests",),
    "ollama_environment": (),
    "settings": ("errors", "requests", "durations", "ollama_environment"),
    "logs": ("callers", "request_note"),
    "tracing": ("errors", "observed"),
    "request_note": ("callers", "observed", "tracing"),
    "otlp": ("observed", "tracing", "__init__"),
    "prompt": (*BASE, "prompt", "engine"),
    "media": (*BASE, "media"),
    "vision": (*BASE, "vision", "media"),
    "audio": (*BASE, "audio"),
    "engine": (*BASE, "engine", "audio"),
    "models": (*BASE, "models", "engine", "prompt", "vision", "audio"),
    "one_shot": (*BASE, "models", "observed"),
    "vision_requests": (*BASE, "vision"),
    "seeing": (
        *BASE,
        "observed",
        "one_shot",
        "media",
        "vision",
        "vision_requests",
        "models",
        "engine",
        "encoder_inputs",
        "embedding",
    ),
    "transcription": (*BASE, "observed", "one_shot", "audio", "models", "engine"),
    "speaking": (*BASE, "observed", "one_shot", "audio", "models"),
    "database": ("errors",),
    "response_store": ("errors", "database"),
    "file_store": ("errors", "database"),
    "batch_lines": ("errors",),
    "batch_store": ("errors", "database", "file_store", "batch_lines"),
    "batch_worker": (*BASE, "batch_lines", "batch_store", "file_store"),
    "batch_owners": (*BASE, "keys", "admission"),
    "batches": (*BASE, "batch_worker", "batch_store", "file_store"),
    "reloading": (*BASE, "keys", "models"),
    "prompting": (*BASE, "models", "engine", "prompt", "media"),
    "cl100k": ("errors",),
    "encoder_inputs": (*BASE, "cl100k", "models"),
    "embedding": (*BASE, "observed", "cl100k", "encoder_inputs", "models", "engine", "one_shot"),
    "observed": ("errors", "engine", "models"),
    "completion": (*BASE, "observed", "models", "engine", "prompt", "prompting"),
    "inference": (*BASE, "observed", "completion", "models", "engine", "prompt", "prompting", "media"),
    "metrics": (*BASE, "admission", "models", "engine", "observed", "metrics", "__init__"),
    "api": (
        *BASE,
        *("request_note", "tracing"),
        *("keys", "admission", "reloading"),
        *("logs", "metrics", "response_store", "completion", "inference", "embedding", "models", "engine", "api"),
        *("file_store", "batch_store", "batches"),
        *("one_shot", "seeing", "transcription", "speaking", "media", "vision", "vision_requests", "audio"),
    ),
    "parts": (
        *BASE,
        *("observed", "request_note", "tracing"),
        *("keys", "admission", "reloading"),
        *("logs", "metrics", "response_store", "cl100k", "inference", "embedding", "models", "api"),
        *("database", "file_store", "batch_store", "batch_owners", "batches"),
        *("one_shot", "seeing", "transcription", "speaking", "media", "vision", "audio"),
    ),
    "lifecycle": (*BASE, "api", "audio", "parts"),
    "app": (*BASE, "api", "media", "lifecycle", "parts", "models"),
    "cli": (*BASE, "keys", "reloading", "logs", "ollama_environment", "models", "app", "lifecycle", "parts", "cli"),
    "__main__": ("cli",),
    "__init__": (),
}
HTTP = {"litestar", "starlette", "sse_starlette", "uvicorn"}
HTTP_ALLOWED = {"litestar": {"api", "app"}, "starlette": {"api"}, "sse_starlette": {"api"}, "uvicorn": {"cli"}}
PURE = (
    *(
        f"engine.{name}"
        for name in ("scheduler", "step", "block_pool", "fairness", "turns", "forecast", "sequence", "stopping")
    ),
    "prompt.truncation",
)
DIALECTS = ("anthropic", "ollama", "openai", "vmm")
PURE_API = (
    "anthropic.convert",
    "anthropic.render",
    "arguments",
    "gathered",
    "placement",
    "tools",
    "ollama.convert",
    "ollama.render",
    "openai.choices",
    "openai.constraints",
    "openai.convert",
    "openai.messages",
    "openai.tools",
    "openai.render",
    "openai.render_chat",
    "openai.render_completion",
    *(
        f"openai.responses.{name}"
        for name in ("conversation", "convert", "items", "logprobs", "output", "render", "tools")
    ),
    *(f"openai.audio.{name}" for name in ("convert", "render")),
    "openai.tokens.wire",
    *(f"vision.{name}" for name in ("convert", "masks", "render")),
)
IMPURE = {"asyncio", "threading", "time", "socket", "queue", "concurrent"}
CONTRACT_PACKAGES = {"numpy", "pydantic", "vmm_adapters", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    """One import statement's target, absolute."""

    source: str
    target: str
    line: int
    local: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    source = module_name(path, root)
    left: deque[tuple[ast.AST, bool]] = deque([(ast.parse(path.read_text(encoding="utf-8")), False)])
    while left:
        node, is_local = left.popleft()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source, alias.name, node.lineno, is_local)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out"
            for alias in node.names:
                yield Import(source, f"{node.module}.{alias.name}", node.lineno, is_local)
        is_inside = is_local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        left.extend((each, is_inside) for each in ast.iter_child_nodes(node) if not isinstance(each, ast.expr))


def all_imports(package: str) -> list[Import]:
    root = ROOT / package
    return [found for path in sorted(root.rglob("*.py")) for found in imports_of(path, root)]


SERVER = all_imports("server")
ADAPTERS = all_imports("adapters")


def layer(name: str) -> str:
    """`vmm_server.api.openai.chat` → `api`; the package itself is `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def names_a_layer(target: str) -> bool:
    """`vmm_server.__version__` and `vmm_server` itself belong to no layer."""
    return target.startswith("vmm_server.") and layer(target) in MAY_IMPORT and layer(target) != "__init__"


def test_there_is_something_to_check() -> None:
    assert {layer(found.source) for found in SERVER} >= {"api", "engine", "models", "settings"}
    assert len(ADAPTERS) > 10


def test_every_module_of_the_server_has_a_layer() -> None:
    package = ROOT / "server" / "vmm_server"
    names = {path.stem if path.is_file() else path.name for path in package.iterdir() if path.suffix in (".py", "")}
    assert names - {"__pycache__"} <= MAY_IMPORT.keys()


def test_imports_go_one_way_down() -> None:
    wrong = [
        found
        for found in SERVER
        if names_a_layer(found.target) and layer(found.target) not in MAY_IMPORT[layer(found.source)]
    ]
    assert not wrong, "\n".join(map(str, wrong))


def dialect(name: str) -> str | None:
    """`vmm_server.api.openai.chat` → `openai`; `None` for what the dialects share."""
    parts = name.split(".")
    return parts[2] if parts[1:2] == ["api"] and len(parts) > 2 and parts[2] in DIALECTS else None


def test_the_dialects_never_meet() -> None:
    wrong = [
        found
        for found in SERVER
        if layer(found.source) == "api" and dialect(found.target) not in (None, dialect(found.source))
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert {dialect(found.source) for found in SERVER} == {None, *DIALECTS}


def test_only_the_edge_knows_http() -> None:
    wrong = [
        found
        for found in SERVER + ADAPTERS
        if (package := found.target.split(".")[0]) in HTTP and layer(found.source) not in HTTP_ALLOWED[package]
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_server_knows_only_the_contract_of_the_adapters() -> None:
    wrong = [
        found
        for found in SERVER
        if found.target.startswith("vmm_adapters.") and found.target.split(".")[1] not in CONTRACT
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_adapters_never_import_the_server() -> None:
    wrong = [found for found in ADAPTERS if found.target.split(".")[0] == "vmm_server"]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_contract_imports_no_runtime_and_no_concrete_adapter() -> None:
    contract = [found for found in ADAPTERS if layer(found.source) in CONTRACT | {"__init__"}]
    wrong = [found for found in contract if found.target.split(".")[0] not in CONTRACT_PACKAGES]
    wrong += [
        found
        for found in contract
        if found.target.startswith("vmm_adapters.") and found.target.split(".")[1] not in CONTRACT
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_compilers_are_for_processes_of_their_own() -> None:
    """LLVM is 60 MB that a server would keep."""
    compilers = ("numba", "llvmlite", "vmm_adapters.cpu.codegen")
    allowed = ("vmm_adapters.cpu.codegen", "vmm_adapters.probes.kernel_compiler")
    wrong = [
        found
        for found in (*SERVER, *ADAPTERS)
        if found.target.startswith(compilers) and not found.source.startswith(allowed)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_imports_inside_functions_are_for_optional_runtimes_alone() -> None:
    wrong = [found for found in SERVER if found.local]
    wrong += [found for found in ADAPTERS if found.local and layer(found.source) in CONTRACT - {"catalog"}]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_threads_clocks_or_sockets(module: str) -> None:
    wrong = [
        found for found in SERVER if found.source == f"vmm_server.{module}" and found.target.split(".")[0] in IMPURE
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("module", PURE_API)
def test_dialects_convert_without_io(module: str) -> None:
    source = f"vmm_server.api.{module}"
    found = [one for one in SERVER if one.source == source]
    assert found, f"{source} is gone"
    wrong = [one for one in found if one.target.split(".")[0] in IMPURE | HTTP]
    assert not wrong, "\n".join(map(str, wrong))


def test_compat_tests_know_only_a_base_url() -> None:
    root = ROOT / "compat_tests"
    found = [one for path in sorted(root.rglob("*.py")) for one in imports_of(path, root)]
    wrong = [one for one in found if one.target.split(".")[0] in ("vmm_server", "vmm_adapters")]
    assert not wrong, "\n".join(map(str, wrong))
