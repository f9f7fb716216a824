"""Modelfiles: how Ollama's users write down what a model is made of (its docs/modelfile.mdx). Pure.

`modelfile_syntax` has the form; here is what the instructions mean.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmm_server.errors import InvalidRequest
from vmm_server.models.modelfile_syntax import Instruction, close_to, decode, instructions, write_instruction
from vmm_server.models.parameters import PARAMETERS, check_parameters, from_sampling
from vmm_server.models.store import InstalledModel

ROLES = ("system", "user", "assistant")
_VERSION = re.compile(r"v?\d+(\.\d+){0,2}([-+][0-9A-Za-z.+-]+)?")
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_FLAGS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""As Go's strconv.ParseBool has them."""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says. `str()` writes it so that it is read the same."""

    from_: str
    """A model's name, a path, or `@sha256:<hex>` of a blob."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """In Ollama's words; `stop` is a list."""
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    """(role, text)."""
    requires: str | None = None
    """A version of Ollama; nothing here depends on it."""

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield write_instruction("FROM", self.from_)
        yield from (write_instruction("ADAPTER", adapter) for adapter in self.adapters)
        for name, text in (("TEMPLATE", self.template), ("SYSTEM", self.system), ("REQUIRES", self.requires)):
            if text is not None:
                yield write_instruction(name, text)
        for name, value in parameter_values(self.parameters):
            yield write_instruction(f"PARAMETER {name}", format_value(value))
        yield from (write_instruction("LICENSE", text) for text in self.licenses)
        yield from (write_instruction(f"MESSAGE {role}", text) for role, text in self.messages)


def read_modelfile(content: bytes) -> Modelfile:
    """Read the bytes of a Modelfile: UTF-8, or UTF-16 with a byte order mark. Raises as `parse_modelfile`."""
    return parse_modelfile(decode(content))


def parse_modelfile(text: str) -> Modelfile:
    """Read a Modelfile. Raises `InvalidRequest`, or `UnsupportedParameter`, naming the line and the instruction."""
    once: dict[str, str] = {}
    parameters: dict[str, object] = {}
    adapters: list[str] = []
    licenses: list[str] = []
    messages: list[tuple[str, str]] = []
    for found in instructions(text.removeprefix("\ufeff")):
        match found.name:
            case "parameter":
                _add_parameter(found, parameters)
            case "message":
                messages.append((_role(found), found.value))
            case "license":
                licenses.append(found.value)
            case "adapter":
                adapters.append(_filled(found))
            case "from" if "from" in once:
                raise found.error("there is a FROM already, and a model is made of one")
            case "from":
                once["from"] = _filled(found)
            case "requires" if not _VERSION.fullmatch(found.value):
                raise found.error(f"{found.value[:40]!r} is no version such as 0.14.0")
            case _:
                once[found.name] = found.value
    if "from" not in once:
        hint = "begin it with FROM and a model's name or a file's path"
        raise InvalidRequest("the Modelfile has no FROM", param="from", hint=hint)
    return Modelfile(
        once["from"],
        parameters,
        once.get("template"),
        once.get("system"),
        tuple(adapters),
        tuple(licenses),
        tuple(messages),
        once.get("requires"),
    )


def parameters_of(model: InstalledModel) -> dict[str, object]:
    """What requests to this model inherit, in Ollama's words: its card's recommendations under its own parameters."""
    context = {} if model.num_ctx is None else {"num_ctx": model.num_ctx}
    return from_sampling(model.sampling) | context | model.parameters


def modelfile_of(model: InstalledModel, template: str | None = None) -> Modelfile:
    """The Modelfile of this model, FROM itself. `template` is its folder's, if it has none of its own."""
    return Modelfile(
        model.name,
        parameters_of(model),
        model.template if model.template is not None else template,
        model.system,
        licenses=licenses_of(model),
        messages=model.messages,
    )


def licenses_of(model: InstalledModel) -> tuple[str, ...]:
    """The texts, or the licence's name where there are none."""
    return model.license_texts or ((model.license,) if model.license else ())


def parameter_values(parameters: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """One pair a line: a list is a parameter told several times."""
    for name, value in parameters.items():
        yield from ((name, item) for item in (value if isinstance(value, list | tuple) else (value,)))


def format_value(value: object) -> str:
    """A parameter's value as a Modelfile has it: `0.7`, `4096`, `true`, or the text itself."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def parameters_text(model: InstalledModel) -> str:
    """One parameter a line, its name padded to 30 columns, texts in quotes: as Ollama's `/api/show` has them."""
    return "\n".join(
        f"{name:<30} {json.dumps(value, ensure_ascii=False) if isinstance(value, str) else format_value(value)}"
        for name, value in parameter_values(parameters_of(model))
    )


def _add_parameter(found: Instruction, parameters: dict[str, object]) -> None:
    """Of a parameter told twice the last one counts, but all of `stop` are kept."""
    if found.word not in PARAMETERS:
        raise found.error("there is no such parameter", close_to(found.word.lower(), PARAMETERS))
    try:
        (value,) = check_parameters({found.word: _typed(found.value, PARAMETERS[found.word])}).values()
    except InvalidRequest as error:
        problem = error.message.removeprefix(f"{error.param}: ")
        raise found.error(f"{problem}, not {found.value[:40]!r}") from error
    if found.word == "stop":
        kept = parameters.get("stop")
        parameters["stop"] = [*kept, found.value] if isinstance(kept, list) else [found.value]
    else:
        parameters[found.word] = value


def _typed(text: str, kind: type) -> object:
    """The number or flag that a text is, or the text itself where it is none."""
    if kind is bool:
        return _FLAGS.get(text, text)
    if kind in (str, list) or not _NUMBER.fullmatch(text):
        return text
    return int(text) if kind is int and text.lstrip("+-").isdecimal() else float(text)


def _role(found: Instruction) -> str:
    if (role := found.word.lower()) not in ROLES:
        raise found.error(f"its role must be one of {', '.join(ROLES)}")
    return role


def _filled(found: Instruction) -> str:
    if not found.value.strip():
        raise found.error("its value is missing")
    return found.value
