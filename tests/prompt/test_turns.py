"""Templates differ in what they make of tools and calls: what real ones do, in a few lines each."""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.chat import ChatTemplate
from vmm_server.requests import Message, Tool, ToolCall

NOW = datetime(2026, 11, 21)
SCHEMA = '{"type": "object", "properties": {"zone": {"type": "string"}, "at": {"type": "integer"}}}'
TOOLS = (Tool("time", "What time it is", SCHEMA), Tool("now"))
ARGUMENTS = '{"zone": "Europe/Zürich", "at": 5}'
ASK = Message("user", "Hi")
CALL = Message("assistant", "", tool_calls=(ToolCall("time", ARGUMENTS, "call_1"),))
RESULT = Message("tool", "12:30", tool_call_id="call_1")
BOTH = Message(
    "assistant", "Well.", tool_calls=(ToolCall("time", ARGUMENTS, "call_1"), ToolCall("now", "{}", "call_2"))
)
RESULTS = (Message("tool", "now!", tool_call_id="call_2"), RESULT)

QWEN = """{%- for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.content %}{{ '\n' + message.content }}{% endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""


def render(source: str, *messages: Message, tools: tuple[Tool, ...] = (), **options: Any) -> str:
    options = {"now": NOW, "variables": {}, "add_generation_prompt": False} | options
    return ChatTemplate(source, bos_token="", eos_token="").render(messages, tools=tools, **options)


def test_tools_and_calls_render_as_transformers_does() -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    function = {"name": "time", "arguments": json.loads(ARGUMENTS)}
    turns.append(
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "call_1", "function": function}]}
    )
    turns.append({"role": "tool", "content": "12:30", "tool_call_id": "call_1", "name": "time"})
    described = [
        {"name": "time", "description": "What time it is", "parameters": json.loads(SCHEMA)},
        {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    ]
    tools = [{"type": "function", "function": one} for one in described]
    expected = render_jinja_template([turns], tools=tools, chat_template=QWEN)[0][0]
    assert render(QWEN, ASK, CALL, RESULT, tools=TOOLS) == expected
    assert expected.index('"zone"') < expected.index('"at"'), "the order of properties is kept"


def test_no_tools_are_none_to_a_template() -> None:
    assert render("{{ tools is none }}{{ tools is defined }}", ASK) == "TrueTrue"


@pytest.mark.parametrize(
    "expression",
    [
        "'x' + arguments + 'y'",  # DeepSeek
        "'x' ~ arguments ~ 'y'",
        "'x%sy' % arguments",
        "'x' + arguments|string + 'y'",
        "'x' + (arguments if arguments is string else arguments|tojson) + 'y'",  # Qwen 3
        "'x' + arguments|tojson + 'y'",  # Llama, Mistral
    ],
)
def test_arguments_are_an_object_and_its_text(expression: str) -> None:
    source = "{% set arguments = messages[0].tool_calls[0].function.arguments %}{{ " + expression + " }}"
    assert render(source, CALL) == f"x{ARGUMENTS}y"


def test_arguments_can_be_walked_through() -> None:
    source = (
        "{% set arguments = messages[0].tool_calls[0].function.arguments %}{{ arguments is mapping }}"
        "{% for key, value in arguments.items() %} {{ key }}={{ value }}{% endfor %} {{ arguments.zone }}"
    )
    assert render(source, CALL) == "True zone=Europe/Zürich at=5 Europe/Zürich"


@pytest.mark.parametrize("broken", ['{"zone": "Eur', "", "[1]", "null"])
def test_arguments_that_are_no_object_stay_the_text_they_were(broken: str) -> None:
    message = Message("assistant", "", tool_calls=(ToolCall("time", broken),))
    assert render("{{ messages[0].tool_calls[0].function.arguments }}", message) == broken


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("{% if messages[0]['content'] is not none %}said{% else %}called{% endif %}", "called"),
        ("{{ 'called' if messages[0].content == None else 'said' }}", "called"),
        ("{{ messages[0].content + '!' }}{{ messages[0].reasoning_content is not none }}", "!True"),
        # it asks, and then cannot bear it
        ("{% if messages[0].content is none %}{% endif %}{{ '</think>' in messages[0].content }}", "False"),
    ],
)
def test_an_absent_content_is_what_the_template_can_take(source: str, seen: str) -> None:
    assert render(source + "{# tool_calls #}", CALL) == seen


def test_a_result_has_the_name_of_its_function() -> None:
    source = "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }};{% endfor %}"
    assert render(source, CALL, RESULT) == "assistant  ;tool time call_1;"
    assert render(source, CALL, Message("tool", "x", name="clock", tool_call_id="call_1")).endswith("clock call_1;")
    assert render(source, Message("tool", "x", tool_call_id="lost")) == "tool  lost;"


def test_ids_are_short_where_a_template_insists() -> None:
    source = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{% if call.id is not defined or call.id|length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ call.id }}"
        "{% endfor %}{% if m.tool_call_id %}={{ m.tool_call_id }};{% endif %}{% endfor %}"
    )
    one, other = (
        render(
            source,
            Message("assistant", "", tool_calls=(ToolCall("f", "{}", id),)),
            Message("tool", "", tool_call_id=id),
        )
        for id in ("call_0123456789abcdef", "a1B2c3D4e")
    )
    left, right = one.removesuffix(";").split("=")
    assert left == right
    assert left.isalnum()
    assert other == "a1B2c3D4e=a1B2c3D4e;"


SINGLE = """{% for m in messages %}{% if m.tool_calls %}
{%- if not m.tool_calls|length == 1 %}{{ raise_exception('one at a time') }}{% endif -%}
[{{ m.content }}>{{ m.tool_calls[0].function.name }}]{% else %}[{{ m.role }}:{{ m.content }}]{% endif %}{% endfor %}"""


def test_calls_come_one_by_one_where_a_turn_holds_one() -> None:
    text = render(SINGLE, ASK, BOTH, *RESULTS, Message("user", "Thanks"))
    assert text == "[user:Hi][Well.>time][tool:12:30][>now][tool:now!][user:Thanks]"


def test_results_without_a_call_of_theirs_stay_where_they_are() -> None:
    assert render(SINGLE, BOTH, Message("tool", "?")) == "[Well.>time][>now][tool:?]"


def test_a_result_is_told_once() -> None:
    twins = replace(BOTH, tool_calls=(ToolCall("time", "{}", "call_1"), ToolCall("now", "{}", "call_1")))
    assert render(SINGLE, twins, RESULT) == "[Well.>time][tool:12:30][>now]"


def test_a_turn_that_may_hold_several_calls_does() -> None:
    assert render(QWEN, BOTH).count("<|im_start|>") == 1


def test_granite_names_who_brings_a_result() -> None:
    source = "{% for m in messages %}{% if m['role'] == 'tool_response' %}{{ m.content }}{% endif %}{% endfor %}"
    assert render(source, CALL, RESULT) == "12:30"


@pytest.mark.parametrize("system", [(), (Message("system", "Be kind."),)])
def test_phi_finds_its_tools_in_the_system_message(system: tuple[Message, ...]) -> None:
    source = (
        "{% for message in messages %}{% if message.role == 'system' and 'tools' in message %}"
        "{{ message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    text = render(source, *system, ASK, tools=TOOLS)
    told = json.loads(text.partition("<|tool|>")[2].partition("<|/tool|>")[0])
    assert [tool["name"] for tool in told] == ["time", "now"]
    assert text.startswith("Be kind." if system else "You are")
    assert render(source, *system, ASK) == "".join(message.content for message in (*system, ASK))


@pytest.mark.parametrize(
    ("thinking", "seen"),
    [(None, "||"), (True, "True|True|"), (False, "False|False|"), ("low", "True|True|low")],
)
def test_thinking_goes_by_the_names_that_templates_know(thinking: bool | str | None, seen: str) -> None:
    source = "{{ enable_thinking }}|{{ thinking }}|{{ reasoning_effort }}"
    assert render(source, ASK, thinking=thinking) == seen


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}", True),
        ("{% if thinking %}Think first.{% endif %}", True),
        ("{{ 'a thinking model' }} enable_thinking {{ messages[0].thinking }}", False),
        ("{{ raise_exception('no') }}{{ thinking }}", False),
    ],
)
def test_whether_a_template_has_a_switch_for_thinking_is_tried(source: str, has: bool) -> None:
    assert ChatTemplate(source, bos_token="", eos_token="").has_thinking_switch is has


def test_a_clients_own_variables_win() -> None:
    variables = {"enable_thinking": "mine", "tools": "mine"}
    assert render("{{ enable_thinking }} {{ tools }}", ASK, thinking=True, variables=variables) == "mine mine"


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}", False),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", False),
    ],
)
def test_whether_a_template_takes_a_system_message_is_tried(source: str, takes: bool) -> None:
    assert ChatTemplate(source, bos_token="", eos_token="").takes_system is takes


def test_a_schema_that_is_nested_too_deeply_is_refused_by_its_field() -> None:
    deep = Tool("f", None, '{"a":' * 5000 + "1" + "}" * 5000, param="tools[3].function.parameters")
    with pytest.raises(InvalidRequest, match="nested too deeply") as refused:
        render("x", ASK, tools=(deep,))
    assert refused.value.param == "tools[3].function.parameters"


def test_a_refusal_is_the_templates_own_with_calls_too() -> None:
    with pytest.raises(InvalidRequest, match="never"):
        render("{{ messages[0].content is none }}{{ raise_exception('never') }}", CALL)
