"""Settings: defaults < vmm.toml < `VMM_*` (and the `OLLAMA_*` that mean the same) < command-line flags."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, AliasChoices, BeforeValidator, ByteSize, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vmm_server.durations import parse_duration, parse_keep_alive
from vmm_server.errors import SettingsError
from vmm_server.ollama_environment import DEFAULT_PORT, VARIABLES, ollama_settings
from vmm_server.requests import KeepAlive

ImageUrls = Literal["public", "any", "off"]
"""Which images are fetched; `settings.image_urls`."""


SETTINGS_FILE = "vmm.toml"
"""In the home folder."""


def _keep_alive(value: object) -> object:
    return parse_keep_alive(value) if isinstance(value, str | int | float) else value


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _path_list(value: object) -> object:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _home(value: object) -> Path:
    return Path(str(value) or "~/.vmm").expanduser().absolute()


def default_home() -> Path:
    """Where everything VMM keeps lies: `VMM_HOME`, else `~/.vmm`."""
    return _home(os.environ.get("VMM_HOME", ""))


def _comma_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [entry for part in value.split(",") if (entry := part.strip().strip("\"'").strip())]


def _origin(value: str) -> str:
    """An origin has neither path nor final slash; `*` stands for anything."""
    origin = value if value.endswith("://") else value.removesuffix("/")
    if "*" not in origin and "://" not in origin and origin != "null":
        raise ValueError(f"{value!r} is no origin; write https://{value}, or *")
    return origin


def _host_name(value: str) -> str:
    if re.fullmatch(r"[\w.*-]+", value, re.ASCII):
        return value
    try:
        return str(ip_address(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is no host name; write it without scheme, port and brackets") from error


def _own_host(value: str) -> str:
    """Empty, it names none, which is enough for what needs no server."""
    return value and _host_name(value)


class Settings(BaseSettings):
    """One value a line in the README's settings table; each docstring is its help text."""

    model_config = SettingsConfigDict(
        env_prefix="VMM_", extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True
    )

    home: Annotated[Path, BeforeValidator(_home)] = Field(default_factory=default_home)
    """Folder for models, caches and vmm.toml."""
    models_dir: Path | None = None
    """Folder for model files, when not `home`."""
    host: Annotated[str, AfterValidator(_own_host)] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """Port to listen on; 0 takes a free one."""
    origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_comma_list)] = ()
    """Web origins that may ask from a browser, beside this machine's: https://a.example, chrome-extension://*, or *."""
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_comma_list)
    ] = ()
    """Host names that a server on a loopback address goes by, beside this machine's: ai.example, *.example, or *."""
    allow_anonymous: bool = False
    """Whether a server that other machines can reach may run without keys: then everybody there may do everything."""
    keys_file: Path | None = None
    """File with keys, when not keys.toml in `home`: one that a secret store mounts."""
    tls_certificate: Path | None = None
    """PEM file of the certificate to serve https with, and of those that it depends on; unset serves plain http."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    default_model: str = "smollm2:135m"
    """Model that `vmm serve` pulls and loads before it says ready; empty loads none."""
    device: str = "auto"
    """Device to run on: auto, or one that `vmm devices` lists, such as CPU, GPU or CUDA.0."""
    backend: Literal["auto", "cpu", "openvino", "onnxruntime-genai", "openvino-genai", "onnxruntime"] = "auto"
    """Runtime to use: auto measures which one is the fastest."""
    calibrate: Literal["auto", "off"] = "auto"
    """Whether models are measured where they can run, while nobody asks for anything: auto or off."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """Compute threads; unset leaves the choice to the runtime."""
    memory_budget: ByteSize | None = None
    """Memory for weights and KV blocks of all loaded models; unset is half of the machine's."""
    kv_cache_size: ByteSize | None = None
    """Memory for one model's KV blocks; unset is an eighth of the memory budget."""
    kv_cache_type: Annotated[Literal["auto", "f16", "q8_0"], BeforeValidator(_lower)] = "auto"
    """What keys and values are kept in: f16, q8_0 (8 bits, half the memory), or auto, which is the backend's choice."""
    vision_precision: Literal["f32", "bf16"] = "f32"
    """What pictures are computed in on a processor: f32, or bf16 where it has that, which is faster on OpenVINO."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Limit on prompt plus answer, in tokens; unset is the model's own."""
    max_batched_tokens: Annotated[int, Field(ge=32)] = 512
    """New tokens one engine step computes at most: larger fills prompts faster, smaller keeps streams smoother."""
    max_sequences: Annotated[int, Field(ge=1)] = 64
    """Generations that run at the same time on one model; more wait."""
    max_queue: Annotated[int, Field(ge=0)] = 512
    """Generations that may wait for one model before new ones get a 503."""
    max_pending: Annotated[int, Field(ge=1)] = 1024
    """Requests under way, of all models together, before new ones get a 503."""
    speculation: Literal["auto", "off"] = "auto"
    """Whether tokens that were said before are guessed and checked several at a time, where that pays: auto or off."""
    draft_model: str = ""
    """Model that guesses for larger ones of the same vocabulary, where nothing was said before; empty for none."""
    max_loaded_models: Annotated[int, Field(ge=0)] = 0
    """Models in memory at the same time; 0 lets the memory budget decide."""
    keep_alive: Annotated[KeepAlive, NoDecode, BeforeValidator(_keep_alive)] = KeepAlive(300.0)
    """How long an idle model stays loaded: 5m, 0, or -1 for ever."""
    load_timeout_s: Annotated[float, BeforeValidator(_seconds)] = 300.0
    """How long a request waits for its model to be loaded: seconds or 5m; 0 for ever."""
    shutdown_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running generations get to finish after SIGTERM."""
    client_timeout_s: Annotated[float, Field(ge=0, le=86400), BeforeValidator(_seconds)] = 60.0
    """Seconds that a client may keep us waiting for its request, or leave an answer unread; 0 for ever."""
    max_body_size: Annotated[ByteSize, Field(ge=2**16)] = ByteSize(64 * 2**20)
    """Size that a request's body may have, but for uploads of files: JSON, and forms with images."""
    image_urls: ImageUrls = "public"
    """Which image URLs are fetched: public, those of the public internet; any, also your network's; off, none."""
    max_audio_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(512 * 2**20)
    """Size that an uploaded sound file may have."""
    max_audio_seconds: Annotated[float, Field(gt=0), BeforeValidator(_seconds)] = 14400.0
    """How long a sound that is transcribed may be: seconds or 4h."""
    response_store_size: Annotated[ByteSize, Field(ge=0)] = ByteSize(2**30)
    """Disk space for the responses that /v1/responses keeps for later; 0 keeps none."""
    file_store_size: Annotated[ByteSize, Field(ge=0)] = ByteSize(10 * 2**30)
    """Disk space for the files of /v1/files and the batches that read and write them; 0 keeps none."""
    tiktoken_dir: Path | None = Field(None, validation_alias=AliasChoices("VMM_TIKTOKEN_DIR", "TIKTOKEN_CACHE_DIR"))
    """Folder with OpenAI's cl100k_base.tiktoken, to read token ids sent to /v1/embeddings; unset refuses them."""
    card_dirs: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_path_list)] = ()
    """Folders with model cards of your own; they win over the built-in ones. Separated as in PATH."""
    ollama_version: str = "0.13.0"
    """What /api/version answers: Ollama's clients switch features on by it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged to stderr."""
    log_format: Literal["human", "json"] = "human"
    """How lines of the log look: human, or json, one object a line."""
    log_prompts: bool = False
    """Whether prompts and answers of text models are logged, at the level info; else no line has any of them."""
    otlp_endpoint: str = Field("", validation_alias=AliasChoices("VMM_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
    """OpenTelemetry collector that traces are sent to over HTTP: http://localhost:4318; empty for none."""

    @property
    def now(self) -> "Settings":
        """Settings that nothing changes are a `SettingsSource` of themselves."""
        return self

    @property
    def store_dir(self) -> Path:
        """Where model files lie."""
        return self.models_dir or self.home / "models"

    @property
    def cache_dir(self) -> Path:
        """Compiled models; may be deleted at any time."""
        return self.home / "cache"

    @property
    def keys_path(self) -> Path:
        """The file that keys lie in."""
        return self.keys_file or self.home / "keys.toml"

    @property
    def response_store_path(self) -> Path:
        """The file that stored responses lie in."""
        return self.home / "responses.db"

    @property
    def batch_store_path(self) -> Path:
        """The file that batches, and what is known of stored files, lie in."""
        return self.home / "batches.db"

    @property
    def files_dir(self) -> Path:
        """Where stored files lie."""
        return self.home / "files"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment - Ollama's variables last -, then `<home>/vmm.toml`."""
        home = init_settings().get("home") or default_home()
        ollama = InitSettingsSource(settings_cls, init_kwargs=ollama_settings(os.environ))
        return init_settings, env_settings, ollama, TomlConfigSettingsSource(settings_cls, Path(home) / SETTINGS_FILE)


def read_settings(**flags: Any) -> Settings:
    """Settings from everywhere; `flags` that are `None` were not given.

    Raises `SettingsError` naming the setting, and the file if it stands in one.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    file = _home(given["home"] if "home" in given else default_home()) / SETTINGS_FILE
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).removeprefix("VMM_").lower()
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = "there is no such setting"
        message = f"setting {name}{_variable(name, given)}: {problem}"
        if not _variable(name, given) and name not in given:
            message = f"{file}: {message}"
        raise SettingsError(message, param=name, hint="vmm help serve lists the settings") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}") from error


def _variable(setting: str, flags: Mapping[str, object]) -> str:
    """The environment variable that gave a setting its value, in brackets; empty where none did."""
    field = Settings.model_fields.get(setting)
    alias = field.validation_alias if field else None
    names = [*map(str, alias.choices)] if isinstance(alias, AliasChoices) else [f"VMM_{setting.upper()}"]
    names += [VARIABLES[setting]] if setting in VARIABLES else []
    found = next((name for name in names if name in os.environ), "")
    return f" ({found})" if found and setting not in flags else ""


class SettingsSource(Protocol):
    """Where a part that lives as long as the server finds the settings, whenever it needs one."""

    @property
    def now(self) -> Settings:
        """As they are now."""
        ...


AT_ONCE = frozenset(
    {
        *("origins", "allowed_hosts", "image_urls", "max_audio_bytes", "max_audio_seconds", "card_dirs"),
        *("default_model", "device", "backend", "memory_budget", "max_loaded_models", "keep_alive", "load_timeout_s"),
        *("max_pending",),
        *("shutdown_timeout_s", "ollama_version", "log_level"),
    }
)
"""Settings that a reload changes at once."""
AT_NEXT_LOAD = frozenset(
    {
        *("num_threads", "kv_cache_size", "kv_cache_type", "context_length", "max_batched_tokens", "max_sequences"),
        *("max_queue", "speculation", "draft_model", "vision_precision"),
    }
)
"""Settings that a reload changes for models that are loaded from then on. All others need a restart."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What reading the settings again came to: names of settings."""

    at_once: tuple[str, ...] = ()
    at_next_load: tuple[str, ...] = ()
    at_restart: tuple[str, ...] = ()
    """They stay as they were."""


class LiveSettings:
    """The settings of a running server, in a holder that is swapped whole: whoever reads `now` has old or new ones."""

    def __init__(self, settings: Settings, read: Callable[[], Settings] | None = None) -> None:
        """`read` reads them again, from wherever they came; without it they stay. Raises `SettingsError`."""
        self.now = settings
        self.read = read or (lambda: settings)

    def use(self, fresh: Settings) -> Changes:
        """Take over what can change in a running server."""
        old = self.now
        changed = [name for name in type(old).model_fields if getattr(fresh, name) != getattr(old, name)]
        taken = [name for name in changed if name in AT_ONCE | AT_NEXT_LOAD]
        self.now = old.model_copy(update={name: getattr(fresh, name) for name in taken})
        return Changes(
            tuple(name for name in taken if name in AT_ONCE),
            tuple(name for name in taken if name in AT_NEXT_LOAD),
            tuple(name for name in changed if name not in taken),
        )
