"""Ollama's environment variables: what they set here, and which have nothing to set.

Read as its envconfig/config.go reads them: blanks and quotes around a value do not belong to it, and an empty one is as
good as none. Its server takes the default for a value that it cannot read; here that is a `SettingsError`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

DEFAULT_PORT = 11434

VARIABLES: Mapping[str, str] = {
    "host": "OLLAMA_HOST",
    "port": "OLLAMA_HOST",
    "context_length": "OLLAMA_CONTEXT_LENGTH",
    "max_queue": "OLLAMA_MAX_QUEUE",
    "max_loaded_models": "OLLAMA_MAX_LOADED_MODELS",
    "keep_alive": "OLLAMA_KEEP_ALIVE",
    "load_timeout_s": "OLLAMA_LOAD_TIMEOUT",
    "origins": "OLLAMA_ORIGINS",
    "kv_cache_type": "OLLAMA_KV_CACHE_TYPE",
    "log_level": "OLLAMA_DEBUG",
}
"""Setting → the variable that sets it where no `VMM_*` does."""

_DEVICE = "VMM_DEVICE and VMM_BACKEND say what models run on"
_MEMORY = "VMM_MEMORY_BUDGET bounds the memory that models take"
_LOCAL = "no model here runs elsewhere, and there is no account"
WITHOUT_EFFECT: Mapping[str, str] = {
    "OLLAMA_MODELS": "what lies in that folder is laid out for Ollama; VMM_MODELS_DIR names a folder for ours",
    "OLLAMA_HOME": "VMM_HOME names the folder for everything",
    "OLLAMA_TMPDIR": "what is not finished lies in the folder that it will be in",
    "OLLAMA_NUM_PARALLEL": "requests of a model run together and share its memory; VMM_MAX_SEQUENCES bounds them",
    "OLLAMA_FLASH_ATTENTION": "the runtime chooses the kernels for its device",
    "OLLAMA_NOPRUNE": "no file that a model needs is deleted but by vmm rm",
    "OLLAMA_SCHED_SPREAD": "a model runs on one device",
    "OLLAMA_LLM_LIBRARY": _DEVICE,
    "OLLAMA_VULKAN": _DEVICE,
    "OLLAMA_IGPU_ENABLE": _DEVICE,
    "OLLAMA_INTEL_GPU": _DEVICE,
    "OLLAMA_GPU_OVERHEAD": _MEMORY,
    "OLLAMA_MAX_VRAM": _MEMORY,
    "OLLAMA_RUNNERS_DIR": "there are no runners",
    "OLLAMA_MAX_TRANSFER_STREAMS": "files are fetched one after the other",
    "OLLAMA_GO_TEMPLATE": "a model's own template is always used, whatever its language",
    "OLLAMA_DEBUG_LOG_REQUESTS": "requests are never written to disk",
    "OLLAMA_NO_CLOUD": _LOCAL,
    "OLLAMA_REMOTES": _LOCAL,
    "OLLAMA_AUTH": _LOCAL,
}
"""Variable → why the server has no use for it."""
OF_CLIENTS = frozenset({"OLLAMA_API_KEY", "OLLAMA_EDITOR", "OLLAMA_NOHISTORY"})
"""Those that say nothing to a server at all."""

_ADDRESS = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[^:]*))?")
_TRUE = ("1", "t", "true")


class ServerAddress(NamedTuple):
    """Where a server is, or is to be."""

    scheme: str
    host: str
    port: int
    path: str
    """What the routes stand under, without the slash before it; for clients, of a server behind a proxy."""

    @property
    def url(self) -> str:
        """As clients write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.path}" if self.path else "")


def parse_host(text: str) -> ServerAddress:
    """`OLLAMA_HOST`, in which everything is optional: scheme, host, port, path, an IPv6 address's brackets.

    No port means 11434, except 80 after `http://` and 443 after `https://`, and a bad port means no port. A port
    without a host means every address of the machine.
    """
    text = _clean(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    scheme = scheme.lower()
    place, _, path = rest.partition("/")
    default_port = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT)
    match = _ADDRESS.fullmatch(place)
    if match is None:  # a bare IPv6 address, most likely
        host, port = place, default_port
    else:
        host = match["bracketed"] or match["name"] or ("127.0.0.1" if match["port"] is None else "0.0.0.0")
        port = _port(match["port"], default_port)
    return ServerAddress("https" if scheme == "https" else "http", host, port, path.strip("/"))


def ollama_settings(environ: Mapping[str, str]) -> dict[str, object]:
    """The settings that Ollama's variables name. `OLLAMA_HOST` says nothing where `VMM_HOST` is set."""
    found = {setting: value for setting, name in VARIABLES.items() if (value := _clean(environ.get(name, "")))}
    settings: dict[str, object] = {**found}
    if "VMM_HOST" in environ:
        settings.pop("host", None)
        settings.pop("port", None)
    elif "host" in found:
        address = parse_host(found["host"])
        settings |= {"host": address.host, "port": address.port}
    if found.get("context_length") == "0":  # the model's own
        del settings["context_length"]
    if (debug := found.get("log_level")) is not None:
        del settings["log_level"]
        if debug.lower() in _TRUE or (debug.isdigit() and int(debug)):
            settings["log_level"] = "debug"
    return settings


def without_effect(environ: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each variable of Ollama's that is set and that this server has no use for."""
    for name in sorted(environ):
        if not name.startswith("OLLAMA_") or not _clean(environ[name]) or name in OF_CLIENTS:
            continue
        if name in WITHOUT_EFFECT:
            yield f"{name} has no effect: {WITHOUT_EFFECT[name]}"
        elif name not in VARIABLES.values():
            yield f"{name} has no effect: it is not known here"
    address = parse_host(environ.get("OLLAMA_HOST", ""))
    if address.scheme == "https" or address.path:
        yield "OLLAMA_HOST: scheme and path are for clients; this server speaks plain HTTP, at the root"


def _clean(value: str) -> str:
    return value.strip().strip("\"'").strip()


def _port(text: str | None, default: int) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,5}", text, re.ASCII) and int(text) <= 65535 else default
