"""Chat templates in Go's language, as Ollama's Modelfiles have them: `TEMPLATE` and the `template` of a request.

What they are given, and how a conversation goes into one that knows a single prompt and its response only, follows
Ollama's template/template.go. Two things are better here: properties and arguments keep the client's order, and JSON
is not escaped for HTML.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from time import thread_time

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.budget import MAX_TEXT, Budget, TemplateTooCostly
from vmm_server.prompt.go_values import OLLAMA_FUNCTIONS, message_struct, tool_list
from vmm_server.prompt.text_template.execution import Execution
from vmm_server.prompt.text_template.functions import BUILTINS, LAZY, TemplateFunction
from vmm_server.prompt.text_template.identifiers import cut_after, identifiers
from vmm_server.prompt.text_template.nodes import Action, Command, Fields, Nodes, Pipeline
from vmm_server.prompt.text_template.parser import parse
from vmm_server.prompt.text_template.values import ExecutionError
from vmm_server.requests import Message, Tool

MAX_SOURCE = 2**18
"""Characters a template may have; the longest of today's have about 20,000."""

_KNOWN = frozenset((*BUILTINS, *LAZY, *OLLAMA_FUNCTIONS, "currentDate", "yesterdayDate"))
_END_OF_MESSAGE = "\ue000end-of-final-message\ue001"  # private-use characters: no template writes them
_RESPONSE = Action(Pipeline((Command((Fields(("Response",)),)),), (), False, 1))
_FAILURES = (ExecutionError, TemplateTooCostly, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


def parse_go_template(source: str) -> "GoTemplate":
    """The template. Raises `InvalidRequest` (param `template`) with the line for what is wrong or not supported."""
    return GoTemplate(source)


class GoTemplate:
    """One parsed template. Rendering changes nothing here and may happen in several threads at once."""

    adds_bos_token = True
    """These templates leave the BOS token to the tokeniser."""

    def __init__(self, source: str) -> None:
        """See `parse_go_template`."""
        if len(source) > MAX_SOURCE:
            raise InvalidRequest(
                f"the template has {len(source)} characters, the limit is {MAX_SOURCE}", param="template"
            )
        self.source = source
        self._tree = parse(source, _KNOWN)
        self.variables = frozenset(
            name.lower() for nodes in (self._tree.root, *self._tree.defined.values()) for name in identifiers(nodes)
        )
        """The names of all fields that it reads, in small letters: what Ollama tells capabilities by."""
        self._root: Nodes = self._tree.root
        if not self.variables & {"messages", "response"}:
            self._root = (*self._root, _RESPONSE)

    @property
    def writes_calls(self) -> bool:
        """Whether it has a place for the calls of earlier answers."""
        return "toolcalls" in self.variables and "messages" in self.variables

    @property
    def inserts(self) -> bool:
        """Whether it writes what fill-in-the-middle needs: `render_insert` may be called."""
        return "suffix" in self.variables

    @cached_property
    def has_thinking_switch(self) -> bool:
        """Whether it makes a difference what `render` is told of thinking."""
        on, off = (self._tried(Message("user", "x"), thinking=thinking) for thinking in (True, False))
        return on != off

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message comes out."""
        return _END_OF_MESSAGE in self._tried(Message("system", _END_OF_MESSAGE), Message("user", "x"))

    def _tried(self, *messages: Message, thinking: bool | None = None) -> str:
        """What comes out; nothing, if the template fails."""
        try:
            return self.render(messages, thinking=thinking, now=datetime(2000, 1, 2), variables={})
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
        """The prompt's text; see `ChatTemplate.render`.

        A template decides by itself how the prompt ends, so `add_generation_prompt` changes nothing.
        Raises `InvalidRequest` (param `messages`) with the line and what went wrong when the template fails or does
        too much, or when it leaves out the last message, which is to be continued.
        """
        if continue_final_message and (add_generation_prompt or not messages):
            raise ValueError("continue_final_message needs a message and excludes add_generation_prompt")
        if continue_final_message:
            final = replace(messages[-1], content=messages[-1].content + _END_OF_MESSAGE)
            messages = (*messages[:-1], final)
        common = {**_thinking_data(_switch(variables, thinking)), **variables, "Response": ""}
        execution = self._execution(now)

        def work() -> str:
            if "messages" not in self.variables:
                return self._render_exchanges(execution, messages, common)
            return execution.run(self._root, {**common, **_conversation(messages, tools)})

        text = self._run(execution, work)
        if not continue_final_message:
            return text
        before, marker, _ = text.rpartition(_END_OF_MESSAGE)
        if not marker:
            raise InvalidRequest(
                "the chat template leaves the last message out, so it cannot be continued", param="messages"
            )
        return before

    def render_insert(self, prefix: str, suffix: str, *, now: datetime) -> str:
        """The prompt for a text between these two. Raises `InvalidRequest` (param `suffix`) where it fails."""
        execution = self._execution(now)
        data = {**_thinking_data(None), "Prompt": prefix, "Suffix": suffix, "Response": ""}
        return self._run(execution, lambda: execution.run(self._root, data), param="suffix")

    def _execution(self, now: datetime) -> Execution:
        dates = {
            "currentDate": TemplateFunction(lambda _, *__: f"{now:%Y-%m-%d}", 0, None),
            "yesterdayDate": TemplateFunction(lambda _, *__: f"{now - timedelta(days=1):%Y-%m-%d}", 0, None),
        }
        return Execution(self._tree, {**BUILTINS, **OLLAMA_FUNCTIONS, **dates}, Budget(thread_time))

    def _run(self, execution: Execution, work: Callable[[], str], param: str = "messages") -> str:
        try:
            text = work()
        except _FAILURES as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidRequest(
                f"the template failed on the {param} in line {execution.line}: {reason}", param=param
            ) from error
        if len(text) > MAX_TEXT:
            raise InvalidRequest(f"the template makes more than {MAX_TEXT} characters of the {param}", param=param)
        return text

    @cached_property
    def _beginning(self) -> Nodes:
        """The template up to where the response stands."""
        return cut_after("Response", self._root)

    def _render_exchanges(self, execution: Execution, messages: Sequence[Message], common: Mapping[str, object]) -> str:
        """The template once for each system text, prompt and response; the last time up to the response."""
        parts: list[str] = []
        exchange = {"System": "", "Prompt": "", "Response": ""}
        for message in _collated(messages):
            is_next = {
                "system": exchange["Prompt"] or exchange["Response"],
                "user": exchange["Response"],
            }.get(message.role)
            if is_next:
                parts.append(execution.run(self._root, {**common, **exchange}))
                exchange = {"System": "", "Prompt": "", "Response": ""}
            name = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(message.role)
            if name is not None:
                exchange[name] = message.content
        parts.append(execution.run(self._beginning, {**common, **exchange}))
        return "".join(parts)


def _conversation(messages: Sequence[Message], tools: Sequence[Tool]) -> Mapping[str, object]:
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id is not None}
    return {
        "System": "\n\n".join(message.content for message in messages if message.role == "system"),
        "Messages": [message_struct(message, names) for message in _collated(messages)],
        "Tools": tool_list(tools),
    }


def _collated(messages: Sequence[Message]) -> Iterator[Message]:
    """Messages of one role that follow each other are one, but for results and calls of tools, of which each counts."""
    held: Message | None = None
    for message in messages:
        if held is not None and held.role == message.role != "tool" and not (held.tool_calls or message.tool_calls):
            held = replace(held, content=f"{held.content}\n\n{message.content}")
            continue
        if held is not None:
            yield held
        held = message
    if held is not None:
        yield held


def _switch(variables: Mapping[str, object], thinking: bool | str | None) -> bool | str | None:
    """What the variables that Jinja templates are told of thinking by say of it; they win over `thinking`."""
    told = (variables.get(name) for name in ("enable_thinking", "thinking"))
    switched = next((value for value in told if isinstance(value, bool)), None)
    level = variables.get("reasoning_effort")
    if isinstance(level, str) and switched is not False:
        return level
    return thinking if switched is None or (switched and isinstance(thinking, str)) else switched


def _thinking_data(thinking: bool | str | None) -> dict[str, object]:
    level = thinking if isinstance(thinking, str) else "medium" if thinking else ""
    return {"Think": bool(thinking), "ThinkLevel": level, "IsThinkSet": thinking is not None}
