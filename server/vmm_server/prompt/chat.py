"""Chat messages → the text that the model was trained to see, by the model's own Jinja template.

Renders as transformers does (its `apply_chat_template`: white-space control, `raise_exception`, `strftime_now`,
`tojson`, loop controls, `{% generation %}`, the special tokens' texts), in the bounded sandbox of `sandbox.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest
from vmm_server.prompt.budget import MAX_TEXT
from vmm_server.prompt.sandbox import ChatEnvironment
from vmm_server.prompt.turns import Turn, TurnWriter, tool_schemas
from vmm_server.requests import Message, Tool

MAX_SOURCE = 2**18
"""Characters a template may have; the longest of today's have about 20,000. The worst of this length compile in 2 s."""

_END_OF_MESSAGE = "\ue000end-of-final-message\ue001"  # private-use characters: no template writes them
_PARTS = re.compile(r"""\bfor\s+\w+\s+in\s+\w+(\.|\[['"])content\b""")
"""A loop over the parts of a content."""
_RENDER_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RecursionError)
_COMPILE_ERRORS = (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError)


class TemplateRefusal(TemplateError):
    """The template itself said no, by `raise_exception`."""


class ChatTemplate:
    """One compiled chat template. Rendering changes nothing here and may happen in several threads at once."""

    adds_bos_token = False
    """These templates write the BOS token themselves."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Compile `source`. The token texts are empty for a model that has none.

        Raises `InvalidRequest` (param `template`) with the line and Jinja's words if it is not a template.
        """
        if len(source) > MAX_SOURCE:
            raise InvalidRequest(
                f"the template has {len(source)} characters, the limit is {MAX_SOURCE}", param="template"
            )
        self.source = source
        self._turns = TurnWriter(source)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._environment = ChatEnvironment()
        self._environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = self._environment.from_string(source)
        except _COMPILE_ERRORS as error:
            line = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise InvalidRequest(
                f"the template cannot be compiled{line}: {_first_line(error)}", param="template"
            ) from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that it reads without having set them, in small letters."""
        names = find_undeclared_variables(self._environment.parse(self.source))
        return frozenset(map(str.lower, names))

    @property
    def writes_calls(self) -> bool:
        """Whether it has a place for the calls of earlier answers."""
        return "tool_calls" in self.source

    @cached_property
    def has_thinking_switch(self) -> bool:
        """Whether it makes a difference what `render` is told of thinking."""
        on, off = (self._tried(Message("user", "x"), thinking=thinking) for thinking in (True, False))
        return on != off

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message comes out: some templates refuse it, some leave it out."""
        return _END_OF_MESSAGE in self._tried(Message("system", _END_OF_MESSAGE), Message("user", "x"))

    @cached_property
    def reads_parts(self) -> bool:
        """Whether contents have to be lists of parts: some models that see have templates which read nothing else."""
        part = {"type": "text", "text": _END_OF_MESSAGE}
        return _PARTS.search(self.source) is not None and not self._shows(_END_OF_MESSAGE) and self._shows([part])

    def _shows(self, content: object) -> bool:
        """Whether the end of this content comes out."""
        turns = [{"role": "user", "content": content}]
        try:
            return _END_OF_MESSAGE in self._render({**self._tokens, "messages": turns, "strftime_now": str})
        except InvalidRequest:
            return False

    def _tried(self, *messages: Message, thinking: bool | None = None) -> str:
        """What comes out; nothing, if the template fails."""
        try:
            return self.render(messages, thinking=thinking, now=datetime.min, variables={})
        except InvalidRequest:
            return ""

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
        """The prompt's text.

        `continue_final_message` ends it where the last message's content ends, so that the model goes on writing
        that message; it excludes `add_generation_prompt`. `thinking` goes by the names that templates know:
        `enable_thinking`, `thinking`, `reasoning_effort`. `variables` (plain JSON values) are seen by the template
        as globals, and win over those; they cannot replace the messages. `now` is what `strftime_now` formats.

        Raises `InvalidRequest` (param `messages`) with the template's own words when it refuses the messages, or
        with what went wrong when it fails or does too much.
        """
        if continue_final_message and (add_generation_prompt or not messages):
            raise ValueError("continue_final_message needs a message and excludes add_generation_prompt")
        if continue_final_message:
            final = replace(messages[-1], content=messages[-1].content + _END_OF_MESSAGE + " ")
            messages = (*messages[:-1], final)
        schemas = tool_schemas(tools) or None
        known = {
            "tools": schemas,
            "xml_tools": schemas,  # SmolLM 3's word
            "documents": None,
            **{name: text for name, text in self._tokens.items() if text},
            **_thinking_variables(thinking),
            **variables,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": now.strftime,
        }
        try:
            turns = self._turns.turns(messages, tools, null_content=self._turns.takes_null)
            text = self._render({**known, "messages": self._in_parts(turns)})
        except InvalidRequest:
            if not self._turns.takes_null:
                raise
            turns = self._turns.turns(messages, tools, null_content=False)
            text = self._render({**known, "messages": self._in_parts(turns)})
        return _cut_after_final_message(text) if continue_final_message else text

    def _in_parts(self, turns: list[Turn]) -> list[Turn]:
        if not self.reads_parts:
            return turns
        return [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["content"] else turn
            for turn in turns
        ]

    def _render(self, variables: Mapping[str, object]) -> str:
        try:
            with self._environment.bounded():
                text = self._template.render(variables)
        except TemplateRefusal as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}", param="messages") from error
        except (TemplateError, *_RENDER_ERRORS) as error:
            _fail(f"the chat template failed on the messages: {_first_line(error)}", error)
        if len(text) > MAX_TEXT:
            _fail(f"the chat template makes more than {MAX_TEXT} characters of the messages")
        return text


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, else tokenizer_config.json's. `None`: it has none.

    Of several named templates it is the one named `default`. Raises `ImportFailed` naming the file.
    """
    config = _read_config(folder / "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    try:
        source = path.read_text(encoding="utf-8") if path.is_file() else _default_template(config.get("chat_template"))
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8") from error
    except OSError as error:
        raise ImportFailed(f"{path} cannot be read: {error.strerror}") from error
    if source is None:
        return None
    try:
        return ChatTemplate(source, **read_token_texts(folder))
    except InvalidRequest as error:
        raise ImportFailed(f"{folder}: {error.message}") from error


def read_token_texts(folder: Path) -> dict[str, str]:
    """`bos_token` and `eos_token` of a model folder, empty where it has none. Raises `ImportFailed`."""
    config = _read_config(folder / "tokenizer_config.json")
    return {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}


def _thinking_variables(thinking: bool | str | None) -> dict[str, object]:
    """Qwen 3, SmolLM 3 and GLM read the first name, Granite and DeepSeek the second, gpt-oss the third."""
    if thinking is None:
        return {}
    switched: dict[str, object] = {"enable_thinking": bool(thinking), "thinking": bool(thinking)}
    return switched if isinstance(thinking, bool) else {**switched, "reasoning_effort": thinking}


def _cut_after_final_message(text: str) -> str:
    """Everything up to the marker. A template that trims takes the space after it away: then trim here as well."""
    before, marker, after = text.rpartition(_END_OF_MESSAGE)
    if not marker:
        _fail("the chat template leaves the last message out, so it cannot be continued")
    return before if after.startswith(" ") else before.rstrip()


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _fail(message: str, error: Exception | None = None) -> NoReturn:
    raise InvalidRequest(message, param="messages") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:  # not UTF-8, or not JSON
        raise CorruptFile(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise ImportFailed(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"{path} is not a JSON object")
    return config


def _default_template(value: object) -> str | None:
    """A text, or a list of `{"name": …, "template": …}`."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _token_text(value: object) -> str:
    """A special token is written as a text, or as an object with its text in `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
