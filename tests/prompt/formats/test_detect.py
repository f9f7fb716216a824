"""A model's format, found from a few telling lines of its template."""

import typing

import pytest

from vmm_adapters import card
from vmm_server.models.importers.imported import guess_capabilities
from vmm_server.prompt.formats.detect import TOOL_FORMATS, find_format
from vmm_server.prompt.formats.reasoning import REASONING_FORMATS

LOOP = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}{% endfor %}"
LISTED = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"

TEMPLATES = {
    "hermes": LISTED + "{% for call in calls %}{{ '<tool_call>\n{\"name\": ' }}{% endfor %}" + LOOP,
    "llama3_json": LISTED + '{% if calls %}{{- \'{"name": "\' }}{{- \'"parameters": \' }}{% endif %}' + LOOP,
    "pythonic": LISTED + "{{ 'put it in the format of [func_name1(params_name1=params_value1)]' }}" + LOOP,
    "mistral": "{{ '[AVAILABLE_TOOLS]' }}" + LISTED + "{{ '[TOOL_CALLS][' }}" + LOOP,
    "gemma": LISTED + "{{ '<start_function_call>call:' ~ function ~ '{' }}" + LOOP,
    "gemma4": LISTED + "{{ '<|tool_call>call:' ~ function ~ '{' }}" + LOOP,
    "phi": (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
        "{{ '<|system|>' + '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endfor %}"
    ),
    "granite": LISTED + "{{ 'respond only with <|tool_call|> followed by a JSON list' }}" + LOOP,
    "qwen3_coder": LISTED + "{{ '<tool_call>\n<function=' ~ name ~ '>\n' }}{{ '<parameter=' ~ name }}" + LOOP,
}


def test_every_format_is_found() -> None:
    assert TEMPLATES.keys() == TOOL_FORMATS.keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_tells(name: str) -> None:
    found = find_format(TEMPLATES[name], ["<|python_tag|>", "[TOOL_CALLS]"])
    assert found.tools.name == name
    assert found.tools_in_template
    assert guess_capabilities(TEMPLATES[name]) == ("completion", "tools")


def test_tools_go_by_another_name_in_smollm3() -> None:
    found = find_format("{% for tool in xml_tools or [] %}{{ tool | tojson }}<tool_call>{% endfor %}" + LOOP, [])
    assert found.tools.name == "hermes"
    assert found.tools_in_template


def test_the_cards_word_counts_first() -> None:
    found = find_format(TEMPLATES["mistral"], [], tool_format="pythonic", reasoning_format="magistral")
    assert found.tools.name == "pythonic"
    assert found.reasoning == REASONING_FORMATS["magistral"]


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("<start_function_call>", "gemma"),
        ("<|tool_call>", "gemma4"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|tool_call|>", "granite"),
        ("<|python_tag|>", "llama3_json"),
        ("<tool_call>", "hermes"),
        ("<s>", "hermes"),
    ],
)
def test_tokens_tell_where_the_template_does_not(token: str, name: str) -> None:
    assert find_format(LOOP, ["<s>", token]).tools.name == name
    assert find_format(None, [token]).tools.name == name


def test_phi_has_a_token_more_than_granite() -> None:
    assert find_format(None, ["<|tool_call|>", "<|/tool_call|>"]).tools.name == "phi"


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        LOOP,
        "{{ 'You have no tools.' }}" + LOOP,
        "{# tools: <|tool_call|> #}" + LOOP,
        "{% if tools is not none %}{{ raise_exception('no tools') }}{% endif %}" + LOOP,
        "{% set tools = [] %}{{ tools | tojson }}" + LOOP,
        "{% if tools %}{{ 'Call functions.' }}{% endif %}" + LOOP,
        "{{ tools | tojson }}{{ broken(",
        "{{ messages[1].content }}{{ tools }}",
    ],
)
def test_a_template_that_does_not_tell_of_tools(template: str | None) -> None:
    found = find_format(template, [])
    assert not found.tools_in_template
    assert found.tools.name == "hermes"
    assert guess_capabilities(template) == ("completion",)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("{% set content = messages[0].content.split('</think>')[-1] %}", "think"),
        ("{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}", "think"),
        ("{{ '[THINK]' ~ text ~ '[/THINK]' }}", "magistral"),
        ("{{ \"Write it after 'Here is my thought process:' and 'Here is my response:'\" }}", "granite"),
        ("{{ 'Write thoughts in <think></think> and your response in <response></response>' }}", "granite_tags"),
        ("{{ '<seed:think>' ~ thought ~ '</seed:think>' }}", "seed_oss"),
        ("{{ '<|channel>thought\n' ~ text ~ '\n<channel|>' }}", "gemma4"),
        ("{# </think> #}", None),
        ("{{ 'Think first.' }}", None),
    ],
)
def test_how_a_model_thinks(line: str, name: str | None) -> None:
    expected = REASONING_FORMATS[name] if name else None
    found = find_format(line + LOOP, ["<think>", "</think>"])
    assert found.reasoning == expected
    assert ("thinking" in guess_capabilities(line + LOOP)) is (expected is not None)


def test_without_a_template_tokens_tell_whether_it_thinks() -> None:
    assert find_format(None, ["<think>", "</think>"]).reasoning == REASONING_FORMATS["think"]
    assert find_format(None, ["<tool_call>"]).reasoning is None


def test_cards_know_the_formats_by_name() -> None:
    assert set(typing.get_args(card.ToolFormatName)) == TOOL_FORMATS.keys()
    assert set(typing.get_args(card.ReasoningFormatName)) == REASONING_FORMATS.keys()
