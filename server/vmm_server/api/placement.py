"""Where a request has to run, as its headers and its body say it → `Wanted`. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, get_args

from pydantic import BaseModel

from vmm_adapters.catalog import BACKENDS
from vmm_server.api.body import Wire
from vmm_server.errors import InvalidRequest
from vmm_server.models.variants import ORIGINAL
from vmm_server.requests import EmbeddingRequest, GenerateRequest, RerankRequest, Wanted

HEADERS = {"device": "x-vmm-device", "backend": "x-vmm-backend", "variant": "x-vmm-variant"}
"""Field → the header that says the same."""
AUTO = "auto"
"""Leaves it open, as in the settings."""
MAX_LENGTH = 100
"""Characters of a name."""

Asked = TypeVar("Asked", GenerateRequest, EmbeddingRequest, RerankRequest)


class Headers(Protocol):
    """Of a request; a name may be there several times, in letters of either case."""

    def getall(self, key: str, default: list[str]) -> list[str]: ...


class PlacementFields(Wire):
    """Where a model has to run. What is left out is VMM's to choose."""

    device: str | None = None
    """One that `/api/vmm/devices` lists, or all of a kind: `CPU`, `GPU`, `GPU.1`."""
    backend: str | None = None
    """A runtime: `cpu`, `openvino`, `onnxruntime-genai`, `openvino-genai` or `onnxruntime`."""
    variant: str | None = None
    """A precision of the model, by its name; `original` is the model as it was installed."""


@dataclass(frozen=True, slots=True)
class _Given:
    where: str
    value: str


def placed(asked: Asked, headers: Headers, body: Wire) -> Asked:
    """The request, to run where its headers and its body want it to. Raises as `wanted_of` does."""
    return replace(asked, wanted=wanted_of(headers, body))


def wanted_of(headers: Headers, body: Wire) -> Wanted:
    """What headers, fields of the body and fields of its `options` say.

    Raises `InvalidRequest` for an empty name, a backend that there is not, and places that do not say the same.
    """
    found = {name: given for name in HEADERS if (given := _agreed(name, headers, body)) is not None}
    device, backend, variant = (found[name].value if name in found else None for name in HEADERS)
    return Wanted(
        device,
        backend and backend.lower(),
        "" if variant and variant.lower() == ORIGINAL else variant and variant.lower(),
        params={name: given.where for name, given in found.items()},
    )


def takes_placement(body: type[BaseModel]) -> bool:
    """Whether bodies of this shape say where they have to run, and so their requests' headers."""
    options = body.model_fields.get("options")
    kinds = (body, *(get_args(options.annotation) if options else ()))
    return any(isinstance(kind, type) and issubclass(kind, PlacementFields) for kind in kinds)


def _agreed(name: str, headers: Headers, body: Wire) -> _Given | None:
    """What is given, once and for all; `None`: nothing, or `auto`."""
    given = list(_given(name, headers, body))
    for each in given:
        _check(name, each)
    named = [each for each in given if each.value.lower() != AUTO]
    for other in named[1:]:
        if other.value.lower() != named[0].value.lower():
            raise InvalidRequest(
                f"{other.where}: {other.value!r} is asked for, and {named[0].value!r} in {named[0].where}",
                param=other.where,
            )
    return named[0] if named else None


def _given(name: str, headers: Headers, body: Wire) -> Iterator[_Given]:
    for value in headers.getall(HEADERS[name], []):
        yield _Given(HEADERS[name], value.strip())
    for where, fields in ((name, body), (f"options.{name}", getattr(body, "options", None))):
        if isinstance(fields, PlacementFields) and (value := getattr(fields, name)) is not None:
            yield _Given(where, value.strip())


def _check(name: str, given: _Given) -> None:
    if not given.value:
        raise InvalidRequest(f"{given.where}: must not be empty", param=given.where, hint="leave it out, or name one")
    if len(given.value) > MAX_LENGTH:
        raise InvalidRequest(f"{given.where}: more than {MAX_LENGTH} characters", param=given.where)
    if name == "backend" and given.value.lower() not in (*BACKENDS, AUTO):
        raise InvalidRequest(
            f"{given.where}: {given.value!r} is none of {', '.join(BACKENDS)}",
            param=given.where,
            hint="vmm devices tells which of them this machine has",
        )
