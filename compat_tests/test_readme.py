"""Every snippet of the README's first screen, of docs/clients.md and of docs/audio.md runs as it stands, against the
real server."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_SCREEN = (ROOT / "README.md").read_text().partition("\n## ")[0]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
SNIPPETS = FENCED.findall(FIRST_SCREEN)
CLIENTS = FENCED.findall((ROOT / "docs" / "clients.md").read_text())
AUDIO = FENCED.findall((ROOT / "docs" / "audio.md").read_text())
NODE = ROOT / "compat_tests" / "node"
DEFAULT_URL = "http://127.0.0.1:11434"


def run(base_url: str, *command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints, with the server found as its user would have it found."""
    environment = os.environ | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LLM_USER_PATH": str(ROOT / ".cache" / "llm"),
        "OLLAMA_HOST": base_url,
        "NO_PROXY": "*",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for patience_s in (20, 60, 300):
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=cwd,
                timeout=patience_s,
            )
            break
        except subprocess.TimeoutExpired:  # once in thirty answers, a model this small repeats itself for ever
            continue
    else:
        pytest.fail("no answer ended")
    assert done.returncode == 0, done.stderr
    return done.stdout


def looks_like_an_answer(text: str) -> bool:
    return len(text.split()) >= 10 and bool(re.search(r"\b(sky|blue|light|atmosphere|scatter\w*)\b", text))


def test_the_first_screen_has_one_of_each() -> None:
    first_words = [code.split()[0] for _, code in SNIPPETS]
    assert first_words == ["make", ".venv/bin/vmm", "curl", "from", "from", "from"]
    modules = [code.split()[1] for language, code in SNIPPETS if language == "python"]
    assert modules == ["openai", "ollama", "langchain_ollama"]


@pytest.mark.parametrize(("language", "code"), [snippet for snippet in SNIPPETS if not snippet[1].startswith("make")])
def test_a_snippet_gets_a_sensible_answer(language: str, code: str, base_url: str) -> None:
    code = code.replace(DEFAULT_URL, base_url).replace(".venv/bin/vmm", str(Path(sys.executable).with_name("vmm")))
    shell = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    output = run(base_url, *shell, code)
    assert looks_like_an_answer(output), output


@pytest.mark.parametrize(("language", "code"), CLIENTS)
def test_a_client_does_what_its_page_says(language: str, code: str, base_url: str, embedding_model: str) -> None:
    code = code.replace(DEFAULT_URL, base_url)
    if language == "js":
        if not (NODE / "node_modules" / "ollama").is_dir():
            pytest.skip("the clients for Node are not installed: make clients (needs Node and npm)")
        output = run(base_url, "node", "--input-type=module", "--eval", code, cwd=NODE)
    elif code.startswith(("import litellm", "import llm")):
        python = ROOT / ".venv-clients" / "bin" / "python"
        if not python.exists():
            pytest.skip("litellm and llm are not installed: make clients")
        output = run(base_url, python, "-c", code)
    else:
        output = run(base_url, sys.executable, "-c", code)
    promised = re.search(r"^print\(.*\)  # (.+)$", code, re.M)
    assert promised.group(1) in output if promised else looks_like_an_answer(output), output


@pytest.mark.parametrize(("language", "code"), AUDIO)
def test_speech_is_written_down_as_its_page_says(
    language: str, code: str, base_url: str, whisper: str, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "tests" / "data" / "media" / "0930.wav", tmp_path / "speech.wav")
    code = "\n".join(line for line in code.splitlines() if not line.startswith("vmm pull"))
    shell = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    output = run(base_url, *shell, code.replace(DEFAULT_URL, base_url), cwd=tmp_path)
    num_asked = sum(code.count(each) for each in ("create(", "curl ", "vmm transcribe"))
    assert output.count("made amiable himself") == num_asked


def test_the_readme_s_picture_and_sound_are_seen_and_heard(
    base_url: str, whisper: str, classifier: str, tmp_path: Path
) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Pictures and sound\n")[2].partition("\n## ")[0]
    ((_, code),) = FENCED.findall(section)
    media = ROOT / "tests" / "data" / "media"
    shutil.copy(media / "0930.wav", tmp_path / "speech.wav")
    shutil.copy(media / "chelsea.png", tmp_path / "cat.png")
    code = re.sub(r"^vmm pull \S+ && ", "", code, flags=re.M).replace(DEFAULT_URL, base_url)
    output = run(base_url, "bash", "-euo", "pipefail", "-c", code, cwd=tmp_path)
    assert output.count("made amiable himself") == 2
    assert output.count("tiger cat") == 2


def test_make_serve_is_a_target() -> None:
    (code,) = [code for _, code in SNIPPETS if code.startswith("make")]
    assert "vmm serve" in run(DEFAULT_URL, "make", "--dry-run", *code.split()[1:])
