"""A client of a running server, over Ollama's API: what `run`, `ps` and `stop` talk through."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from vmm_server.errors import ModelNotFound, VMMError
from vmm_server.models.pull import PullEvent
from vmm_server.settings import Settings, parse_host

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server listens on every address, ask this one
_CONNECT_TIMEOUT_S = 5.0


def server_url(address: str | None, settings: Settings) -> str:
    """The URL of the server: the `--host` flag, else what the settings and `OLLAMA_HOST` say."""
    if address is None:
        host, port = settings.host, settings.port
        named = os.environ.get("OLLAMA_HOST", "") if "VMM_HOST" not in os.environ else ""
    else:
        host, port = parse_host(address)
        named = address
    scheme = "https" if named.strip().startswith("https://") else "http"
    host = _UNSPECIFIED.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Client:
    """One server. Methods raise `VMMError` with the server's own words, or `ModelNotFound`."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        # answers may take as long as they like; a proxy is for other machines
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        self._http = httpx.Client(
            base_url=url, timeout=timeout, trust_env=httpx.URL(url).host not in LOOPBACK, transport=transport
        )

    @property
    def is_local(self) -> bool:
        """Whether the server would be on this machine."""
        return httpx.URL(self.url).host in LOOPBACK

    def answers(self) -> bool:
        """Whether a server is there."""
        try:
            return self._http.get("/api/version", timeout=_CONNECT_TIMEOUT_S).is_success
        except httpx.TransportError:
            return False

    def show(self, model: str) -> dict[str, Any]:
        """`/api/show`. Raises `ModelNotFound`."""
        return self._post("/api/show", {"model": model})

    def loaded(self) -> list[dict[str, Any]]:
        """`/api/ps`: the models in memory."""
        with _transport_errors(self.url):
            response = self._http.get("/api/ps")
        models: list[dict[str, Any]] = _checked(response, "").json()["models"]
        return models

    def unload(self, model: str) -> None:
        """Unload a model once it is idle."""
        self._post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def pull(self, model: str) -> Iterator[PullEvent]:
        """`/api/pull`: have the server fetch a model."""
        for event in self._stream("/api/pull", {"model": model}):
            yield PullEvent(event["status"], event.get("digest"), event.get("total"), event.get("completed"))

    def chat(self, model: str, messages: list[dict[str, str]], **fields: object) -> Iterator[dict[str, Any]]:
        """`/api/chat`, streamed; the last object has `done: true` and the timings."""
        return self._stream("/api/chat", {"model": model, "messages": messages, **fields})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        with _transport_errors(self.url):
            response = self._http.post(path, json=body)
        answer: dict[str, Any] = _checked(response, str(body["model"])).json()
        return answer

    def _stream(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        with _transport_errors(self.url), self._http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.is_error:
                response.read()
            _checked(response, str(body["model"]))
            for line in response.iter_lines():
                event: dict[str, Any] = json.loads(line)
                if error := event.get("error"):
                    raise VMMError(str(error), hint=event.get("hint"))
                yield event


@contextmanager
def _transport_errors(url: str) -> Iterator[None]:
    """Turn httpx's connection errors into one line with the mend."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise VMMError(f"no server answers at {url}", hint="start one with: vmm serve") from error
    except httpx.TransportError as error:
        raise VMMError(f"the connection to {url} broke: {error or type(error).__name__}") from error


def _checked(response: httpx.Response, model: str) -> httpx.Response:
    """The response, if it is a success."""
    if response.is_success:
        return response
    hint = f"try again in {wait} s" if (wait := response.headers.get("retry-after")) else None
    try:
        body = response.json()
        message, hint = str(body["error"]), body.get("hint", hint)
    except (ValueError, KeyError, TypeError):
        message = f"{response.request.url} answered {response.status_code}"
    if response.status_code == 404 and model:
        raise ModelNotFound(model, hint=hint)
    raise VMMError(message, hint=hint)
