"""Bodies of `/v1/vision`, as JSON or as a form's fields."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import from_json

from vmm_server.api.body import Duration, Integer, Wire
from vmm_server.api.placement import PlacementFields
from vmm_server.api.vectors import EncodingFormat

MAX_IMAGES = 64
"""In one request."""
MAX_TEXTS = 2048
"""The same of texts."""
MAX_DETECTIONS = 1000


def _listed(value: object) -> object:
    """One or many; in a form, where there are no arrays, also JSON's."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = from_json(value)
        except ValueError:
            return [value]
    return value if isinstance(value, list) else [value]


class ImageURL(Wire):
    """Where an image is, or the image itself."""

    url: str
    """A data URI, or `https://…`."""


class Part(Wire):
    """An image or a text, as parts of OpenAI's messages spell them."""

    type: str | None = None
    image_url: ImageURL | str | None = None
    url: str | None = None
    """The same."""
    image: str | None = None
    """The same, or bare base64."""
    text: str | None = None


Image = str | Part
"""A data URI, a URL or bare base64; or an object with one of them."""
Images = Annotated[list[Image], BeforeValidator(_listed, json_schema_input_type=Image | list[Image])]
Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Items = Annotated[list[str | Part], BeforeValidator(_listed, json_schema_input_type=str | Part | list[str | Part])]
Classes = Annotated[list[str | Integer], BeforeValidator(_listed, json_schema_input_type=str | int | list[str | int])]
Fraction = Annotated[float, Field(ge=0, le=1)]
ResponseFormat = Literal["json", "png"]


class ImagesBody(PlacementFields):
    """Images, and the model that looks at them."""

    model: str
    image: Images | None = None
    """A data URI, a URL or base64; an object such as `{"url": …}`; or several. A form has files in `file`."""
    images: Images | None = None
    """The same."""
    keep_alive: Duration = None


class DetectFields(Wire):
    """What of a detector's output is wanted."""

    threshold: Fraction | None = None
    """The least score; 0.25 by default."""
    iou_threshold: Fraction | None = None
    """Of two boxes of one class that overlap more, the better one stays; 0.45 by default."""
    max_detections: Annotated[Integer, Field(ge=1, le=MAX_DETECTIONS)] | None = None
    """The best of one picture; 300 by default."""
    classes: Classes | None = None
    """Names or numbers of the classes that are wanted; all by default."""
    draw: bool | None = None
    """Whether each picture comes back with what was found drawn into it, as a data URI."""
    response_format: ResponseFormat | None = None
    """`png` answers one picture, drawn, in place of JSON; so does `Accept: image/png`."""


class TopFields(Wire):
    """How many answers are wanted."""

    top_k: Annotated[Integer, Field(ge=1)] | None = None
    """The best ones; 5 classes by default, all labels, all that is searched."""


class TextFields(Wire):
    """Texts beside the images."""

    truncate: bool | None = None
    """Cut texts that are too long at their end; else they are refused."""


class EmbedFields(TextFields):
    """What vectors are made of, and how they are written."""

    text: Texts | None = None
    texts: Texts | None = None
    """The same."""
    input: Items | None = None
    """Texts and images in any order; a string is an image if it is a data URI."""
    encoding_format: EncodingFormat = None
    """`base64` is little-endian float32, which OpenAI's clients ask for."""
    dimensions: Annotated[Integer, Field(ge=1)] | None = None
    """Cut each vector to so many numbers and normalise it again."""
    user: str | None = None


class ZeroShotFields(TopFields, TextFields):
    """The classes that pictures are sorted into."""

    labels: Texts | None = None
    templates: Texts | None = None
    """Sentences around a label, `{}` in its place, whose vectors are averaged; the model's own by default."""


class SearchFields(TopFields, TextFields):
    """What is searched for."""

    query: str | Part | None = None
    """A text, or an image as an object or a data URI."""
    text: Texts | None = None
    texts: Texts | None = None
    """To be searched, beside or in place of images."""


class DetectBody(DetectFields, ImagesBody):
    """Body of `POST /v1/vision/detect`."""


class ClassifyBody(TopFields, ImagesBody):
    """Body of `POST /v1/vision/classify`."""


class EmbedBody(EmbedFields, ImagesBody):
    """Body of `POST /v1/vision/embed`."""


class ZeroShotBody(ZeroShotFields, ImagesBody):
    """Body of `POST /v1/vision/zero-shot`."""


class SearchBody(SearchFields, ImagesBody):
    """Body of `POST /v1/vision/search`."""


class VisionBody(DetectFields, EmbedFields, ZeroShotFields, SearchFields, ImagesBody):
    """Body of `POST /v1/vision`: the fields of what the model does."""
