"""A client of a running server, over Ollama's API: what `run`, `ps` and `stop` talk through."""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import httpx

from vmm_server.errors import InvalidRequest, ModelNotFound, SettingsError, VMMError
from vmm_server.models.jobs import PullEvent
from vmm_server.ollama_environment import parse_host
from vmm_server.settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server listens on every address, ask this one
_CONNECT_TIMEOUT_S = 5.0
_KEY_VARIABLES = ("VMM_API_KEY", "OLLAMA_API_KEY")
_REFUSALS = (401, 403)
_RELEASES = "/api/vmm/releases"

UploadedFile = tuple[str, IO[bytes]]
"""A file of a form: its name, and what it holds."""


def server_url(address: str | None, settings: Settings) -> str:
    """The URL of the server: the `--host` flag, else what the settings and `OLLAMA_HOST` say."""
    if address is not None:
        server = parse_host(address)
    else:
        named = os.environ.get("OLLAMA_HOST", "") if "VMM_HOST" not in os.environ else ""
        server = parse_host(named)._replace(host=settings.host, port=settings.port)
        if not named and settings.tls_certificate is not None:
            server = server._replace(scheme="https")
    return server._replace(host=_UNSPECIFIED.get(server.host, server.host)).url


class Client:
    """One server. Methods raise `VMMError` with the server's own words, or `ModelNotFound`."""

    def __init__(
        self,
        url: str,
        *,
        hint: str = "start one with: vmm serve",
        transport: httpx.BaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        """`hint` is said when no server answers. `api_key` stands in for the one of `VMM_API_KEY`.

        Raises `SettingsError` for a key that no header can carry.
        """
        self.url = url
        self._hint = hint
        # answers may take as long as they like; a proxy is for other machines
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        place = httpx.URL(url)
        self._http = httpx.Client(
            base_url=url,
            headers=_authorization(api_key),
            timeout=timeout,
            trust_env=place.host not in LOOPBACK,
            transport=transport,
            # OpenSSL's own default: the system's authorities, or those of SSL_CERT_FILE
            verify=ssl.create_default_context() if place.scheme == "https" else True,
        )

    @property
    def is_local(self) -> bool:
        """Whether the server would be on this machine."""
        return httpx.URL(self.url).host in LOOPBACK

    def answers(self) -> bool:
        """Whether a server is there."""
        try:
            response = self._http.get("/api/version", timeout=_CONNECT_TIMEOUT_S)
            return response.is_success or response.status_code in _REFUSALS  # it is there, and says why with the rest
        except httpx.TransportError:
            return False

    def installed(self) -> list[dict[str, Any]]:
        """`/api/tags`: the models on its disk."""
        return self._models("/api/tags")

    def show(self, model: str, *, verbose: bool = False) -> dict[str, Any]:
        """`/api/show`. Raises `ModelNotFound`."""
        return self._post("/api/show", {"model": model, **({"verbose": True} if verbose else {})})

    def copy(self, source: str, destination: str) -> None:
        """`/api/copy`. Raises `ModelNotFound`."""
        self._send("POST", "/api/copy", {"source": source, "destination": destination}, source)

    def delete(self, model: str) -> None:
        """`/api/delete`. Raises `ModelNotFound`."""
        self._send("DELETE", "/api/delete", {"model": model}, model)

    def loaded(self) -> list[dict[str, Any]]:
        """`/api/ps`: the models in memory."""
        return self._models("/api/ps")

    def devices(self) -> dict[str, Any]:
        """`/api/vmm/devices`: what its machine computes on."""
        with _transport_errors(self.url, self._hint):
            answer: dict[str, Any] = _checked(self._http.get("/api/vmm/devices"), "").json()
        return answer

    def profiles(self, model: str) -> dict[str, Any]:
        """`/api/vmm/profiles` of one model: what was measured of it. Raises `ModelNotFound`."""
        with _transport_errors(self.url, self._hint):
            response = self._http.get("/api/vmm/profiles", params={"model": model})
        found: dict[str, Any] = _checked(response, model).json()["models"][0]
        return found

    def calibrate(self, model: str, **wanted: str | None) -> Iterator[dict[str, Any]]:
        """`/api/vmm/calibrate`: measure a model; the last object is as `profiles` has it. Raises `ModelNotFound`."""
        named = {name: value for name, value in wanted.items() if value is not None}
        return self._stream("/api/vmm/calibrate", {"model": model, **named})

    def status(self) -> dict[str, Any]:
        """`/api/vmm/status`: how the server is."""
        return self._json("GET", "/api/vmm/status")

    def reload(self) -> dict[str, Any]:
        """`/api/vmm/reload`: have it read settings, cards and keys again. Raises `InvalidRequest` for a wrong one."""
        return self._json("POST", "/api/vmm/reload")

    def releases(self) -> list[dict[str, Any]]:
        """`/api/vmm/releases`: what plain names mean."""
        found: list[dict[str, Any]] = self._json("GET", _RELEASES)["releases"]
        return found

    def release_of(self, name: str) -> dict[str, Any]:
        """The same of one name. Raises `ModelNotFound`."""
        return self._json("GET", f"{_RELEASES}/{quote(name)}", model=name)

    def release(self, name: str, shares: Mapping[str, int]) -> dict[str, Any]:
        """Have a name mean these models. Raises `InvalidRequest`, and for one that is not there the server's words."""
        return self._json("PUT", f"{_RELEASES}/{quote(name)}", {"shares": dict(shares)})

    def clear_release(self, name: str) -> None:
        """Have a name mean the installed model again. Raises `ModelNotFound`."""
        self._json("DELETE", f"{_RELEASES}/{quote(name)}", model=name)

    def unload(self, model: str) -> None:
        """Unload a model once it is idle."""
        self._post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def load(self, model: str, keep_alive: str | None, options: Mapping[str, object] | None = None) -> None:
        """Have the server load a model, where its `options` say. Raises `ModelNotFound`."""
        kept = {} if keep_alive is None else {"keep_alive": keep_alive}
        self._post("/api/generate", {"model": model, **kept, "options": options or {}, "stream": False})

    def embed(self, model: str, text: str, **fields: object) -> list[float]:
        """`/api/embed`: the vector of one text."""
        vector: list[float] = self._post("/api/embed", {"model": model, "input": text, **fields})["embeddings"][0]
        return vector

    def pull(self, model: str, *, insecure: bool = False) -> Iterator[PullEvent]:
        """`/api/pull`: have the server fetch a model."""
        return self._events("/api/pull", {"model": model, "insecure": insecure})

    def push(self, model: str, *, insecure: bool = False) -> Iterator[PullEvent]:
        """`/api/push`: have the server send a model to another one."""
        return self._events("/api/push", {"model": model, "insecure": insecure})

    def has_blob(self, digest: str) -> bool:
        """Whether the server has the file of this `sha256:<hex>`."""
        with _transport_errors(self.url, self._hint):
            response = self._http.head(f"/api/blobs/{digest}")
        return response.status_code != 404 and _checked(response, "").is_success

    def put_blob(self, digest: str, content: Iterator[bytes], size_bytes: int) -> None:
        """Send the file of this `sha256:<hex>`."""
        headers = {"content-length": str(size_bytes)}
        with _transport_errors(self.url, self._hint):
            response = self._http.post(f"/api/blobs/{digest}", content=content, headers=headers)
        _checked(response, "")

    def create(self, body: Mapping[str, object]) -> Iterator[PullEvent]:
        """`/api/create`: have the server make the model `body["model"]`."""
        return self._events("/api/create", body)

    def chat(self, model: str, messages: list[dict[str, str]], **fields: object) -> Iterator[dict[str, Any]]:
        """`/api/chat`, streamed; the last object has `done: true` and the timings."""
        return self._stream("/api/chat", {"model": model, "messages": messages, **fields})

    def ask(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """The JSON that a route answers; `body` names the model. Raises `ModelNotFound`, `InvalidRequest`."""
        return self._post(path, body)

    def send_form(self, path: str, fields: Mapping[str, Any], file: UploadedFile) -> httpx.Response:
        """A form with one file; its fields name the model. Raises `ModelNotFound`, `InvalidRequest`."""
        with _transport_errors(self.url, self._hint):
            response = self._http.post(path, data=fields, files={"file": file})
        return _checked(response, str(fields["model"]))

    def stream_form(self, path: str, fields: Mapping[str, Any], file: UploadedFile) -> Iterator[dict[str, Any]]:
        """The same, answered by server-sent events. Raises the same, also in the middle."""
        asked = self._http.stream("POST", path, data=fields, files={"file": file})
        with _transport_errors(self.url, self._hint), asked as response:
            if response.is_error:
                response.read()
            _checked(response, str(fields["model"]))
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    if error := event.get("error"):
                        message, hint = _words(error)
                        raise VMMError(message, hint=hint)
                    yield event

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _models(self, path: str) -> list[dict[str, Any]]:
        with _transport_errors(self.url, self._hint):
            response = self._http.get(path)
        models: list[dict[str, Any]] = _checked(response, "").json()["models"]
        return models

    def _json(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, model: str = ""
    ) -> dict[str, Any]:
        with _transport_errors(self.url, self._hint):
            response = self._http.request(method, path, json=body)
        answer: dict[str, Any] = _checked(response, model).json()
        return answer

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        answer: dict[str, Any] = self._send("POST", path, body, str(body["model"])).json()
        return answer

    def _send(self, method: str, path: str, body: Mapping[str, object], model: str) -> httpx.Response:
        with _transport_errors(self.url, self._hint):
            response = self._http.request(method, path, json=body)
        return _checked(response, model)

    def _events(self, path: str, body: Mapping[str, object]) -> Iterator[PullEvent]:
        for event in self._stream(path, body):
            yield PullEvent(event["status"], event.get("digest"), event.get("total"), event.get("completed"))

    def _stream(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        asked = self._http.stream("POST", path, json={**body, "stream": True})
        with _transport_errors(self.url, self._hint), asked as response:
            if response.is_error:
                response.read()
            _checked(response, str(body.get("from") or body["model"]))
            for line in response.iter_lines():
                event: dict[str, Any] = json.loads(line)
                if error := event.get("error"):
                    raise VMMError(str(error), hint=event.get("hint"))
                yield event


@contextmanager
def _transport_errors(url: str, hint: str) -> Iterator[None]:
    """Turn httpx's connection errors into one line with the mend."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if (failure := _tls_failure(error)) is not None:
            hint = "name the file of the authority that signed its certificate in SSL_CERT_FILE"
            raise VMMError(f"{url} cannot be trusted: {failure}", hint=hint) from error
        raise VMMError(f"no server answers at {url}", hint=hint) from error
    except httpx.TransportError as error:
        raise VMMError(f"the connection to {url} broke: {error or type(error).__name__}") from error


def _tls_failure(error: BaseException) -> str | None:
    """What is wrong with a certificate, if that is what an error comes of."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None


def _authorization(api_key: str | None) -> dict[str, str]:
    for name, key in (("", api_key), *((name, os.environ.get(name)) for name in _KEY_VARIABLES)):
        if key and (key := key.strip()):
            if not (key.isascii() and key.isprintable()):
                raise SettingsError(f"{name} is no key: it has characters that no header can carry", param=name)
            return {"authorization": f"Bearer {key}"}
    return {}


def _checked(response: httpx.Response, model: str) -> httpx.Response:
    """The response, if it is a success."""
    if response.is_success:
        return response
    hint = f"try again in {wait} s" if (wait := response.headers.get("retry-after")) else None
    try:
        body = response.json()
        message, own_hint = _words(body["error"])
        hint = own_hint or body.get("hint", hint)
    except (ValueError, KeyError, TypeError):
        message = f"{response.request.url} answered {response.status_code}"
    if response.status_code == 401:
        hint = "set VMM_API_KEY to a key of that server; vmm keys create makes one there"
    if response.status_code == 404 and model:
        raise ModelNotFound(model, hint=hint)
    raise (InvalidRequest if response.status_code in (400, 413) else VMMError)(message, hint=hint)


def _words(error: str | Mapping[str, Any]) -> tuple[str, str | None]:
    """Message and hint of an error, as Ollama's routes spell it or as OpenAI's do."""
    return (error, None) if isinstance(error, str) else (str(error["message"]), error.get("hint"))
