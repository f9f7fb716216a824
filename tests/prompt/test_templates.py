"""Go or Jinja: told apart by what is written, never guessed."""

import json
import random
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vmm_server.errors import InvalidRequest
from vmm_server.models.importers.gguf_tokenizer import write_tokenizer
from vmm_server.prompt.chat import ChatTemplate
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.go_template import GoTemplate, parse_go_template
from vmm_server.prompt.templates import TemplateReader, read_template, variables
from vmm_server.prompt.words import first_tokens, token_ids, with_first_tokens
from vmm_server.requests import Message, Tool, ToolCall

TEMPLATES = {path.stem: path.read_text() for path in sorted(Path("tests/data/go_templates").glob("*.gotmpl"))}
JINJA = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
STRICT = """{{ bos_token }}{% if messages[0].role != 'user' %}{{ raise_exception('No.') }}{% endif %}
{{- messages[0].content }}"""
NOW = datetime(2026, 11, 22)
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)),
    Message("tool", "1"),
    Message("user", "More"),
)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_of_modelfiles_are_gos(source: str) -> None:
    assert isinstance(read_template(source), GoTemplate)


@pytest.mark.parametrize("source", [JINJA, STRICT])
def test_templates_of_models_are_jinjas(source: str) -> None:
    assert isinstance(read_template(source), ChatTemplate)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("{{ .Prompt }}", GoTemplate),
        ("{{- .Prompt -}}", GoTemplate),
        ("{{ json .Messages }}", GoTemplate),
        ("{{ (index .Messages 0).Content }}", GoTemplate),
        ("{{ currentDate }} {{ print .Prompt }}", GoTemplate),
        ('{{ template "x" .Prompt }}{{ define "x" }}{{ . }}{{ end }}', GoTemplate),
        ("{{/* why */}}{{ .Prompt }}", GoTemplate),
        ("{{- /* why */ -}} {{- .Prompt }} 100%", GoTemplate),
        ("{{ .Prompt }} {# no comment in Go #}", GoTemplate),
        ("{{ messages[0].content }}", ChatTemplate),
        ("{{ messages[0]['content'] | trim }}", ChatTemplate),
        ("{{ (messages | last).content }}", ChatTemplate),
        ("{{ bos_token }}{{ messages[-1].content }}", ChatTemplate),
        ("{% set end = '<end>' %}{{ messages[0].content }}{{ end }}", ChatTemplate),
        ("{%- if block -%}{{ block if x else template }}{%- endif %}{{ range(3) }}", ChatTemplate),
        ("{# {{ messages }} #}{{ messages }}", ChatTemplate),
    ],
)
def test_each_language_is_told_by_its_signs(source: str, kind: type) -> None:
    assert isinstance(read_template(source), kind)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for m in messages %}\n{{ .Content }}{% endfor %}", "'{% for' in line 1 is Jinja, '{{ .' in line 2 is Go"),
        ("{{ if .System }}{% endif %}", "mixes two languages"),
        ("You are helpful.", "it is plain text"),
        ("", "it is plain text"),
        ("{{ .System }}", "it needs {{ .Messages }} or {{ .Prompt }}"),
        ("{{ if .Prompt }}", "{{ if }} has no {{ end }}"),
        ("{{ .Prompt | upper }}", "the function upper is not defined"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages", "in line 1"),
    ],
)
def test_what_is_neither_or_both_is_refused(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_template(source)
    assert words in caught.value.message
    assert caught.value.param == "template"


def test_what_a_template_reads() -> None:
    assert "suffix" in variables(TEMPLATES["insert"])
    assert "tools" in variables(TEMPLATES["qwen_thinking"])
    assert variables(JINJA) == {"messages", "add_generation_prompt"}


def test_a_reader_knows_the_tokens_and_keeps_what_it_compiled() -> None:
    reader = TemplateReader(bos_token="<s>", eos_token="</s>")
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    template = reader.read(source)
    assert template.render([Message("user", "Hi")], now=NOW, variables={}) == "<s>Hi</s>"
    assert reader.read(source) is template
    for number in range(20):
        reader.read(f"{number}{source}")
    assert reader.read(source) is not template
    large = source + " " * 2**16
    assert reader.read(large) is not reader.read(large)
    with pytest.raises(InvalidRequest):
        reader.read("{{ .Prompt")


@pytest.mark.parametrize(
    ("name", "format", "reasoning", "tells"),
    [
        ("llama3_tools", "llama3_json", False, True),
        ("mistral_tools", "mistral", False, True),
        ("qwen_thinking", "hermes", True, True),
        ("chatml", "hermes", False, False),
        ("llama2", "hermes", False, False),
    ],
)
def test_formats_are_seen_in_go_templates(name: str, format: str, reasoning: bool, tells: bool) -> None:
    found = find_format(TEMPLATES[name], ())
    assert (found.tools.name, found.reasoning is not None, found.tools_in_template) == (format, reasoning, tells)
    assert find_format(read_template(TEMPLATES[name]), ()) == found


def test_a_template_that_shows_nothing_leaves_the_formats_as_they_were() -> None:
    own = find_format(TEMPLATES["mistral_tools"] + "[THINK][/THINK]", ())
    under = find_format(TEMPLATES["chatml"], (), otherwise=own)
    assert (under.tools.name, under.reasoning, under.tools_in_template) == ("mistral", own.reasoning, False)
    assert find_format(TEMPLATES["qwen_thinking"], (), otherwise=own).tools.name == "hermes"
    hidden = "{{/* [TOOL_CALLS] <think> </think> */}}{{ .Prompt }}"
    assert find_format(hidden, ()).tools.name == "hermes"
    assert find_format(hidden, ()).reasoning is None


def test_the_tokeniser_adds_the_bos_token_that_go_templates_leave_out(tmp_path: Path) -> None:
    assert read_template(TEMPLATES["llama2"]).adds_bos_token
    assert not read_template(JINJA).adds_bos_token
    text = "[INST] Hi [/INST]"
    golden = json.loads(Path("tests/data/tokenizer_sentencepiece.json").read_text(encoding="utf-8"))
    for adds in (True, False):
        write_tokenizer(golden["metadata"] | {"tokenizer.ggml.add_bos_token": adds}, tmp_path)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        first = (tokenizer.token_to_id("<s>"),) if adds else ()
        assert first_tokens(tokenizer) == first
        ids = token_ids(tokenizer, text)
        assert with_first_tokens(tokenizer, ids) == first + ids == token_ids(tokenizer, text, add_special_tokens=True)
        spelt = token_ids(tokenizer, f"<s>{text}")
        assert with_first_tokens(tokenizer, spelt) == spelt


PIECES = [
    *("{{", "}}", "{{- ", " -}}", "{%", "%}", " ", "\n", "/*", "*/", ".", "$", "$x", ":=", "=", "|", "(", ")", ","),
    *("if", "else", "end", "range", "with", "define", "template", "block", "break", "continue", "nil", "true"),
    *('"a"', "`b`", "'c'", "1", "-5", "1e9", "😀", "\x00", ".Messages", ".Tools", ".Prompt", ".Content", ".Missing"),
    *("index", "slice", "printf", '"%999d"', "print", "len", "eq", "and", "or", "not", "json"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join) | st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_noise_is_read_and_rendered_or_refused_quickly(source: str) -> None:
    check(source)


def test_mutated_templates_are_rendered_or_refused_quickly() -> None:
    noise = random.Random(4)
    sources = list(TEMPLATES.values())
    for _ in range(500):
        source = noise.choice(sources)
        for _ in range(noise.randrange(1, 5)):
            start = noise.randrange(len(source))
            stop = min(len(source), start + noise.randrange(20))
            other = noise.choice([noise.choice(PIECES), source[start:stop] * noise.randrange(3), ""])
            source = source[:start] + other + source[stop:]
        check(source)


@given(st.binary(max_size=200))
def test_random_bytes_are_rendered_or_refused(data: bytes) -> None:
    check(data.decode("latin-1"))
    check("{{" + data.decode(errors="replace") + "}}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ range .Messages }}" * 40 + "{{ range 9999 }}x{{ end }}" + "{{ end }}" * 40,
        "{{ range 99999 }}{{ range 99999 }}{{ end }}{{ end }}",
        '{{ range 99999 }}{{ $x := len (printf "%*s%.99999f" . "" 0.5) }}{{ end }}',
        "{{ $x := .Tools }}{{ range 99999 }}{{ $y := json $x }}{{ end }}",
        "{{ $x := print .Messages .Messages }}{{ range 99999 }}{{ $x = print $x $x }}{{ end }}",
        '{{ define "a" }}{{ template "a" . }}{{ template "a" . }}{{ end }}{{ template "a" . }}',
        '{{ define "a" }}{{ range $ }}{{ template "a" $ }}{{ end }}{{ end }}{{ template "a" .Messages }}',
        "{{ (" * 60 + " 1 " + ") }}" * 60,
        '{{ range 99999 }}{{ $x := len (printf "%.99999f" $.Halves) }}{{ end }}',
        "{{ .A" + ".A" * 50_000 + " }}",
        "{{ .A }}" * 30_000,
        "{{ " + "(" * 100_000,
        "{{" + " " * 200_000,
        "{{ " + '"' * 200_001 + "}}",
        "{{ /*" * 40_000,
        "{{/* " * 40_000,
        "{{ if true }}" + "{{ else if true }}" * 9000 + "{{ end }}",
        "`{{" * 80_000,
    ],
)
def test_hostile_templates_are_stopped_soon(source: str) -> None:
    check(source + "{{ .Prompt }}", seconds=3.0)


@pytest.mark.parametrize(
    "source",
    [
        "{% set z = " + "1<" * 100_000 + "1 %}",
        "{% set z = [" + "1," * 100_000 + "] %}",
        "{% set a = 1 %}" * 17_000,
        "{% macro a() %}{% endmacro %}" * 9_000,
        "{% for i in range(10**9) %}{% endfor %}",
        "{% set z = 9**9**9 %}{% set z = 'x' * 10**9 %}",
        "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_hostile_jinja_is_compiled_and_stopped_soon(source: str) -> None:
    start = time.thread_time()
    with suppress(InvalidRequest):
        read_template(source).render(MESSAGES, now=NOW, variables={})
    assert time.thread_time() - start < 12.0


def check(source: str, seconds: float = 2.0) -> None:
    """A template is either refused, or renders or fails as it should, in processor time that nobody minds."""
    start = time.thread_time()
    error = _error(source)
    assert error is None or (error.param in ("template", "messages") and len(error.message) < 500)
    assert time.thread_time() - start < seconds


def _error(source: str) -> InvalidRequest | None:
    try:
        template = parse_go_template(source)
        template.render(MESSAGES, tools=[Tool("f")], now=NOW, variables={"Halves": [0.5] * 2000})
        read_template(source)
    except InvalidRequest as error:
        return error
    return None
