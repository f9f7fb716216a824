"""What is asked of models that look at pictures, whatever the wire looked like. Run by `seeing.Vision`."""

from dataclasses import dataclass

from vmm_server.requests import ANYWHERE, GivenImage, KeepAlive, Wanted
from vmm_server.vision.results import DetectionParams


@dataclass(frozen=True, slots=True)
class GivenText:
    """A text to be compared with pictures."""

    text: str
    param: str
    """The request field it came in; errors name it."""


Item = GivenImage | GivenText


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRequest:
    """Something to be done with pictures."""

    model: str
    keep_alive: KeepAlive | None = None
    wanted: Wanted = ANYWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectRequest(VisionRequest):
    """Find things in pictures."""

    images: tuple[GivenImage, ...]
    params: DetectionParams
    """Its `class_ids` are those of `classes`, once the model is known."""
    classes: tuple[str | int, ...] | None = None
    """Names or numbers of those wanted; `None`: all."""
    draw: bool = False
    """Also draw the pictures with what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyRequest(VisionRequest):
    """Say what pictures show, in the model's own classes."""

    images: tuple[GivenImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(VisionRequest):
    """Make vectors of pictures and texts."""

    items: tuple[Item, ...]
    dimensions: int | None = None
    truncate: bool = False
    """Cut texts that are too long; else they are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotRequest(VisionRequest):
    """Say what pictures show, in the request's classes."""

    images: tuple[GivenImage, ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...] | None = None
    """Sentences with `{}` where the label goes; `None`: the model's own."""
    truncate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest(VisionRequest):
    """Rank pictures and texts by how near they are to one."""

    query: Item
    items: tuple[Item, ...]
    truncate: bool = False
