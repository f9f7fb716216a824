"""OpenAI's and Ollama's clients for Node, by Node's own test runner."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"


@pytest.mark.parametrize("client", ["openai", "ollama"])
def test_client_for_node(client: str, base_url: str, model: str, scripted: str, embedding_model: str) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    if not (FOLDER / "node_modules" / client).is_dir():
        pytest.skip(f"the Node client {client} is not installed: make clients (needs npm)")
    environment = {
        **os.environ,
        "VMM_BASE_URL": base_url,
        "MODEL": model,
        "SCRIPTED": scripted,
        "EMBEDDING_MODEL": embedding_model,
        "NO_PROXY": "*",
    }
    file = f"{client}.test.mjs"
    command = ["node", "--test", "--test-reporter=tap", file]
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.M)
    assert passed
    source = (FOLDER / file).read_text()
    num_looped = len(re.findall(r"^for ", source, re.M))  # a loop is over two cases
    assert int(passed.group(1)) == len(re.findall(r"^\s*test\(", source, re.M)) + num_looped
