"""A request's prompt → text and tokens, and what an answer to it has to be: all before anything runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vmm_adapters.types import IMAGE_MARK
from vmm_server.engine.sequence import SeenPrompt
from vmm_server.errors import ContextLengthExceeded, InvalidRequest, UnsupportedCapability
from vmm_server.media.images import read_images
from vmm_server.models.loading import ReadyModel
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.answer import AnswerReader, ThinkingState, thinking_state
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import ChatFormat
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.go_template import GoTemplate
from vmm_server.prompt.insert import insert_end_tokens, insert_tokens
from vmm_server.prompt.templates import Template
from vmm_server.prompt.tool_text import textual_format, with_calls_as_text, with_tools_as_text
from vmm_server.prompt.truncation import Room, drop_oldest, shorten
from vmm_server.prompt.words import check_length, token_ids, with_first_tokens
from vmm_server.requests import (
    ChatPrompt,
    Composite,
    Constraint,
    GenerateRequest,
    InsertPrompt,
    Message,
    TextPrompt,
    ToolUse,
)


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
    num_dropped_tokens: int = 0
    """What the prompt was too long by, with room for the answer: the oldest tokens went."""
    num_dropped_messages: int = 0
    """Whole messages among them."""
    seen: SeenPrompt | None = None
    """Stands for the tokens, of which there are none, where there are images."""
    prediction: tuple[int, ...] = ()
    """The request's, in the model's tokens."""

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
    """The prompt of a request, shortened where it has to be and may be, and what every answer to it has to look like.

    For a thread: templates, long texts and many tools take milliseconds. Raises what `write_prompt` raises, and
    `ContextLengthExceeded` when what must stay is too long.
    """
    limit = ready.context_length if request.num_ctx is None else min(request.num_ctx, ready.context_length)
    room = Room(limit, request.sampling.max_tokens)
    written = write_prompt(request, model, ready, now, room)
    if request.prediction:
        check_length(request.prediction, "prediction")
        written = replace(written, prediction=token_ids(ready.tokenizer, request.prediction))
    if (reading := written.reading) is None:
        return written, request.constraint
    return written, answer_constraint(
        reading.format, thinking=reading.thinking, tools=reading.tools, form=request.constraint, spell=ready.spell
    )


def write_prompt(
    request: GenerateRequest, model: InstalledModel, ready: ReadyModel, now: datetime, room: Room | None = None
) -> WrittenPrompt:
    """The prompt of a request, whole unless `room` says what it may fill. For a thread.

    Raises `InvalidRequest` naming the prompt's field, `UnsupportedCapability`.
    """
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        written = _write_chat(prompt, request.model, model, ready, now, room)
    elif isinstance(prompt, InsertPrompt):
        written = _write_insert(prompt, request.model, model, ready, now)
    else:
        written = _write_text(prompt, ready, room)
    if not written.tokens and written.seen is None:
        raise InvalidRequest(f"{prompt.param} is empty", param=prompt.param)
    return written


def check_token_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise `InvalidRequest` for the first id that is no token of the model."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(f"{param}: token id {token} is not in 0..{vocab_size - 1}", param=param)


def _write_insert(
    prompt: InsertPrompt, name: str, model: InstalledModel, ready: ReadyModel, now: datetime
) -> WrittenPrompt:
    """By a Go template that has a place for the suffix, else by the model's own tokens for it."""
    check_length(prompt.prefix, "prompt")
    check_length(prompt.suffix, prompt.param)
    end_tokens = insert_end_tokens(ready.tokenizer)
    source = prompt.template or model.template
    template = None if source is None else ready.templates.read(source)
    if isinstance(template, GoTemplate) and template.inserts:
        text = template.render_insert(prompt.prefix, prompt.suffix, now=now)
        tokens = with_first_tokens(ready.tokenizer, token_ids(ready.tokenizer, text))
        return WrittenPrompt(tokens, end_tokens=end_tokens)
    if prompt.template is not None:
        raise InvalidRequest("the template has no place for the suffix: it needs {{ .Suffix }}", param="template")
    inserted = insert_tokens(ready.tokenizer, prompt.prefix, prompt.suffix)
    if inserted is None:
        raise UnsupportedCapability(name, "insert", param=prompt.param)
    return WrittenPrompt(inserted, end_tokens=end_tokens)


def _write_text(prompt: TextPrompt, ready: ReadyModel, room: Room | None) -> WrittenPrompt:
    num_kept = prompt.num_keep
    if isinstance(prompt.text, str):
        check_length(prompt.text, prompt.param)
        tokens = token_ids(ready.tokenizer, prompt.text, add_special_tokens=prompt.add_special_tokens)
        if num_kept is not None and prompt.add_special_tokens:
            num_kept += len(token_ids(ready.tokenizer, "", add_special_tokens=True))  # they come before the text
    else:
        check_token_ids(prompt.param, prompt.text, ready.vocab_size)
        tokens = prompt.text
    if room is None or not prompt.truncate or num_kept is None or len(tokens) <= room.limit:
        return WrittenPrompt(tokens)
    kept = drop_oldest(tokens, num_kept, room)
    return WrittenPrompt(kept, num_dropped_tokens=len(tokens) - len(kept))


def _write_chat(
    prompt: ChatPrompt, name: str, model: InstalledModel, ready: ReadyModel, now: datetime, room: Room | None
) -> WrittenPrompt:
    template, chat_format = _template(prompt, name, model, ready)
    if prompt.thinking not in (None, False) and chat_format.reasoning is None:
        raise UnsupportedCapability(name, "thinking", param=prompt.thinking_param)
    check_token_ids("context", prompt.context, ready.vocab_size)
    messages = _with_model_messages(prompt, model)

    def write(messages: Sequence[Message]) -> WrittenPrompt:
        return _render(prompt, messages, template, chat_format, ready, now)

    whole = write(messages)
    if any(message.images for message in messages):
        return replace(whole, tokens=(), seen=_see(prompt, messages, whole.text or "", ready))
    if room is None or not prompt.truncate or len(whole.tokens) <= room.limit:
        return whole
    if prompt.context:
        num_kept = max(0, len(prompt.context) - (len(whole.tokens) - room.for_prompt))
        written = replace(whole, tokens=whole.tokens[len(prompt.context) - num_kept :])
        kept: Sequence[Message] = messages
    else:
        written, kept = shorten(messages, write, room)
    if len(written.tokens) > room.limit:
        raise ContextLengthExceeded(
            limit=room.limit,
            asked=len(written.tokens),
            param=prompt.param,
            hint="system messages, tools and what was said last are never dropped: shorten those",
        )
    num_dropped = len(whole.tokens) - len(written.tokens)
    return replace(written, num_dropped_tokens=num_dropped, num_dropped_messages=len(messages) - len(kept))


def _see(prompt: ChatPrompt, messages: Sequence[Message], text: str, ready: ReadyModel) -> SeenPrompt:
    """The rendered messages and their images, which are all there: a template may leave out what it does not expect."""
    if prompt.context:
        raise InvalidRequest("context: tokens cannot come before images; send the messages", param="context")
    given = [image for message in messages for image in message.images]
    if (num_written := text.count(IMAGE_MARK)) != len(given):
        raise InvalidRequest(
            f"{prompt.param}: {len(given)} images were sent, and the chat template wrote {num_written}",
            param=prompt.param,
        )
    num_text_tokens = len(token_ids(ready.tokenizer, text.replace(IMAGE_MARK, "")))
    return SeenPrompt(text, read_images(given), num_text_tokens)


def _render(
    prompt: ChatPrompt,
    messages: Sequence[Message],
    template: Template,
    chat_format: ChatFormat,
    ready: ReadyModel,
    now: datetime,
) -> WrittenPrompt:
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
    tokens = token_ids(ready.tokenizer, text)
    if template.adds_bos_token and not prompt.context:
        tokens = with_first_tokens(ready.tokenizer, tokens)
    return WrittenPrompt((*prompt.context, *tokens), text, reading)


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


def _without_thinking(reading: Reading, template: Template) -> str | None:
    """What keeps a model from thinking whose template cannot: thinking that is over. `None`: nothing is needed."""
    reasoning = reading.format.reasoning
    if reasoning is None:
        return None
    if reading.thinking is ThinkingState.OPEN:
        return f"\n{reasoning.end}\n\n"
    if template.has_thinking_switch or not reasoning.start.startswith(("<", "[")):
        return None
    return f"{reasoning.start}\n\n{reasoning.end}\n\n"


def _template(prompt: ChatPrompt, name: str, model: InstalledModel, ready: ReadyModel) -> tuple[Template, ChatFormat]:
    """The request's own template, else the created model's, else its folder's, and how a model writes under it."""
    source = prompt.template or model.template
    if source is None and ready.template is None:
        source = prompt.default_template
    if source is not None:
        template = ready.templates.read(source)
        words = {"tool_format": model.tool_format, "reasoning_format": model.reasoning_format}
        return template, find_format(template, (), **words, otherwise=ready.format)
    if ready.template is None:
        raise UnsupportedCapability(name, "chat")
    return ready.template, ready.format
