"""Bodies of `/v1/vision` → requests. Pure; errors name the field."""

from collections.abc import Sequence
from typing import TypeVar

from vmm_server.api.vectors import check_encoding_format
from vmm_server.api.vision.wire import (
    MAX_IMAGES,
    MAX_TEXTS,
    ClassifyBody,
    DetectBody,
    EmbedBody,
    Image,
    ImagesBody,
    Part,
    SearchBody,
    VisionBody,
    ZeroShotBody,
)
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ANYWHERE, GivenImage, Wanted
from vmm_server.vision.results import DetectionParams
from vmm_server.vision_requests import (
    ClassifyRequest,
    DetectRequest,
    EmbedRequest,
    GivenText,
    Item,
    SearchRequest,
    ZeroShotRequest,
)

_HOW = "send image or images (a data URI, a URL or base64), or files in a form: curl -F file=@cat.jpg"
_DEFAULTS = DetectionParams()

Body = TypeVar("Body", bound=ImagesBody)


def detect_request(wire: DetectBody, files: Sequence[GivenImage] = (), wanted: Wanted = ANYWHERE) -> DetectRequest:
    """What a body asks for, and its form's files. Raises `InvalidRequest` naming the field."""
    if wire.classes == []:
        raise InvalidRequest("classes: [] is empty; leave it out for all", param="classes")
    return DetectRequest(
        model=wire.model,
        images=some_images(wire, files),
        params=DetectionParams(
            threshold=_DEFAULTS.threshold if wire.threshold is None else wire.threshold,
            iou_threshold=_DEFAULTS.iou_threshold if wire.iou_threshold is None else wire.iou_threshold,
            max_detections=wire.max_detections or _DEFAULTS.max_detections,
        ),
        classes=None if wire.classes is None else tuple(wire.classes),
        draw=bool(wire.draw),
        keep_alive=wire.keep_alive,
        wanted=wanted,
    )


def classify_request(
    wire: ClassifyBody, files: Sequence[GivenImage] = (), wanted: Wanted = ANYWHERE
) -> ClassifyRequest:
    """As `detect_request`."""
    return ClassifyRequest(model=wire.model, images=some_images(wire, files), keep_alive=wire.keep_alive, wanted=wanted)


def embed_request(wire: EmbedBody, files: Sequence[GivenImage] = (), wanted: Wanted = ANYWHERE) -> EmbedRequest:
    """As `detect_request`: images, then texts, then `input`."""
    check_encoding_format(wire.encoding_format)
    items = (*given_images(wire, files), *_texts(wire), *_input(wire))
    if not items:
        raise InvalidRequest("image: one image or text at least is needed", param="image", hint=_HOW)
    _check_count(items)
    return EmbedRequest(
        model=wire.model,
        items=items,
        dimensions=wire.dimensions,
        truncate=bool(wire.truncate),
        keep_alive=wire.keep_alive,
        wanted=wanted,
    )


def zero_shot_request(
    wire: ZeroShotBody, files: Sequence[GivenImage] = (), wanted: Wanted = ANYWHERE
) -> ZeroShotRequest:
    """As `detect_request`."""
    labels = _checked_labels(wire)
    return ZeroShotRequest(
        model=wire.model,
        images=some_images(wire, files),
        labels=labels,
        templates=tuple(wire.templates) if wire.templates else None,
        truncate=bool(wire.truncate),
        keep_alive=wire.keep_alive,
        wanted=wanted,
    )


def _checked_labels(wire: ZeroShotBody) -> tuple[str, ...]:
    """The labels, none of them empty; the templates have room for one."""
    if not wire.labels:
        raise InvalidRequest("labels: one label at least is needed", param="labels")
    for index, label in enumerate(wire.labels):
        if not label.strip():
            raise InvalidRequest(f"labels[{index}]: must not be empty", param=f"labels[{index}]")
    if wire.templates == []:
        raise InvalidRequest("templates: [] is empty; leave it out for the model's own", param="templates")
    for index, template in enumerate(wire.templates or ()):
        if "{}" not in template:
            param = f"templates[{index}]"
            raise InvalidRequest(f"{param}: has no {{}}, where the label goes", param=param)
    return tuple(wire.labels)


def search_request(
    wire: SearchBody,
    files: Sequence[GivenImage] = (),
    wanted: Wanted = ANYWHERE,
    query_file: GivenImage | None = None,
) -> SearchRequest:
    """As `detect_request`: images, then texts. `query_file` is the query of a form that has it as a file."""
    if query_file is not None and wire.query is not None:
        raise InvalidRequest("query: a text and a file; send one", param="query")
    if query_file is None and wire.query is None:
        raise InvalidRequest("query: field required", param="query", hint="a text, or an image as an object")
    items = (*given_images(wire, files), *_texts(wire))
    if not items:
        raise InvalidRequest("images: one image or text at least is needed, to be searched", param="images", hint=_HOW)
    _check_count(items)
    query = query_file if query_file is not None else _item(wire.query or "", "query")
    return SearchRequest(
        model=wire.model,
        query=query,
        items=items,
        truncate=bool(wire.truncate),
        keep_alive=wire.keep_alive,
        wanted=wanted,
    )


def narrowed(wire: VisionBody, shape: type[Body], does: str) -> Body:
    """The body of the route that does what the model does.

    Raises `UnsupportedParameter` for a field of another route: it would have no effect.
    """
    for name in VisionBody.model_fields:
        if name in wire.model_fields_set and name not in shape.model_fields and getattr(wire, name) is not None:
            raise UnsupportedParameter(f"{name}: has no meaning for {does}, which {wire.model} is for", param=name)
    return shape.model_construct(
        **{name: getattr(wire, name) for name in shape.model_fields}, _fields_set=wire.model_fields_set
    )


def some_images(wire: ImagesBody, files: Sequence[GivenImage]) -> tuple[GivenImage, ...]:
    """One at least."""
    if not (images := given_images(wire, files)):
        raise InvalidRequest("image: one image at least is needed", param="image", hint=_HOW)
    return images


def given_images(wire: ImagesBody, files: Sequence[GivenImage]) -> tuple[GivenImage, ...]:
    """Files, then `image`, then `images`."""
    found = list(files)
    for name in ("image", "images"):
        sent: Sequence[Image] = getattr(wire, name) or ()
        for index, one in enumerate(sent):
            found.append(_image(one, name if len(sent) == 1 else f"{name}[{index}]"))
    if len(found) > MAX_IMAGES:
        raise InvalidRequest(f"images: {len(found)} images; the limit is {MAX_IMAGES}", param="images")
    return tuple(found)


def _image(sent: Image, param: str) -> GivenImage:
    if isinstance(sent, str):
        return GivenImage(sent, param)
    found = _of_part(sent, param)
    if not isinstance(found, GivenImage):
        raise InvalidRequest(f"{param}: must be an image, not a text", param=param)
    return found


def _of_part(part: Part, param: str) -> Item:
    """The one thing that a part has."""
    said: list[Item] = []
    if part.image_url is not None:
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        said.append(
            GivenImage(url, f"{param}.image_url" if isinstance(part.image_url, str) else f"{param}.image_url.url")
        )
    if part.url is not None:
        said.append(GivenImage(part.url, f"{param}.url"))
    if part.image is not None:
        said.append(GivenImage(part.image, f"{param}.image"))
    if part.text is not None:
        said.append(GivenText(part.text, f"{param}.text"))
    if len(said) != 1:
        raise InvalidRequest(f"{param}: must have one of image_url, url, image and text", param=param)
    return said[0]


def _item(sent: str | Part, param: str) -> Item:
    if isinstance(sent, Part):
        item = _of_part(sent, param)
    else:
        is_image = sent[:11].lower() == "data:image/"
        item = GivenImage(sent, param) if is_image else GivenText(sent, param)
    return _checked(item)


def _texts(wire: EmbedBody | SearchBody) -> list[Item]:
    found: list[Item] = []
    for name in ("text", "texts"):
        sent: Sequence[str] = getattr(wire, name) or ()
        for index, text in enumerate(sent):
            found.append(_checked(GivenText(text, name if len(sent) == 1 else f"{name}[{index}]")))
    return found


def _input(wire: EmbedBody) -> list[Item]:
    sent = wire.input or []
    alone = len(sent) == 1
    return [_item(one, "input" if alone else f"input[{index}]") for index, one in enumerate(sent)]


def _checked(item: Item) -> Item:
    if isinstance(item, GivenText) and not item.text:
        raise InvalidRequest(f"{item.param}: must not be empty", param=item.param)
    return item


def _check_count(items: Sequence[Item]) -> None:
    num_images = sum(isinstance(item, GivenImage) for item in items)
    if num_images > MAX_IMAGES:
        raise InvalidRequest(f"images: {num_images} images; the limit is {MAX_IMAGES}", param="images")
    if len(items) - num_images > MAX_TEXTS:
        raise InvalidRequest(f"texts: {len(items) - num_images} texts; the limit is {MAX_TEXTS}", param="texts")
