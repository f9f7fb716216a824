"""The lock files are current: they pin, with hashes and without addresses, what pyproject.toml asks for."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PROFILES = {  # lock file → the extras it covers
    "default": ["onnxruntime"],
    "dev": ["onnxruntime", "dev"],
    "ort-openvino": ["ort-openvino"],
}
LOCKS = [*PROFILES, "build"]
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ ;\\]+)(?: ;[^\\]+)?(?P<hashes> \\)?$")


def read_pins(profile: str) -> dict[str, set[str]]:
    """Versions pinned for each package; more than one where Python versions or systems differ."""
    pins: dict[str, set[str]] = defaultdict(set)
    for line in (ROOT / "requirements" / f"{profile}.txt").read_text().splitlines():
        if match := PIN.match(line):
            pins[match["name"]].add(match["version"])
    return pins


def direct_requirements(profile: str) -> list[Requirement]:
    if profile == "build":
        lines = (ROOT / "requirements" / "build.in").read_text().splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith("#")]
    extras = [line for extra in PROFILES[profile] for line in EXTRAS[extra]]
    if (own := ROOT / "requirements" / f"{profile}.in").is_file():
        extras += [line for line in own.read_text().splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]


@pytest.mark.parametrize("profile", LOCKS)
def test_every_requirement_is_pinned_to_a_version_it_allows(profile: str) -> None:
    pins = read_pins(profile)
    for requirement in direct_requirements(profile):
        versions = pins[canonicalize_name(requirement.name)]
        assert versions, f"{requirement.name} is not in requirements/{profile}.txt: run make lock"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement} but {version}: run make lock"


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_pinned_for_a_requirement_that_is_gone(profile: str) -> None:
    text = (ROOT / "requirements" / f"{profile}.txt").read_text()
    project = re.escape(PROJECT["name"])
    pinned_for_us = set(
        re.findall(
            rf"^([a-z0-9._-]+)==[^#]+?    # via(?:\n    #   [^\n]+)*?[\n ]+(?:#   )?(?:{project}|-r requirements/)",
            text,
            re.M,
        )
    )
    assert pinned_for_us == {canonicalize_name(requirement.name) for requirement in direct_requirements(profile)}


@pytest.mark.parametrize("profile", LOCKS)
def test_every_pin_has_a_hash_and_no_line_an_address(profile: str) -> None:
    lines = (ROOT / "requirements" / f"{profile}.txt").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert "://" not in line
        assert not re.search(r"(^| )(-i|-f|--\w*index\w*|--find-links)[ =]", line.replace("--no-emit-index-url", ""))
        if line and not line.startswith((" ", "#")):
            match = PIN.match(line)
            assert match, line
            assert match["hashes"], line
            assert following.startswith("    --hash=sha256:"), line


def test_the_profiles_agree() -> None:
    dev = read_pins("dev")
    for profile in ("default", "build"):
        for name, versions in read_pins(profile).items():
            assert profile == "build" or name in dev
            assert name not in dev or versions <= dev[name], name


def test_what_is_imported_is_asked_for_by_name() -> None:
    """Not left to a dependency's dependencies, which may drop it."""
    optional = [Requirement(line) for extra, lines in EXTRAS.items() if extra != "dev" for line in lines]
    declared = {canonicalize_name(each.name) for each in [*direct_requirements("default"), *optional]}
    distributions = packages_distributions()
    for path in [*(ROOT / "server").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        for module in imported_modules(path):
            if module not in sys.stdlib_module_names and module not in ("vmm_server", "vmm_adapters"):
                names = {canonicalize_name(name) for name in distributions.get(module, [module])}
                assert names & declared, f"{path}: {module} is not in pyproject.toml"


def imported_modules(path: Path) -> set[str]:
    """Top-level names of the absolute imports in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
