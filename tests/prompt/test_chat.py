"""Chat templates: equal to transformers' rendering, honest in their errors, and bounded."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.prompt.budget import TemplateTooCostly
from vmm_server.prompt.chat import ChatTemplate, read_chat_template, read_token_texts
from vmm_server.prompt.sandbox import ChatEnvironment
from vmm_server.requests import Message

NOW = datetime(2026, 11, 21, 20, 58)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

HEADERS = """{{ bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
{%- set ns.system = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' ~ date_string ~ '\n\n' ~ ns.system ~ '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""

INSTRUCT = """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate user/assistant, found " + message['role'] + "!") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

THINKING = """
{%- set ns = namespace(last_query=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.found = true %}
        {%- set ns.last_query = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set reasoning = message.reasoning_content if message.reasoning_content is defined else '' %}
    {%- if '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_query and (loop.last or reasoning) %}
        {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""

CONSTRUCTS = """{% macro show(m, sep=': ') %}{{ m.role|upper }}{{ sep }}{{ m.content }}{% endmacro %}
{# a comment #}
{% macro named(function, context=1, self=2) %}{{ function }}{{ context }}{{ kwargs.x }}{% endmacro %}
{{ named(function='f', context='c', x=1) }} {{ namespace(self=1, name=2).name }} {{ dict(context=2) }}
{% for m in messages %}
  {% if m.role == 'tool' %}{% continue %}{% endif %}
    {{ show(m) }} {{ loop.cycle('odd', 'even') }}
  {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{% generation %}
{{ {'b': [1, 'é<&>'], 'a': none}|tojson }} {{ [1, {'x': 2}]|tojson(indent=2) }}
{% endgeneration %}
{{ tools is none }} {{ documents is defined }} {{ undefined_thing }} {{ undefined_thing is defined }}
{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{ '%s-%02d' % ('x', 7) }} {{ "{}/{:>3}".format('a', 'b') }} {{ dict(a=1, b=2).items()|list }} {{ 2 ** 10 * 3 % 7 }}
{% set block %}captured {{ 'text' }}{% endset %}{{ block|replace('t', 'T') }}{{ 'a\nb'|indent(3) }} {{ range(3)|list }}
{% filter trim %}  filtered  {% endfilter %}{{ [1, 2] + [3] }} {{ 'ab' * 2 }} {{ (1, 2)|sum }} {{ 'x y'.split(' ') }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "turns": TURNS,
    "thinking": THINKING,
    "constructs": CONSTRUCTS,
}

SYSTEM = Message("system", " You are kind. ")
HELLO = Message("user", "  Hi 🙂 {{ not a template }} ")
ANSWER = Message("assistant", "Hello! ")
THOUGHT = Message("assistant", "<think>\nhm\n</think>\n\nYes.")
REASONED = Message("assistant", "42", thinking="six times seven")
AGAIN = Message("user", "And?")
CHATS = {
    "question": [HELLO],
    "system": [SYSTEM, HELLO],
    "turns": [SYSTEM, HELLO, ANSWER, AGAIN],
    "thought": [HELLO, THOUGHT, AGAIN],
    "reasoned": [HELLO, REASONED, AGAIN],
    "answer last": [HELLO, ANSWER],
    "reasoned last": [HELLO, REASONED],
}


def transformers_render(source: str, messages: Sequence[Message], **variables: Any) -> str:
    plain = []
    for message in messages:
        turn = {"role": message.role, "content": message.content}
        plain.append(turn | ({"reasoning_content": message.thinking} if message.thinking else {}))
    return render_jinja_template([plain], chat_template=source, **TOKENS, **variables)[0][0]


def render(source: str, messages: Sequence[Message] = (HELLO,), **options: Any) -> str:
    options = {"now": NOW, "variables": {}} | options
    return ChatTemplate(source, **TOKENS).render(messages, **options)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers_does(template: str, chat: str, add_generation_prompt: bool) -> None:
    source, messages = TEMPLATES[template], CHATS[chat]
    expected = transformers_render(source, messages, add_generation_prompt=add_generation_prompt)
    assert render(source, messages, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - {"constructs"}))
@pytest.mark.parametrize("ending", ["Once upon", "Once upon ", "Once\n\n", "", " "])
def test_a_message_is_continued_as_transformers_does(template: str, ending: str) -> None:
    messages = [HELLO, Message("assistant", ending)]
    expected = transformers_render(TEMPLATES[template], messages, continue_final_message=True)
    actual = render(TEMPLATES[template], messages, add_generation_prompt=False, continue_final_message=True)
    assert actual == expected


def test_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    variables = {"enable_thinking": False, "messages": [], "add_generation_prompt": False}
    assert render(THINKING, variables=variables) == transformers_render(
        THINKING, [HELLO], add_generation_prompt=True, enable_thinking=False
    )


def test_the_clock_is_the_one_passed_in() -> None:
    assert render("{{ strftime_now('%d %b %Y %H:%M') }}") == "21 Nov 2026 20:58"


def test_a_name_is_passed_on() -> None:
    assert render("{{ messages[0].name }}{{ messages[1].name }}", [Message("user", "x", name="Ann"), HELLO]) == "Ann"


@given(st.lists(st.tuples(st.sampled_from(("user", "assistant", "system")), st.text()), min_size=1))
def test_contents_are_text_and_never_a_template(turns: list[tuple[str, str]]) -> None:
    messages = [Message(role, content) for role, content in turns]
    assert render("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}", messages) == "".join(
        role + content for role, content in turns
    )


def test_rendering_in_many_threads_keeps_the_texts_apart() -> None:
    template = ChatTemplate(CHATML, **TOKENS)
    chats = [[Message("user", f"{index}" * 50)] for index in range(40)]
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda chat: template.render(chat, now=NOW, variables={}), chats))
    assert texts == [render(CHATML, chat) for chat in chats]


# errors


def test_a_refusal_says_the_templates_own_words() -> None:
    with pytest.raises(
        InvalidRequest, match=r"refuses the messages: Roles must alternate .* found assistant!"
    ) as error:
        render(INSTRUCT, [ANSWER])
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages|tojson(indent='x' * 50) }}", "indents by at most"),
        ("{% include 'x' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_fails_is_a_bad_request(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the chat template failed on the messages: .*{words}") as error:
        render(source)
    assert error.value.param == "messages"
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ messages", "{% endfor %}", "{{ x|no_such_filter }}", "{{ " + "(" * 5000, "{{ 1 " * 2**19]
)
def test_a_template_that_cannot_be_compiled_is_a_bad_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="template") as error:
        ChatTemplate(source, **TOKENS)
    assert error.value.param == "template"
    assert "\n" not in error.value.message


def test_a_message_that_is_left_out_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="leaves the last message out"):
        render("{{ messages[0].content }}", [HELLO, ANSWER], add_generation_prompt=False, continue_final_message=True)


# hostile templates


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages|attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ dict.fromkeys }}{{ dict.fromkeys('x') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ strftime_now.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum(100000) }}",
    ],
)
def test_a_template_cannot_reach_out_of_the_sandbox(source: str) -> None:
    try:
        text = render(source)
    except InvalidRequest:
        return
    assert text == ""  # Jinja shows an unsafe attribute as undefined


LAUGHS = "{% set ns = namespace(s=['ha']) %}{% for _ in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
BOMBS = {
    "repeat": "{{ 'x' * 10**9 }}",
    "repeat list": "{{ [1] * 10**9 }}",
    "repeat reversed": "{{ 10**9 * 'x' }}",
    "power": "{{ 10 ** 1000000000 }}",
    "multiply": "{% set ns = namespace(n=3) %}{% for _ in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "range": "{{ range(10**9)|list }}",
    "double by +": "{% set ns = namespace(s='x') %}{% for _ in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "double by ~": "{% set ns = namespace(s='x') %}{% for _ in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "double lists": "{% set ns = namespace(s=[1]) %}{% for _ in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "double by set": "{% set ns = namespace(s='x') %}{% for _ in range(99) %}"
    "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "double by join": "{% set ns = namespace(s='xy') %}{% for _ in range(99) %}"
    "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "laughs": LAUGHS + "{{ ns.s }}",
    "laughs by ~": LAUGHS + "{{ ns.s ~ '' }}",
    "laughs by string": LAUGHS + "{{ ns.s|string|length }}",
    "laughs by %": LAUGHS + "{{ '%s' % (ns.s,) }}",
    "laughs by format": LAUGHS + "{{ '{}'.format(ns.s) }}",
    "laughs by tojson": LAUGHS + "{{ ns.s|tojson }}",
    "laughs by join": LAUGHS + "{{ ','.join([ns.s]|map('string')) }}",
    "format width": "{{ '%1000000000d' % 1 }}",
    "format star": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "str.format width": "{{ '{:1000000000}'.format(1) }}",
    "str.format nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "str.format repeat": "{{ ('{0}' * 3000).format('x' * 1000000) }}",
    "padding": "{{ 'x'.ljust(1000000000) }}",
    "escaped padding": "{{ ('x'|escape).ljust(1000000000) }}",
    "bytes": "{{ 'x'.encode() * 1000000000 }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000) }}",
    "sum of lists": "{{ ([[0] * 1000] * 100000)|sum(start=[])|length }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "center": "{{ 'x'|center(1000000000) }}",
    "indent": "{{ 'x'|indent(1000000000, true) }}",
    "tojson indent": "{{ [1]|tojson(indent=1000000000) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "replace filter": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "join": "{{ ('y' * 1000000).join(range(100000)|map('string')) }}",
    "join filter": "{{ range(100000)|join('y' * 1000000) }}",
    "join keyword": "{{ range(100000)|join(d='y' * 1000000) }}",
    "round up": "{{ 1.5|round(1000000000, 'ceil') }}",
    "round down": "{{ 15|round(precision=-1000000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "plain text in loops": "{% for _ in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "plain text in a set block": "{% set t %}{% for _ in range(99999) %}" + "x" * 10_000 + "{% endfor %}{% endset %}",
    "kept slices": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 8000000 %}{% for _ in range(99999) %}"
    "{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "kept methods": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 8000000 %}{% for _ in range(99999) %}"
    "{% set ns.l = ns.l + [s.upper()] %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(name: str) -> None:
    usage = pytest.importorskip("resource", reason="Windows does not tell of peak memory this way")
    before, started = usage.getrusage(usage.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(InvalidRequest):
        render(BOMBS[name])
    assert time.thread_time() - started < 2
    grown = usage.getrusage(usage.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 256 * 2**20


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ range(99999)|select('in', range(99999)|list)|list|length }}",
        "{% set l = range(99999)|list %}{% for a in range(99999) if a not in l %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_stopped(source: str) -> None:
    ticks = iter(range(10**6))
    environment = ChatEnvironment(clock=lambda: next(ticks) / 1000)
    with pytest.raises(TemplateTooCostly, match="more than 5 seconds"), environment.bounded():
        environment.from_string(source).render()


def test_a_long_conversation_is_within_the_bounds() -> None:
    messages = [Message(role, "word " * 500) for _ in range(500) for role in ("user", "assistant")]
    for source in (CHATML, HEADERS, INSTRUCT, TURNS, THINKING):
        assert len(render(source, messages)) > 2_400_000


# folders


def _write(folder: Path, config: Mapping[str, object] | str | None = None, jinja: bytes | None = None) -> Path:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if jinja is not None:
        (folder / "chat_template.jinja").write_bytes(jinja)
    return folder


@pytest.mark.parametrize(
    ("config", "jinja", "expected"),
    [
        ({"chat_template": "config"}, None, "config"),
        ({"chat_template": "config"}, b"jinja", "jinja"),
        (None, b"{{ bos_token }}jinja", "jinja"),
        ({"bos_token": "<b>"}, b"{{ bos_token }}{{ eos_token }}", "<b>"),
        ({"bos_token": {"content": "<b>"}, "eos_token": None}, b"{{ bos_token }}{{ eos_token }}", "<b>"),
        ({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}, None, "d"),
    ],
)
def test_a_folders_template_is_found(
    tmp_path: Path, config: Mapping[str, object] | None, jinja: bytes | None, expected: str
) -> None:
    template = read_chat_template(_write(tmp_path, config, jinja))
    assert template is not None
    assert template.render([HELLO], now=NOW, variables={}) == expected


@pytest.mark.parametrize("config", [None, {}, {"chat_template": None}, {"chat_template": [{"name": "rag"}]}])
def test_a_folder_without_a_template_has_none(tmp_path: Path, config: Mapping[str, object] | None) -> None:
    assert read_chat_template(_write(tmp_path, config)) is None


@pytest.mark.parametrize(
    ("config", "jinja", "error", "words"),
    [
        ("{", None, CorruptFile, "tokenizer_config.json is not JSON"),
        ("[]", None, CorruptFile, "tokenizer_config.json is not a JSON object"),
        (None, b"\xff", CorruptFile, "chat_template.jinja is not UTF-8"),
        (None, b"\n{% if %}", ImportFailed, "cannot be compiled in line 2"),
    ],
)
def test_a_folder_that_cannot_be_read_says_which_file(
    tmp_path: Path, config: str | None, jinja: bytes | None, error: type[ImportFailed], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_chat_template(_write(tmp_path, config, jinja))


def test_the_tokens_of_a_folder(tmp_path: Path) -> None:
    config = json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    assert read_token_texts(_write(tmp_path, config)) == TOKENS
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_token_texts(tmp_path) == {"bos_token": "", "eos_token": ""}


@pytest.mark.runtime
@pytest.mark.parametrize("chat", CHATS)
def test_smollm2s_own_template_renders_as_transformers_does(smollm2_gguf: Path, chat: str) -> None:
    with GGUFFile(smollm2_gguf) as file:
        source = str(file.metadata["tokenizer.chat_template"])
    expected = transformers_render(source, CHATS[chat], add_generation_prompt=True)
    assert render(source, CHATS[chat]) == expected


LLAVA = """{% for message in messages %}{{ message['role'].upper() }}: {# images first #}
{%- for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor -%}
{%- if message['role'] != 'assistant' -%}
{%- for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor -%}
{%- else -%}
{%- for content in message['content'] if content['type'] == 'text' %}
{%- generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor -%}
{%- endif -%}{%- endfor -%}{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
EITHER = """{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"""


def test_a_template_that_reads_parts_alone_gets_parts() -> None:
    chat = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "{{ Why }}"))
    assert render(LLAVA, chat) == "USER: Hi ASSISTANT: Yes? USER: {{ Why }} ASSISTANT:"
    parts = [{"role": message.role, "content": [{"type": "text", "text": message.content}]} for message in chat]
    texts, _ = render_jinja_template([parts], chat_template=LLAVA, add_generation_prompt=True)
    assert render(LLAVA, chat) == texts[0]


@pytest.mark.parametrize("source", [EITHER, CHATML])
def test_a_template_that_reads_text_gets_text(source: str) -> None:
    assert not ChatTemplate(source, **TOKENS).reads_parts
    assert "Hi" in render(source, (Message("user", "Hi"),))
