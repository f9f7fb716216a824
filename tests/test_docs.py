"""The documentation names everything there is: settings, flags, commands, routes and errors."""

import re
from pathlib import Path

import pytest
from pydantic import ByteSize

from vmm_adapters import errors as adapter_errors
from vmm_server import errors
from vmm_server.api.errors import ANSWERS
from vmm_server.app import create_app
from vmm_server.cli import COMMANDS
from vmm_server.cli.flags import variables
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ERRORS_PAGE = (ROOT / "docs" / "errors.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


def default_in_words(name: str) -> str:
    if name == "home":
        return "`~/.vmm`"
    default = Settings.model_fields[name].default
    if isinstance(default, KeepAlive):
        assert default.seconds is not None
        return f"`{default.seconds / 60:g}m`"
    if isinstance(default, ByteSize):
        return f"`{default.human_readable()}`"
    return f"`{default}`" if default not in (None, (), "") else "unset"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_settings_table_has_every_setting_as_it_is(name: str) -> None:
    names = ", ".join(f"`{variable}`" for variable in variables(name))
    description = Settings.model_fields[name].description
    assert f"| `{name}` | {names} | {default_in_words(name)} | {description} |\n" in SETTINGS


def test_the_settings_table_has_no_setting_that_is_gone() -> None:
    table = SETTINGS.partition("| Setting | Variables |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.M)) == sorted(Settings.model_fields)


def test_the_readme_has_the_main_settings_as_they_are() -> None:
    rows = re.findall(r"^\| `\w+` \| .*\n", README.partition("| Setting | Variables |")[2].partition("\n\n")[0], re.M)
    assert len(rows) > 8
    assert all(row in SETTINGS for row in rows)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert re.search(rf"`vmm {command}\b", README)


def test_every_route_is_in_the_readme(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    documented = set(re.findall(r"`(?:(GET|POST|DELETE|PUT) )(/[^` ]*)`", README))
    routes = {
        (method, re.sub(r":\w+}", "}", route.path_format))
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in ("HEAD", "OPTIONS") and route.path != "/schema/openapi.json"
    }
    assert documented == routes


def public_errors() -> list[type[Exception]]:
    found = [*vars(errors).values(), *vars(adapter_errors).values()]
    return [item for item in found if isinstance(item, type) and issubclass(item, Exception)]


@pytest.mark.parametrize("error", public_errors())
def test_every_error_is_explained_with_its_status(error: type[Exception]) -> None:
    status = next(ANSWERS[base].status for base in error.__mro__ if base in ANSWERS)
    assert re.search(rf"^\| `{error.__name__}` \| {status} \| \S", ERRORS_PAGE, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 250
