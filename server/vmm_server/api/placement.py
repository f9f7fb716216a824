"""Where a request has to run, as its headers and its body say it → `Wanted`; and how urgent it is → `caller`.

Pure, but for the priority, which the task's `caller` takes on: it holds for all that is done for the request.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, TypeVar, get_args

from pydantic import BaseModel, Field

from vmm_adapters.catalog import BACKENDS
from vmm_server.api.body import Integer, Wire
from vmm_server.callers import MAX_PRIORITY, MIN_PRIORITY, caller
from vmm_server.errors import InvalidRequest
from vmm_server.models.variants import ORIGINAL
from vmm_server.requests import EmbeddingRequest, GenerateRequest, RerankRequest, Wanted

HEADERS = {"device": "x-vmm-device", "backend": "x-vmm-backend", "variant": "x-vmm-variant"}
"""Field → the header that says the same."""
PRIORITY_HEADER = "x-vmm-priority"
TIMEOUT_HEADER = "x-vmm-timeout-ms"
AUTO = "auto"
"""Leaves it open, as in the settings."""
MAX_LENGTH = 100
"""Characters of a name."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,12}")

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
    priority: Annotated[Integer, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)] | None = None
    """Lower goes first, and takes the place of what is higher; no better than the key's own."""


_Places = list[tuple[str, PlacementFields]]
"""What comes before the fields' names, and the fields."""


@dataclass(frozen=True, slots=True)
class _Given:
    where: str
    value: str


def placed(asked: Asked, headers: Headers, body: Wire) -> Asked:
    """The request, to run where its headers and its body want it to. Raises as `wanted_of` does."""
    return replace(asked, wanted=wanted_of(headers, body))


def wanted_of(headers: Headers, body: Wire) -> Wanted:
    """What headers, fields of the body and fields of its `options` say; the task's `caller` gets their priority.

    Raises `InvalidRequest` for an empty name, a backend that there is not, a priority that is too good, and places that
    do not say the same.
    """
    places = _places(body)
    _take_priority(headers, places)
    found = {name: given for name in HEADERS if (given := _agreed(name, headers, places)) is not None}
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


def _agreed(name: str, headers: Headers, places: _Places) -> _Given | None:
    """What is given, once and for all; `None`: nothing, or `auto`."""
    given = list(_given(name, headers, places))
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


def _given(name: str, headers: Headers, places: _Places) -> Iterator[_Given]:
    for value in headers.getall(HEADERS[name], []):
        yield _Given(HEADERS[name], value.strip())
    for before, fields in places:
        if (value := getattr(fields, name)) is not None:
            yield _Given(before + name, value.strip())


def _places(body: Wire) -> _Places:
    """Where in a body the fields may stand."""
    places = (("", body), ("options.", vars(body).get("options")))
    return [(before, fields) for before, fields in places if isinstance(fields, PlacementFields)]


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


def given_priority(values: Iterable[str], best: int) -> int | None:
    """What `x-vmm-priority` says, if it is there. Raises `InvalidRequest`."""
    given = {whole_number(PRIORITY_HEADER, value, MIN_PRIORITY, MAX_PRIORITY) for value in values}
    if len(given) > 1:
        raise InvalidRequest(f"{PRIORITY_HEADER}: there are several, and they differ", param=PRIORITY_HEADER)
    return _no_better(given.pop(), best, PRIORITY_HEADER) if given else None


def whole_number(header: str, value: str, least: int, most: int) -> int:
    """A header's value. Raises `InvalidRequest` for what is no number between the two."""
    number = int(value) if _WHOLE.fullmatch(value) else None
    if number is None or not least <= number <= most:
        raise InvalidRequest(
            f"{header}: {value[:MAX_LENGTH]!r} is no whole number from {least} to {most}", param=header
        )
    return number


def _take_priority(headers: Headers, places: _Places) -> None:
    asking = caller.get()
    best = asking.priority if asking.best_priority is None else asking.best_priority
    given = [(f"{before}priority", value) for before, fields in places if (value := fields.priority) is not None]
    if (said := given_priority(headers.getall(PRIORITY_HEADER, []), best)) is not None:
        given.insert(0, (PRIORITY_HEADER, said))
    for where, value in given:
        if value != given[0][1]:
            raise InvalidRequest(f"{where}: {value} is asked for, and {given[0][1]} in {given[0][0]}", param=where)
        caller.set(replace(asking, priority=_no_better(value, best, where)))


def _no_better(priority: int, best: int, where: str) -> int:
    if priority < best:
        raise InvalidRequest(
            f"{where}: {priority} goes before {best}, which is the best that this key may have",
            param=where,
            hint="leave it out, or ask for a higher number, which goes later",
        )
    return priority
