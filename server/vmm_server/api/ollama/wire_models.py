"""What clients send to the routes under `/api` that deal with models."""

from typing import Annotated

from pydantic import Field

from vmm_server.api.body import Strings, Wire
from vmm_server.errors import InvalidRequest


class NamedModel(Wire):
    """Bodies that name a model, under either of two keys."""

    model: str | None = None
    name: str | None = None

    @property
    def reference(self) -> str:
        """What was asked for; empty when neither key was sent."""
        return self.model or self.name or ""


def required(body: NamedModel) -> str:
    """The name in a body. Raises `InvalidRequest`."""
    if not body.reference:
        raise InvalidRequest("model is required", param="model")
    return body.reference


class ShowBody(NamedModel):
    """Body of `POST /api/show`."""

    verbose: bool | None = None
    """With the tensors, and long arrays whole."""
    system: str | None = None
    """Shown in place of the model's own; so are `options`, in the Modelfile."""
    options: dict[str, object] | None = None


class PullBody(NamedModel):
    """Body of `POST /api/pull`. `insecure` is accepted and does nothing: each source has its own transport."""

    stream: bool | None = None


class PushBody(NamedModel):
    """Body of `POST /api/push`."""

    stream: bool | None = None
    insecure: bool | None = None
    """Talk to the other server without TLS."""


class CopyBody(Wire):
    """Body of `POST /api/copy`."""

    source: str = ""
    destination: str = ""


class StoredMessage(Wire):
    """One of the messages that a model puts before every conversation."""

    role: str
    content: str = ""


class CreateBody(NamedModel):
    """Body of `POST /api/create`."""

    stream: bool | None = None
    from_: Annotated[str | None, Field(alias="from")] = None
    """A model's name, or a source that could be pulled."""
    files: dict[str, str] | None = None
    """Path → `sha256:<hex>` of an uploaded blob."""
    adapters: dict[str, str] | None = None
    template: str | None = None
    license: Strings | None = None
    system: str | None = None
    parameters: dict[str, object] | None = None
    messages: list[StoredMessage] | None = None
    quantize: str | None = None
    quantization: str | None = None
    """The older name of `quantize`."""
    requires: str | None = None
    """A version of Ollama; nothing here depends on it."""
    modelfile: str | None = None
    """A Modelfile, as older clients send it; fields beside it win."""

    path: str | None = None
    """This and the next six cannot be honoured, and are refused by name."""
    renderer: str | None = None
    parser: str | None = None
    info: dict[str, object] | None = None
    remote_host: str | None = None
    draft_files: dict[str, str] | None = None
    draft_quantize: str | None = None
