"""The image's and compose's files: what a linter finds, and whether what they name is there."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose"


def services() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return read


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_what_the_image_is_built_of_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE.read_text(), re.M)
    paths = [path for line in copied for path in line.split()]
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists()
        assert f"!{path.split('/')[0]}" in ignored, path


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = re.findall(r"^USER (.*)$", DOCKERFILE.read_text(), re.M)
    assert users == ["10001"], "a number, which Kubernetes can tell from root"


def test_compose_mounts_what_is_there() -> None:
    volumes = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["volumes"]
    for service in services().values():
        for mounted in service.get("volumes", ()):
            source = mounted.split(":")[0]
            assert source in volumes or (COMPOSE / source).exists(), source


def test_compose_opens_nothing_to_the_network() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("path", sorted(COMPOSE.rglob("*.yaml")), ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


def test_prometheus_asks_the_service_and_grafana_prometheus() -> None:
    (job,) = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == "vmm:11434"
    source = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert {"vmm", "prometheus"} <= services().keys()
