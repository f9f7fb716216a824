"""Go templates as Ollama evaluates them: what they see of a conversation, and the shapes that real ones have."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.go_template import MAX_SOURCE, parse_go_template
from vmm_server.requests import Message, Tool, ToolCall

TEMPLATES = {path.stem: path.read_text() for path in Path("tests/data/go_templates").glob("*.gotmpl")}
"""In the shapes of real Modelfiles, one for each family's way to write a conversation."""
NOW = datetime(2026, 11, 22, 1, 30)
SYSTEM, HI, HELLO, MORE = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "More"),
)
WEATHER = Tool(
    "weather",
    "Tells the weather.",
    '{"type": "object", "required": ["city"], "properties":'
    ' {"city": {"type": "string", "description": "Where <exactly>"},'
    ' "age": {"type": ["integer", "null"]}, "unit": {"type": "string", "enum": ["C", "F"]}}}',
)
ASKED = Message("assistant", "", tool_calls=(ToolCall("weather", '{"city": "Paris", "age": 1}', "call_1"),))
RESULT = Message("tool", "Rain & wind", tool_call_id="call_1")


def render(source: str, *messages: Message, tools: Sequence[Tool] = (), thinking: Any = None, **options: Any) -> str:
    return parse_go_template(source).render(
        messages, tools=tools, thinking=thinking, now=NOW, variables=options.pop("variables", {}), **options
    )


def prefilled(source: str, *messages: Message) -> str:
    return render(source, *messages, add_generation_prompt=False, continue_final_message=True)


def test_a_template_of_one_exchange_is_written_once_for_each() -> None:
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] "
    assert render(TEMPLATES["llama2"], SYSTEM, HI) == first
    assert render(TEMPLATES["llama2"], SYSTEM, HI, HELLO, MORE) == f"{first}Hello!</s>[INST] More [/INST] "
    assert prefilled(TEMPLATES["llama2"], SYSTEM, HI, HELLO) == f"{first}Hello!"
    alpaca = "### Instruction:\nHi\n\n### Response:\nHello!\n\n### Instruction:\nMore\n\n### Response:\n"
    assert render(TEMPLATES["alpaca"], SYSTEM, HI, HELLO, MORE) == f"Be brief.\n\n{alpaca}"
    phi = "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert render(TEMPLATES["phi3"], SYSTEM, HI) == phi
    assert prefilled(TEMPLATES["phi3"], SYSTEM, HI, HELLO) == f"{phi}Hello!"


def test_a_template_without_a_response_gets_one_at_its_end() -> None:
    assert render("{{ .Prompt }}\n>", HI, HELLO, MORE) == "Hi\n>Hello!More\n>"
    assert render("{{ .System }}|{{ .Prompt }}", SYSTEM, HI) == "Be brief.|Hi"
    assert prefilled("{{ .Prompt }}\n>", HI, HELLO) == "Hi\n>Hello!"


@pytest.mark.parametrize(
    ("tail", "answered", "open_end"),
    [
        ("{{ if .Response }}<{{ .Response }}>{{ end }}!", "a<r>!b", ""),
        ("{{ if .Response }}<{{ .Response }}>{{ else }}none{{ end }}!", "a<r>!b", ""),
        ("{{ with .Response }}{{ . }}{{ else }}{{ $.Response }}none{{ end }}!", "ar!b", ""),
        ("{{ range .Missing }}{{ else }}<{{ .Response }}>{{ end }}!", "a<r>!b", "<"),
        ('{{ printf "%s;" .Response }}!', "ar;!b", ";"),
    ],
)
def test_nothing_stands_after_the_place_of_the_answer(tail: str, answered: str, open_end: str) -> None:
    messages = (Message("user", "a"), Message("assistant", "r"), Message("user", "b"))
    assert render("{{ .Prompt }}" + tail, *messages) == answered + open_end


def test_consecutive_messages_of_one_role_are_one() -> None:
    told = render(TEMPLATES["chatml"], SYSTEM, Message("system", "Rhyme."), HI, MORE)
    assert told == (
        "<|im_start|>system\nBe brief.\n\nRhyme.<|im_end|>\n<|im_start|>user\nHi\n\nMore<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    each = "{{ range .Messages }}[{{ .Role }} {{ len .ToolCalls }} {{ .Content }}]{{ end }}"
    assert render(each, HELLO, ASKED, RESULT, RESULT) == (
        "[assistant 0 Hello!][assistant 1 ][tool 0 Rain & wind][tool 0 Rain & wind]"
    )


def test_system_texts_are_told_together_and_in_their_places() -> None:
    source = "{{ .System }}|{{ range .Messages }}{{ .Role }} {{ end }}"
    assert render(source, SYSTEM, HI, Message("system", "Rhyme."), MORE) == (
        "Be brief.\n\nRhyme.|system user system user "
    )


def test_chatml_and_gemma() -> None:
    assert render(TEMPLATES["chatml"], HI) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(TEMPLATES["gemma"], SYSTEM, HI, HELLO, MORE) == (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nMore<end_of_turn>\n<start_of_turn>model\n"
    )
    assert prefilled(TEMPLATES["gemma"], HI, HELLO) == (
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!"
    )


def test_a_prefill_ends_where_its_text_ends_also_where_the_template_closes_it() -> None:
    assert prefilled(TEMPLATES["chatml"], HI, HELLO) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    )
    with pytest.raises(InvalidRequest, match="leaves the last message out") as caught:
        prefilled('{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}{{ end }}{{ end }}', HI, HELLO)
    assert caught.value.param == "messages"


def test_llama3_with_tools() -> None:
    system = (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.\n\nYou can call tools. "
        "After a result, answer the question in your own words.<|eot_id|>"
    )
    schema = (
        '{"type":"function","function":{"name":"weather","description":"Tells the weather.","parameters":'
        '{"type":"object","required":["city"],"properties":{"city":{"type":"string","description":"Where <exactly>"},'
        '"age":{"type":["integer","null"]},"unit":{"type":"string","enum":["C","F"]}}}}}'
    )
    asked = (
        "<|start_header_id|>user<|end_header_id|>\n\nAnswer with a JSON call of one of these functions:\n"
        '{"name": function name, "parameters": dictionary of argument name and its value}\n\n'
        f"{schema}\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(TEMPLATES["llama3_tools"], SYSTEM, HI, tools=[WEATHER]) == system + asked
    assert render(TEMPLATES["llama3_tools"], SYSTEM, HI, ASKED, RESULT, tools=[WEATHER]) == (
        f"{system}<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "weather", "parameters": {"city":"Paris","age":1}}'
        "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\nRain & wind<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(TEMPLATES["llama3_tools"], HI) == (
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_with_tools() -> None:
    tool = Tool("f", "Does f.", '{"type": "object", "properties": {}}')
    twice = Message("assistant", "", tool_calls=(ToolCall("f", "{}"), ToolCall("f", '{"x": "<é>"}')))
    assert render(TEMPLATES["mistral_tools"], SYSTEM, HI, twice, Message("tool", 'a "b"'), MORE, tools=[tool]) == (
        '[INST] Hi[/INST][TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x":"<é>"}}]</s>'
        '[TOOL_RESULTS] {"content": "a \\"b\\""}[/TOOL_RESULTS][AVAILABLE_TOOLS] '
        '[{"type":"function","function":{"name":"f","description":"Does f.","parameters":{"type":"object",'
        '"properties":{}}}}][/AVAILABLE_TOOLS][INST] Be brief.\n\nMore[/INST]'
    )
    assert render(TEMPLATES["mistral_tools"], HI, HELLO, MORE) == "[INST] Hi[/INST] Hello!</s>[INST] More[/INST]"


def test_qwen_with_tools_and_thinking() -> None:
    tool = Tool("f", None, '{"type": "object", "properties": {}}')
    thought = Message("assistant", "So.", thinking="Hm.", tool_calls=(ToolCall("f", "{}"),))
    told = render(TEMPLATES["qwen_thinking"], HI, thought, Message("tool", "1"), tools=[tool], thinking=True)
    assert told == (
        "<|im_start|>system\n\n# Tools\n\nFunction signatures are within <tools></tools>:\n<tools>\n"
        '{"type": "function", "function": {"name":"f","description":"","parameters":'
        '{"type":"object","properties":{}}}}\n</tools>\n\nReturn a call within <tool_call></tool_call>:\n<tool_call>\n'
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\nSo.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    start, end = "<|im_start|>user\nHi", "<|im_end|>\n<|im_start|>assistant\n"
    assert render(TEMPLATES["qwen_thinking"], HI) == start + end
    assert render(TEMPLATES["qwen_thinking"], HI, thinking=True) == f"{start} /think{end}"
    assert render(TEMPLATES["qwen_thinking"], HI, thinking=False) == f"{start} /no_think{end}<think>\n\n</think>\n\n"


def test_command_r() -> None:
    assert render(TEMPLATES["command_r"], SYSTEM, HI, ASKED, RESULT, tools=[WEATHER]) == (
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>## Tools\n\n```python\n"
        "def weather(city: string, age: [integer null], unit: string, ) -> List[Dict]:\n    '''Tells the weather.\n\n"
        "    Args:\n        city (string): Where <exactly>\n        age ([integer null]): \n        unit (string): \n"
        "    '''\n```<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>\n"
        'Action: [\n    {"tool_name": "weather", "parameters": {"city":"Paris","age":1}}]<|END_OF_TURN_TOKEN|>'
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\nweather: Rain & wind\n</results><|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    )


def test_types_dates_and_levels_of_thinking() -> None:
    start = "<|start|>system<|message|>Current date: 2026-11-22\nReasoning: "
    assert render(TEMPLATES["harmony"], HI, tools=[WEATHER], thinking="high") == (
        f"{start}high<|end|><|start|>developer<|message|>namespace functions {{\n// Tells the weather.\n"
        'type weather = (_: {\n  city: string,\n  age?: number | null,\n  unit?: "C" | "F",\n}) => any;\n}<|end|>'
        "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    )
    for thinking, level in ((None, "medium"), (True, "medium"), (False, "low"), ("low", "low")):
        assert render(TEMPLATES["harmony"], HI, thinking=thinking).startswith(f"{start}{level}<|end|>")
    assert render("{{ yesterdayDate }}{{ .Prompt }}", HI) == "2026-11-21Hi"


def test_a_template_within_the_template() -> None:
    assert render(TEMPLATES["blocks"], HI, HELLO) == "<user>Hi</user><assistant>Hello!</assistant><assistant>"


def test_a_gap_is_written_with_prompt_and_suffix() -> None:
    template = parse_go_template(TEMPLATES["insert"])
    assert template.inserts
    assert template.render_insert("a = ", "\nb", now=NOW) == "<fim_prefix>a = <fim_suffix>\nb<fim_middle>"
    assert template.render([HI], now=NOW, variables={}) == "Hi"
    assert parse_go_template("{{ .Prompt }}<fim>{{ .Suffix }}").render_insert("a", "b", now=NOW) == "a<fim>b"
    assert not parse_go_template(TEMPLATES["chatml"]).inserts
    with pytest.raises(InvalidRequest, match="there is no field X") as caught:
        parse_go_template("{{ .Suffix.X }}").render_insert("a", "b", now=NOW)
    assert caught.value.param == "suffix"


def test_what_a_message_holds() -> None:
    each = (
        "{{ range .Messages }}{{ .Role }}|{{ .Content }}|{{ .Thinking }}|{{ len .Images }}|{{ .ToolName }}|"
        "{{ .ToolCallID }}|{{ range .ToolCalls }}{{ .ID }} {{ .Function.Index }} {{ .Function.Name }} "
        "{{ range $name, $value := .Function.Arguments }}{{ $name }}={{ $value }};{{ end }}{{ end }}\n{{ end }}"
    )
    thought = Message("assistant", "", thinking="Hm", tool_calls=ASKED.tool_calls)
    assert render(each, thought, RESULT, Message("tool", "1", name="clock")) == (
        "assistant||Hm|0|||call_1 0 weather city=Paris;age=1;\ntool|Rain & wind||0|weather|call_1|\ntool|1||0|clock||\n"
    )
    assert render("{{ json .Messages }}", HI, ASKED) == (
        '[{"role":"user","content":"Hi"},{"role":"assistant","content":"","tool_calls":[{"id":"call_1","function":'
        '{"index":0,"name":"weather","arguments":{"city":"Paris","age":1}}}]}]'
    )


def test_arguments_that_are_no_object_print_as_they_are() -> None:
    broken = Message("assistant", "", tool_calls=(ToolCall("f", '{"x": '),))
    assert render("{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}", broken) == (
        '{"x": '
    )


def test_what_a_tool_holds() -> None:
    nested = Tool(
        "f",
        None,
        '{"type": "object", "$defs": {"d": {}}, "properties":'
        ' {"any": {"anyOf": [{"type": "string"}, {"type": "array"}]},'
        ' "deep": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}, "odd": true}}',
    )
    source = (
        "{{ range .Tools }}{{ .Type }} {{ .Function.Parameters.Type }} {{ .Function.Parameters.Defs }}"
        "{{ with .Function.Parameters.Properties }} {{ toTypeScriptType .any }} {{ .any.ToTypeScriptType }}"
        " {{ toTypeScriptType .deep.Properties.x }} {{ .deep.Required }} {{ toTypeScriptType .odd }} {{ .odd }}"
        " {{ toTypeScriptType 5 }}{{ end }}{{ end }}{{ len .Messages }}"
    )
    assert render(source, tools=[nested]) == (
        "function object map[d:map[]] string | any[] string | any[] boolean [x] any true any0"
    )
    assert render("{{ .Tools }}{{ if .Tools }}x{{ end }}{{ len .Messages }}") == "[]0"


def test_variables_of_the_request_are_seen_and_do_not_replace_messages() -> None:
    source = "{{ .Mood }} {{ .Think }} {{ len .Messages }}"
    assert render(source, HI, variables={"Mood": "gay", "Think": True, "Messages": []}) == "gay true 1"


@pytest.mark.parametrize(
    ("variables", "thinking", "said"),
    [
        ({}, None, "false false "),
        ({"enable_thinking": False}, None, "false true "),
        ({"enable_thinking": True}, None, "true true medium"),
        ({"thinking": True}, None, "true true medium"),
        ({"thinking": False}, True, "false true "),
        ({"enable_thinking": True}, "high", "true true high"),
        ({"enable_thinking": False, "reasoning_effort": "low"}, None, "false true "),
        ({"reasoning_effort": "low"}, True, "true true low"),
        ({"enable_thinking": "yes"}, None, "false false "),
    ],
)
def test_the_switches_of_other_templates_are_understood(
    variables: dict[str, object], thinking: bool | str | None, said: str
) -> None:
    source = "{{ .Think }} {{ .IsThinkSet }} {{ .ThinkLevel }}{{ range .Messages }}{{ end }}"
    assert render(source, HI, variables=variables, thinking=thinking) == said


def test_what_is_not_there_in_the_other_mode() -> None:
    assert render("{{ .Prompt }}{{ .Tools }}{{ .Suffix }}", HI, tools=[WEATHER]) == "Hi<no value><no value>"
    assert render("{{ .Prompt }}{{ len .Messages }}", HI) == "<no value>1"


def test_failures_name_the_line() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ range .Messages }}\n{{ .Missing }}{{ end }}", HI)
    assert caught.value.message == (
        "the template failed on the messages in line 2: there is no field Missing in a message"
    )
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match=f"the limit is {MAX_SOURCE}"):
        parse_go_template("x" * (MAX_SOURCE + 1))
    with pytest.raises(ValueError, match="excludes"):
        render(TEMPLATES["chatml"], HI, continue_final_message=True)


def test_deep_schemas_and_arguments_are_refused_or_printed() -> None:
    deep = '{"properties":' * 900 + "{}" + "}" * 900
    source = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    call = Message("assistant", "", tool_calls=(ToolCall("f", deep), ToolCall("f", "[" * 9000)))
    with pytest.raises(InvalidRequest, match="recursion"):
        render(source, HI, call)
    with pytest.raises(InvalidRequest, match="recursion"):
        render("{{ len .Messages }}", HI, tools=[Tool("f", None, deep)])
    with pytest.raises(InvalidRequest, match="the schema is nested too deeply"):
        render("{{ len .Messages }}", HI, tools=[Tool("f", None, "[" * 90_000 + "]" * 90_000)])


def test_signs_of_what_a_template_is_for() -> None:
    signs = parse_go_template(TEMPLATES["qwen_thinking"])
    assert {"messages", "tools", "toolcalls", "thinking", "system", "isthinkset"} <= signs.variables
    assert signs.writes_calls
    assert signs.has_thinking_switch
    assert signs.takes_system
    plain = parse_go_template(TEMPLATES["chatml"])
    assert plain.variables == {"messages", "role", "content"}
    assert not plain.writes_calls
    assert not plain.has_thinking_switch
    assert plain.takes_system
    assert not parse_go_template("{{ .Prompt }}").takes_system
    assert parse_go_template("{{ $x := .A }}{{ $x.B }}{{ (index .C 0).D }}").variables == {"a", "b", "c", "d"}


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), max_size=5))
def test_every_text_comes_out_once_and_in_order(turns: list[tuple[str, str]]) -> None:
    source = "{{ range .Messages }}\x01{{ .Content }}{{ end }}"
    told = render(source, *(Message(role, text) for role, text in turns))
    texts = [text for _, text in turns]
    assert told.replace("\x01", "").replace("\n\n", "") == "".join(texts).replace("\x01", "").replace("\n\n", "")
