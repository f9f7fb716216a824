"""OpenAI's client for Node, by Node's own test runner."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"


def test_openai_for_node(base_url: str, model: str, scripted: str, embedding_model: str) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("OpenAI's Node client is not installed: make clients (needs npm)")
    environment = {
        **os.environ,
        "VMM_BASE_URL": base_url,
        "MODEL": model,
        "SCRIPTED": scripted,
        "EMBEDDING_MODEL": embedding_model,
        "NO_PROXY": "*",
    }
    command = ["node", "--test", "--test-reporter=tap", "openai.test.mjs"]
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.M)
    assert passed
    assert int(passed.group(1)) == len(re.findall(r"^\s*test\(", (FOLDER / "openai.test.mjs").read_text(), re.M)) + 1
