"""Ollama's variables: the addresses of its own tests, what they set, and what is said of the others."""

import re
from pathlib import Path

import pytest

from vmm_server.errors import SettingsError
from vmm_server.ollama_environment import (
    OF_CLIENTS,
    VARIABLES,
    WITHOUT_EFFECT,
    ollama_settings,
    parse_host,
    without_effect,
)
from vmm_server.requests import KeepAlive
from vmm_server.settings import read_settings

PAGE = (Path(__file__).parents[1] / "docs" / "environment.md").read_text()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:5", "http://1.2.3.4:5"),
        (":5", "http://0.0.0.0:5"),  # to Go, every address
        (":", "http://0.0.0.0:11434"),
        ("1.2.3.4:", "http://1.2.3.4:11434"),
        ("example.com", "http://example.com:11434"),
        ("example.com:80", "http://example.com:80"),
        ("http://example.com", "http://example.com:80"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
        ("HTTPS://example.com", "https://example.com:443"),
        ("https://example.com/path", "https://example.com:443/path"),
        ("https://example.com:1234/path/to/", "https://example.com:1234/path/to"),
        ("example.com/path", "http://example.com:11434/path"),
        ("other://example.com", "http://example.com:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:5", "http://[::1]:5"),
        ("[::1]:5/path", "http://[::1]:5/path"),
        ("http://[::1]", "http://[::1]:80"),
        ("::1", "http://[::1]:11434"),
        ("::", "http://[::]:11434"),
        ("1.2.3.4:x", "http://1.2.3.4:11434"),
        ("1.2.3.4:-1", "http://1.2.3.4:11434"),
        ("https://1.2.3.4:65536", "https://1.2.3.4:443"),
        ("1.2.3.4:0", "http://1.2.3.4:0"),
        ("1.2.3.4:٣", "http://1.2.3.4:11434"),
        (' " 1.2.3.4:99999 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
    ],
)
def test_an_address_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert parse_host(text).url == url


def test_each_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch, no_environment: None) -> None:
    for name, value in {
        "OLLAMA_HOST": "https://[::]:8000/proxied",
        "OLLAMA_KEEP_ALIVE": " '1h30m' ",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_MAX_QUEUE": "7",
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "OLLAMA_ORIGINS": '"https://a.example/, chrome-extension://*,,*.b.example"',
        "OLLAMA_KV_CACHE_TYPE": "Q8_0",
        "OLLAMA_DEBUG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert (settings.host, settings.port, settings.context_length) == ("::", 8000, 4096)
    assert (settings.keep_alive, settings.max_queue, settings.max_loaded_models) == (KeepAlive(5400), 7, 2)
    assert settings.origins == ("https://a.example", "chrome-extension://*", "*.b.example")
    assert (settings.kv_cache_type, settings.log_level) == ("q8_0", "debug")


@pytest.mark.parametrize(
    ("value", "seconds"), [("-1", None), ("-1s", None), ("0", 0), ("300", 300), ("5m", 300), ("1.5h", 5400)]
)
def test_durations_are_gos(value: str, seconds: float | None) -> None:
    settings = read_settings(keep_alive=ollama_settings({"OLLAMA_KEEP_ALIVE": value})["keep_alive"])
    assert settings.keep_alive == KeepAlive(seconds)


def test_empty_ones_and_zeros_leave_the_default() -> None:
    assert ollama_settings(dict.fromkeys(VARIABLES.values(), ' "" ')) == {}
    assert ollama_settings({"OLLAMA_CONTEXT_LENGTH": "0"}) == {}


@pytest.mark.parametrize(
    ("value", "level"),
    [("1", "debug"), ("true", "debug"), ("T", "debug"), ("2", "debug"), ("0", None), ("false", None), ("x", None)],
)
def test_debug_is_a_truth_or_a_number(value: str, level: str | None) -> None:
    assert ollama_settings({"OLLAMA_DEBUG": value}).get("log_level") == level


def test_ours_win_and_the_file_loses(monkeypatch: pytest.MonkeyPatch, no_environment: None, tmp_path: Path) -> None:
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    (tmp_path / "vmm.toml").write_text("max_queue = 1\nport = 1\norigins = ['https://file.example']\n")
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "2")
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.1:2")
    settings = read_settings()
    assert (settings.max_queue, settings.host, settings.port) == (2, "10.0.0.1", 2)
    assert settings.origins == ("https://file.example",)
    monkeypatch.setenv("VMM_MAX_QUEUE", "3")
    monkeypatch.setenv("VMM_PORT", "3")
    settings = read_settings()
    assert (settings.max_queue, settings.host, settings.port) == (3, "10.0.0.1", 3)
    monkeypatch.delenv("VMM_PORT")
    monkeypatch.setenv("VMM_HOST", "127.0.0.9")
    settings = read_settings(max_queue="4")
    assert (settings.max_queue, settings.host, settings.port) == (4, "127.0.0.9", 1)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OLLAMA_KEEP_ALIVE", "5x", "setting keep_alive (OLLAMA_KEEP_ALIVE): '5x' is not a duration"),
        ("OLLAMA_KV_CACHE_TYPE", "q4_0", "setting kv_cache_type (OLLAMA_KV_CACHE_TYPE): Input should be 'auto', 'f16'"),
        ("OLLAMA_MAX_QUEUE", "many", "setting max_queue (OLLAMA_MAX_QUEUE): "),
        (
            "OLLAMA_ORIGINS",
            "a.example",
            "setting origins (OLLAMA_ORIGINS): 'a.example' is no origin; write https://a.ex",
        ),
        (
            "VMM_ALLOWED_HOSTS",
            "http://a.example",
            "setting allowed_hosts (VMM_ALLOWED_HOSTS): 'http://a.example' is no host name",
        ),
        ("VMM_HOST", "127.0.0.1:11434", "setting host (VMM_HOST): '127.0.0.1:11434' is no host name; write it without"),
        ("VMM_HOST", "http://localhost", "without scheme, port and brackets"),
        ("VMM_ALLOWED_HOSTS", "cafe.de:80", "without scheme, port and brackets"),
        ("VMM_ALLOWED_HOSTS", "[2606:4700::1111]", "without scheme, port and brackets"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, no_environment: None
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=re.escape(words)):
        read_settings()


def test_ollamas_folder_of_models_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, no_environment: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("VMM_HOME", str(tmp_path))
    assert read_settings().store_dir == tmp_path / "models"


def test_what_has_no_effect_is_said_once() -> None:
    said = list(
        without_effect(
            {
                "OLLAMA_NUM_PARALLEL": "4",
                "OLLAMA_MODELS": "/models",
                "OLLAMA_NOPRUNE": "",
                "OLLAMA_NOHISTORY": "1",
                "OLLAMA_KEEP_ALIVE": "5m",
                "OLLAMA_HOST": "1.2.3.4",
                "OLLAMA_COLOUR": "red",
                "PATH": "/bin",
            }
        )
    )
    assert [line.partition(" has no effect: ")[0] for line in said] == [
        "OLLAMA_COLOUR",
        "OLLAMA_MODELS",
        "OLLAMA_NUM_PARALLEL",
    ]
    assert said[0].endswith(": it is not known here")
    assert "VMM_MODELS_DIR" in said[1]
    for address in ("https://a.example", "a.example/path"):
        assert list(without_effect({"OLLAMA_HOST": address})) == [
            "OLLAMA_HOST: scheme and path are for clients; this server speaks plain HTTP, at the root"
        ]


def test_the_page_has_every_variable_with_what_is_said_of_it() -> None:
    for setting, variable in VARIABLES.items():
        assert re.search(rf"^\| `{variable}` \| [^|]*`{setting}`", PAGE, re.M)
    for variable, reason in WITHOUT_EFFECT.items():
        (row,) = re.findall(rf"^\|.*`{variable}`.*$", PAGE, re.M)
        assert row.replace("`", "").endswith(f"| {reason} |")
    assert not OF_CLIENTS & {*WITHOUT_EFFECT, *VARIABLES.values()}
