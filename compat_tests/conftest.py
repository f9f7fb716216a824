"""The server under test: the one at `VMM_BASE_URL`, else a `vmm serve` of this environment on a free port.

These tests know a base URL and nothing else of VMM. Our own server keeps its models in `.cache/vmm`, so that they are
fetched once. Where the default model is too small to be clever, they ask a scripted one, which is in `scripted/`: a
server at `VMM_BASE_URL` has it after `vmm pull file:compat_tests/scripted --name scripted`.

`third_party/` and `deploy/` run in an environment of their own (`make clients`), whose packages `.venv` cannot hold.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 400  # a first start fetches 98 MB
STOP_TIMEOUT_S = 60
PULLS = (
    *(("file:compat_tests/scripted", "--name", "scripted"), ("all-minilm",), ("whisper:tiny.en",), ("silero-vad",)),
    *(
        ("file:tests/fixtures/detector.onnx", "--name", "shapes"),
        ("file:tests/fixtures/clip-small", "--name", "small-clip"),
    ),
    ("efficientnet:lite0",),
)
"""Models that the tests ask for beside the default one."""

TIKTOKEN_DIR = next(ROOT.glob(".venv-clients/lib/*/site-packages/litellm/litellm_core_utils/tokenizers"), None)
"""OpenAI's cl100k_base, where litellm is installed; for a server at `VMM_BASE_URL`, its setting `tiktoken_dir`."""

collect_ignore = [] if importlib.util.find_spec("langchain_tests") else ["third_party", "deploy"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "compat_tests"):
            item.add_marker(pytest.mark.runtime)


class Command:
    """`vmm` of this environment, with settings from nowhere but its home folder."""

    def __init__(self, home: Path) -> None:
        places = (Path(sys.executable).with_name("vmm"), ROOT / ".venv" / "bin" / "vmm")
        self._command = next(path for path in places if path.exists())
        self._home = home
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VMM_", "OLLAMA_"))
        } | {"VMM_HOME": str(home)}

    def run(self, *words: str) -> str:
        """What it prints; it must succeed."""
        command = [self._command, *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"vmm {' '.join(words)} failed:\n{done.stderr}"
        return done.stdout.strip()

    @contextmanager
    def serving(self, *flags: str, start_timeout_s: float = START_TIMEOUT_S, **variables: str) -> Iterator[str]:
        """The base URL of a server. Its end is a test too: SIGTERM must leave with 0."""
        log_path = self._home / "compat_tests.log"
        with log_path.open("w") as log:
            server = subprocess.Popen(
                [self._command, "serve", "--port", "0", "--calibrate", "off", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment | variables,
                text=True,
            )
        assert server.stdout is not None
        watchdog = threading.Timer(start_timeout_s, server.kill)
        watchdog.start()
        try:
            first_line = server.stdout.readline()
            watchdog.cancel()
            found = re.search(r"http://[^ ,]+", first_line)
            assert found, f"the server did not start:\n{log_path.read_text()}"
            yield found.group()
            server.send_signal(signal.SIGTERM)
            status = server.wait(STOP_TIMEOUT_S)
            assert status == 0, f"the server left with {status}:\n{log_path.read_text()[-4000:]}"
        finally:
            watchdog.cancel()
            server.kill()
            server.stdout.close()
            server.wait()


@pytest.fixture(scope="session")
def vmm_in() -> Callable[[Path], Command]:
    """`vmm` with a home folder."""
    return Command


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """Where the server is, without a slash at the end."""
    if url := os.environ.get("VMM_BASE_URL"):
        yield url.rstrip("/")
        return
    home = ROOT / ".cache" / "vmm"
    home.mkdir(parents=True, exist_ok=True)
    vmm = Command(home)
    for pull in PULLS:
        vmm.run("pull", *pull)
    with vmm.serving(**({"TIKTOKEN_CACHE_DIR": str(TIKTOKEN_DIR)} if TIKTOKEN_DIR else {})) as url:
        yield url


@pytest.fixture(scope="session")
def default_model() -> str:
    """The default model, by its short name."""
    return "smollm2"


@pytest.fixture(scope="session")
def model(default_model: str) -> str:
    """The same, where no class of LangChain's has another `model`."""
    return default_model


@pytest.fixture(scope="session")
def installed(base_url: str) -> list[str]:
    """The names of the models that the server has."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{base_url}/v1/models") as reply:
        return [entry["id"] for entry in json.load(reply)["data"]]


@pytest.fixture(scope="session")
def scripted(installed: list[str]) -> str:
    """The scripted model: it calls tools, thinks and answers as `scripted/script.json` says, and echoes otherwise."""
    if "scripted:latest" not in installed:
        pytest.skip("the server does not have the scripted model: vmm pull file:compat_tests/scripted --name scripted")
    return "scripted"


@pytest.fixture(scope="session")
def embedding_model(installed: list[str]) -> str:
    """The default embedding model."""
    if not any(name.startswith("all-minilm") for name in installed):
        pytest.skip("the server does not have the embedding model: vmm pull all-minilm")
    return "all-minilm"


@pytest.fixture(scope="session")
def whisper(installed: list[str]) -> str:
    """A small model that hears."""
    if "whisper:tiny.en" not in installed:
        pytest.skip("the server does not have a model that hears: vmm pull whisper:tiny.en")
    return "whisper:tiny.en"


@pytest.fixture(scope="session")
def shapes(installed: list[str]) -> str:
    """A small detector of shapes."""
    if "shapes:latest" not in installed:
        pytest.skip("the server does not have the detector: vmm pull file:tests/fixtures/detector.onnx --name shapes")
    return "shapes"


@pytest.fixture(scope="session")
def small_clip(installed: list[str]) -> str:
    """A small CLIP that knows shapes."""
    if "small-clip:latest" not in installed:
        pytest.skip("the server does not have the CLIP: vmm pull file:tests/fixtures/clip-small --name small-clip")
    return "small-clip"


@pytest.fixture(scope="session")
def classifier(installed: list[str]) -> str:
    """A model that names what photographs show."""
    if "efficientnet:lite0" not in installed:
        pytest.skip("the server does not have the classifier: vmm pull efficientnet:lite0")
    return "efficientnet:lite0"


@pytest.fixture(scope="session")
def vad(installed: list[str]) -> str:
    """The model that finds speech."""
    if not any(name.startswith("silero-vad") for name in installed):
        pytest.skip("the server does not have the model that finds speech: vmm pull silero-vad")
    return "silero-vad"


@pytest.fixture(scope="session")
def weights(base_url: str) -> Path:
    """The GGUF file of the default model, as our own server fetched it."""
    if os.environ.get("VMM_BASE_URL"):
        pytest.skip("only a server of these tests' own has its files where they can be found")
    for path in (ROOT / ".cache" / "vmm" / "models" / "blobs").glob("sha256-*"):
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return path
    raise AssertionError("the default model's file is gone")


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's official client. It does not try again: a test that fails once has failed."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0) as client:
        yield client
