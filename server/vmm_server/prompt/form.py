"""What an answer has to look like: its thinking, its form, the calls it has to or may make, in one grammar.

Thinking is free up to its end marker; from there on every token is under the mask, in the same run. The texts that
mean something to whoever reads the answer (`prompt.answer`, the parsers of `prompt.formats`) are in the grammar as
that reader sees them: a marker that is a special token may also not be spelt letter by letter where it means nothing.
"""

import json
import re
from dataclasses import replace

from vmm_server.prompt.answer import ThinkingState
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat, Spell, ToolFormat
from vmm_server.requests import Composite, Constraint, JsonSchema, ToolUse

_ANY = "/(?s:.*)/"
_BLANK = r"BLANK: /[ \n]{0,4}/"
"""What templates put around markers; whoever reads the answer drops it."""


def answer_constraint(
    format: ChatFormat, *, thinking: ThinkingState, tools: ToolUse | None, form: Constraint | None, spell: Spell
) -> Constraint | Composite | None:
    """The constraint of a chat's answer; `None` where nothing is to be enforced.

    Required tools or a form hold from the end of thinking on. With tools that are not required it is the form or
    calls. Strict tools, and calls of which there may be only one, leave the text free until a call begins.
    """
    body = _body(format.tools, tools, form, spell)
    if body is None or format.reasoning is None or thinking is ThinkingState.NONE:
        return body
    if not isinstance(body, Composite):
        body = Composite("start: @form", (("form", body),), body.param)
    thought = _thought(format.reasoning, spell)
    if thinking is ThinkingState.POSSIBLE:
        start = f"(BLANK {spell(format.reasoning.start)} thought BLANK)?"
    else:
        start = "thought BLANK"
    lark = "\n".join([f"start: {start} answer", thought, _BLANK, _renamed(body.lark, "answer")])
    return replace(body, lark=lark)


def _body(
    format: ToolFormat, tools: ToolUse | None, form: Constraint | None, spell: Spell
) -> Constraint | Composite | None:
    """What comes after thinking."""
    if tools is None or not tools.callable:
        return form
    if tools.required:
        return _calls(format, tools, spell)
    if form is not None:
        calls = _calls(format, tools, spell)
        lark = f"start: @form | calls\n{_renamed(calls.lark, 'calls')}"
        return replace(calls, lark=lark, parts=(("form", form), *calls.parts), param=form.param)
    if tools.parallel and not any(tool.strict for tool in tools.callable):
        return None
    return _text_or_calls(format, tools, spell)


def _calls(format: ToolFormat, tools: ToolUse, spell: Spell) -> Composite:
    """Calls as the model writes them. Only a strict tool's schema is one that has to be enforced to the letter."""
    calls = format.grammar(tools, spell)
    strict = {tool.param for tool in tools.callable if tool.strict}
    parts = ((name, part if part.param in strict else _lenient(part)) for name, part in calls.parts)
    return replace(calls, parts=tuple(parts))


def _lenient(part: Constraint) -> Constraint:
    return replace(part, lenient=True) if isinstance(part, JsonSchema) else part


def _text_or_calls(format: ToolFormat, tools: ToolUse, spell: Spell) -> Composite:
    """Any text, which ends or is followed by calls: where it spells the beginning of one, a call follows."""
    calls = _calls(format, tools, spell)
    start, literal = format.start(spell), format.start(json.dumps)
    without = f"TEXT: {_ANY} & ~({_ANY} {literal} {_ANY})"
    if start != literal:  # a special token: the text ends by itself where it comes
        return replace(calls, lark=f"start: TEXT calls?\n{without}\n{_renamed(calls.lark, 'calls')}")
    text = f"text[suffix={literal}]: {_ANY}"  # as soon as it spells the beginning, it is over
    begun = _renamed(calls.lark, "calls").replace(literal, "", 1)
    return replace(calls, lark=f"start: TEXT | text calls\n{without}\n{text}\n{begun}")


def _thought(format: ReasoningFormat, spell: Spell) -> str:
    """The rule `thought`: any text up to the end marker, and that."""
    literal = json.dumps(format.end)
    if (end := spell(format.end)) == literal:
        return f"thought[suffix={literal}]: {_ANY}"
    return f"thought: THOUGHT {end}\nTHOUGHT: {_ANY} & ~({_ANY} {literal} {_ANY})"


def _renamed(lark: str, name: str) -> str:
    """A grammar whose `start` has another name."""
    return re.sub(r"\A\s*start:", f"{name}:", lark)
