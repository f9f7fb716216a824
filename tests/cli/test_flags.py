import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vmm_server.cli.flags import flag_name, setting_options, variables
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("VMM_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VMM_HOME", str(tmp_path))


def parse(*arguments: str) -> Settings:
    """What `serve` makes of its flags."""

    @click.command()
    @setting_options()
    def command(**flags: str | None) -> Settings:
        return read_settings(**flags)

    settings = command.main(list(arguments), standalone_mode=False)
    assert isinstance(settings, Settings)
    return settings


VALUES = {
    "home": "/somewhere",
    "models_dir": "/models",
    "host": "0.0.0.0",
    "port": "8080",
    "origins": "https://a.example",
    "allowed_hosts": "a.example",
    "default_model": "mine",
    "device": "GPU",
    "backend": "openvino",
    "calibrate": "off",
    "num_threads": "3",
    "memory_budget": "3GB",
    "kv_cache_size": "2GB",
    "context_length": "1024",
    "max_batched_tokens": "64",
    "kv_cache_type": "q8_0",
    "vision_precision": "bf16",
    "max_sequences": "5",
    "max_queue": "6",
    "speculation": "off",
    "draft_model": "small",
    "max_loaded_models": "7",
    "keep_alive": "2m",
    "load_timeout_s": "70",
    "shutdown_timeout_s": "1.5",
    "image_urls": "off",
    "max_audio_bytes": "9MB",
    "max_audio_seconds": "2h",
    "response_store_size": "1MB",
    "tiktoken_dir": "/encodings",
    "card_dirs": f"/a{os.pathsep}/b",
    "ollama_version": "9.9.9",
    "log_level": "debug",
    "allow_anonymous": "true",
    "keys_file": "/keys.toml",
    "tls_certificate": "/server.pem",
    "tls_key": "/server.key",
    "max_pending": "9",
    "client_timeout_s": "30",
    "max_body_size": "9MB",
    "file_store_size": "8MB",
    "log_format": "json",
    "log_prompts": "true",
    "otlp_endpoint": "http://localhost:4318",
}


def test_every_setting_is_tried_here() -> None:
    assert VALUES.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_sets_its_setting_and_nothing_else(name: str) -> None:
    changed, default = parse(flag_name(name), VALUES[name]), parse()
    assert getattr(changed, name) != getattr(default, name)
    assert changed.model_dump(exclude={name}) == default.model_dump(exclude={name})


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("host", "port", "log_level")])
def test_a_variable_means_the_same_as_the_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parse(flag_name(name), VALUES[name])
    for variable in variables(name):
        with monkeypatch.context() as patch:
            patch.setenv(variable, VALUES[name])
            assert parse() == expected, variable


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_wins_over_every_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parse(flag_name(name), VALUES[name])
    others = {
        "home": "/else",
        "memory_budget": "9MB",
        "kv_cache_size": "9MB",
        "kv_cache_type": "f16",
        "keep_alive": "9s",
        "log_level": "error",
        "host": "::1",
    }
    for variable in variables(name):
        monkeypatch.setenv(variable, others.get(name, "99"))
    assert parse(flag_name(name), VALUES[name]).model_dump() == expected.model_dump() | (
        {"port": 11434} if name == "host" else {"host": "99"} if name == "port" else {}
    )


def test_lists_and_durations_keep_their_form() -> None:
    settings = parse("--card-dirs", f"/a{os.pathsep}/b", "--keep-alive", "-1")
    assert settings.card_dirs == (Path("/a"), Path("/b"))
    assert settings.keep_alive == KeepAlive(None)


def test_help_explains_every_setting_with_its_variables() -> None:
    @click.command()
    @setting_options()
    def command(**flags: str | None) -> None: ...

    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for name, field in Settings.model_fields.items():
        assert f"{flag_name(name)} " in text
        assert f"{field.description} [{', '.join(variables(name))}]" in text
