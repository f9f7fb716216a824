"""A request's prompt → text and tokens, and what an answer to it has to be: all before anything runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vmm_server.errors import InvalidRequest, UnsupportedCapability
from vmm_server.models.loading import ReadyModel
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.answer import AnswerReader, ThinkingState, thinking_state
from vmm_server.prompt.chat import ChatTemplate
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import ChatFormat
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.insert import insert_end_tokens, insert_tokens
from vmm_server.prompt.tool_text import textual_format, with_calls_as_text, with_tools_as_text
from vmm_server.prompt.words import token_ids
from vmm_server.requests import ChatPrompt, Composite, Constraint, GenerateRequest, InsertPrompt, Message, ToolUse


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answer to a chat is to be read: what is thinking in it, and what calls tools."""

    format: ChatFormat
    thinking: ThinkingState
    tools: ToolUse | None
    shown_tokens: frozenset[int]
    """Special tokens that its text must show."""


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """What goes to the model, and how to read what comes back."""

    tokens: tuple[int, ...]
    text: str | None = None
    """Of a chat, as rendered."""
    reading: Reading | None = None
    """`None`: the answer is the model's text as it comes."""
    end_tokens: tuple[int, ...] = ()
    """Tokens that end the answer, beside those that end every one."""

    @property
    def shown_tokens(self) -> frozenset[int]:
        """Special tokens that the answer's text must show."""
        return frozenset() if self.reading is None else self.reading.shown_tokens

    def reader(self, token_bytes: Callable[[int], bytes], new_call_id: Callable[[], str]) -> AnswerReader | None:
        """A reader for one answer, if it is to be read for anything."""
        if (reading := self.reading) is None:
            return None
        tools = () if reading.tools is None else reading.tools.callable
        return AnswerReader(
            reading.format, thinking=reading.thinking, tools=tools, token_bytes=token_bytes, new_call_id=new_call_id
        )


def prepare(
    request: GenerateRequest, model: InstalledModel, ready: ReadyModel, now: datetime
) -> tuple[WrittenPrompt, Constraint | Composite | None]:
    """The prompt of a request, and what every answer to it has to look like.

    For a thread: templates, long texts and many tools take milliseconds. Raises what `write_prompt` raises.
    """
    written = write_prompt(request, model, ready, now)
    if (reading := written.reading) is None:
        return written, request.constraint
    return written, answer_constraint(
        reading.format, thinking=reading.thinking, tools=reading.tools, form=request.constraint, spell=ready.spell
    )


def write_prompt(request: GenerateRequest, model: InstalledModel, ready: ReadyModel, now: datetime) -> WrittenPrompt:
    """The prompt of a request. For a thread.

    Raises `InvalidRequest` naming the prompt's field, `UnsupportedCapability`.
    """
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        written = _write_chat(prompt, request.model, model, ready, now)
    elif isinstance(prompt, InsertPrompt):
        inserted = insert_tokens(ready.tokenizer, prompt.prefix, prompt.suffix)
        if inserted is None:
            raise UnsupportedCapability(request.model, "insert", param=prompt.param)
        written = WrittenPrompt(inserted, end_tokens=insert_end_tokens(ready.tokenizer))
    elif isinstance(prompt.text, str):
        written = WrittenPrompt(token_ids(ready.tokenizer, prompt.text, add_special_tokens=prompt.add_special_tokens))
    else:
        check_token_ids(prompt.param, prompt.text, ready.vocab_size)
        written = WrittenPrompt(prompt.text)
    if not written.tokens:
        raise InvalidRequest(f"{prompt.param} is empty", param=prompt.param)
    return written


def check_token_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise `InvalidRequest` for the first id that is no token of the model."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(f"{param}: token id {token} is not in 0..{vocab_size - 1}", param=param)


def _write_chat(
    prompt: ChatPrompt, name: str, model: InstalledModel, ready: ReadyModel, now: datetime
) -> WrittenPrompt:
    template, chat_format = _template(prompt, name, model, ready)
    if prompt.thinking not in (None, False) and chat_format.reasoning is None:
        raise UnsupportedCapability(name, "thinking", param=prompt.thinking_param)
    messages: Sequence[Message] = _with_model_messages(prompt, model)
    # an assistant message at the end is a prefill: the answer goes on from it
    prefill = bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls
    tools = () if prompt.tools is None else prompt.tools.tools
    if not chat_format.tools_in_template:
        chat_format = replace(chat_format, tools=textual_format(chat_format.tools))
        messages = with_tools_as_text(messages, tools, chat_format.tools, takes_system=template.takes_system)
        tools = ()
    elif not template.writes_calls:
        messages = list(with_calls_as_text(messages, chat_format.tools))
    text = template.render(
        messages,
        tools=tools,
        thinking=prompt.thinking,
        add_generation_prompt=not prefill,
        continue_final_message=prefill,
        now=now,
        variables=prompt.template_variables,
    )
    reading = _reading(chat_format, text, prompt.tools, ready)
    if reading is not None and reading.thinking is not ThinkingState.NONE:
        if prompt.thinking is False and (not_thought := _without_thinking(reading, template)) is not None:
            text += not_thought
            reading = replace(reading, thinking=ThinkingState.NONE)
        elif prefill and reading.thinking is ThinkingState.POSSIBLE and messages[-1].content.strip():
            reading = replace(reading, thinking=ThinkingState.NONE)  # its beginning is behind it
    check_token_ids("context", prompt.context, ready.vocab_size)
    # the template writes the special tokens itself
    tokens = (*prompt.context, *token_ids(ready.tokenizer, text))
    return WrittenPrompt(tokens, text, reading)


def _with_model_messages(prompt: ChatPrompt, model: InstalledModel) -> tuple[Message, ...]:
    """What a Modelfile puts before a conversation, and the conversation.

    A system message that the request begins with replaces the model's own and stays in front, where templates look
    for one. After an earlier exchange (`context`) the model's messages are behind it already.
    """
    given = prompt.messages
    own = () if prompt.context else tuple(Message(role, content) for role, content in model.messages)
    if given and given[0].role == "system":
        return (given[0], *own, *given[1:])
    return (*([] if model.system is None else [Message("system", model.system)]), *own, *given)


def _reading(format: ChatFormat, text: str, tools: ToolUse | None, ready: ReadyModel) -> Reading | None:
    reasoning = format.reasoning
    if tools is None and reasoning is None:
        return None
    markers = [] if tools is None else [*format.tools.special_tokens]
    if reasoning is not None:
        markers += [reasoning.start, reasoning.end, *(reasoning.answer or ())]
    return Reading(format, thinking_state(format, text), tools, ready.spell.ids(markers))


def _without_thinking(reading: Reading, template: ChatTemplate) -> str | None:
    """What keeps a model from thinking whose template cannot: thinking that is over. `None`: nothing is needed."""
    reasoning = reading.format.reasoning
    if reasoning is None:
        return None
    if reading.thinking is ThinkingState.OPEN:
        return f"\n{reasoning.end}\n\n"
    if template.has_thinking_switch or not reasoning.start.startswith(("<", "[")):
        return None
    return f"{reasoning.start}\n\n{reasoning.end}\n\n"


def _template(
    prompt: ChatPrompt, name: str, model: InstalledModel, ready: ReadyModel
) -> tuple[ChatTemplate, ChatFormat]:
    """The request's own template, else the created model's, else its folder's, and how a model writes under it."""
    template = ready.template
    source = prompt.template or model.template
    if source is None:
        if template is None:
            raise UnsupportedCapability(name, "chat")
        return template, ready.format
    template = ChatTemplate(source, bos_token="", eos_token="") if template is None else template.replaced(source)
    return template, replace(ready.format, tools_in_template=find_format(source, ()).tools_in_template)
