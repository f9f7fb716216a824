"""Chat templates in either language: Jinja, as models bring them, and Go's, as Modelfiles do."""

import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.chat import ChatTemplate
from vmm_server.prompt.go_template import GoTemplate, parse_go_template
from vmm_server.requests import Message, Tool

_MAX_KEPT = 8
_MAX_KEPT_SOURCE = 2**16
_JINJA_STATEMENT = re.compile(r"\{%[-+]?\s*[A-Za-z]\w*")
_GO_ACTION = re.compile(
    r"""\{\{(?:-\s)?\s*(?:[.$]|/\*|(?:if|with|range)\s+[-\w.$("`]|(?:define|template|block)\s*["`])"""
)


class Template(Protocol):
    """One compiled chat template, whatever its language; rendering is thread-safe."""

    source: str

    @property
    def variables(self) -> frozenset[str]:
        """What it reads of what it is given, in small letters: `messages`, `tools`, `suffix`, …"""
        ...

    @property
    def adds_bos_token(self) -> bool:
        """Its text lacks the tokens that the tokeniser puts before every text."""
        ...

    @property
    def writes_calls(self) -> bool:
        """Whether it has a place for the calls of earlier answers."""
        ...

    @property
    def takes_system(self) -> bool:
        """Whether a system message comes out."""
        ...

    @property
    def has_thinking_switch(self) -> bool:
        """Whether it makes a difference what `render` is told of thinking."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        now: datetime,
        variables: Mapping[str, object],
    ) -> str:
        """See `ChatTemplate.render`."""
        ...


def read_template(source: str, *, bos_token: str = "", eos_token: str = "") -> Template:
    """A template in the language that its source shows. The token texts are for Jinja; Go's templates know none.

    Jinja shows in statements (`{% for`), Go in actions that Jinja cannot read (`{{ .Prompt }}`, `{{ if`, `{{ $x`).
    A source with neither is Go's if it can be read as Go's and has a place for messages or a prompt, else Jinja.

    Raises `InvalidRequest` (param `template`) for one that shows both, has no place for the conversation, or cannot
    be compiled.
    """
    statement, action = _JINJA_STATEMENT.search(source), _GO_ACTION.search(source)
    if statement is not None and action is not None:
        raise InvalidRequest(
            f"the template mixes two languages: {_shown(source, statement)} is Jinja, {_shown(source, action)} is Go",
            param="template",
        )
    if "{{" not in source and statement is None:
        raise InvalidRequest("the template has no place for the messages: it is plain text", param="template")
    if action is not None:
        return _go_template(source)
    if statement is None and (go := _readable_as_go(source)) is not None:
        return go
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)


def variables(source: str) -> frozenset[str]:
    """The names that a template reads, in small letters: `tools` and `suffix` among them tell what it is for.

    Raises what `read_template` raises.
    """
    return read_template(source).variables


class TemplateReader:
    """Compiles templates for one model, and keeps the last few of usual size. Thread-safe."""

    def __init__(self, *, bos_token: str = "", eos_token: str = "") -> None:
        """The model's token texts, for templates in Jinja."""
        self._bos_token, self._eos_token = bos_token, eos_token
        self._kept: dict[str, Template] = {}
        self._lock = threading.Lock()

    def read(self, source: str) -> Template:
        """See `read_template`."""
        with self._lock:
            template = self._kept.pop(source, None)
            if template is not None:
                self._kept[source] = template
                return template
        template = read_template(source, bos_token=self._bos_token, eos_token=self._eos_token)
        if len(source) > _MAX_KEPT_SOURCE:
            return template
        with self._lock:
            self._kept[source] = template
            if len(self._kept) > _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return template


def _go_template(source: str) -> GoTemplate:
    template = parse_go_template(source)
    if not template.variables & {"messages", "prompt", "suffix"}:
        raise InvalidRequest(
            "the template has no place for the conversation: it needs {{ .Messages }} or {{ .Prompt }}",
            param="template",
        )
    return template


def _readable_as_go(source: str) -> GoTemplate | None:
    try:
        return _go_template(source)
    except InvalidRequest:
        return None


def _shown(source: str, match: re.Match[str]) -> str:
    line = source.count("\n", 0, match.start()) + 1
    return f"{' '.join(match.group().split())!r} in line {line}"
