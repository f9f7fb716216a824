"""Templates that requests and created models bring along, through the façade, on a model that says what it was told."""

import json
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.echo import SPECIAL_TOKENS, write_echo_model
from vmm_adapters.types import SamplingParams
from vmm_server.completion import Completion
from vmm_server.errors import InvalidRequest, UnsupportedCapability
from vmm_server.parts import Parts
from vmm_server.requests import ChatPrompt, GenerateRequest, InsertPrompt, Message, Tool, ToolUse

GO = """{{ if .System }}<|system|>{{ .System }}<|end|>{{ end }}<|user|>{{ .Prompt }}<|end|>
{{- /* the answer */ -}}
<|assistant|>{{ .Response }}<|end|>"""
GO_TOOLS = """{{ if .Tools }}<|system|>{{ range .Tools }}{{ .Function.Name }} <tool_call>{{ end }}<|end|>{{ end }}
{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}<|end|>
{{- end }}<|assistant|>"""
GAP = "{{ .Prompt }}<|tool|>{{ .Suffix }}<|assistant|>"
JINJA = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}!<|end|>{% endfor %}<|assistant|>"
HI, HELLO, MORE = Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "More")
SYSTEM, USER, ASSISTANT, TOOL, END = range(256, 261)
PARAMS = SamplingParams(temperature=0.0, max_tokens=100)


def request(prompt: ChatPrompt | InsertPrompt) -> GenerateRequest:
    return GenerateRequest("echo", prompt, PARAMS)


def chat(*messages: Message, **fields: Any) -> GenerateRequest:
    return request(ChatPrompt(messages, **fields))


async def said(parts: Parts, asked: GenerateRequest) -> tuple[Completion, str]:
    async with await parts.inference.generate(asked) as completion:
        return completion, "".join([delta.text async for delta in completion])


def with_bos_token(folder: Path) -> str:
    """The echo model's tokenizer.json, putting `<|tool|>` before every text."""
    write_echo_model(folder)
    described = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    first, text = {"SpecialToken": {"id": "<|tool|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    token = {"id": "<|tool|>", "ids": [256 + SPECIAL_TOKENS.index("<|tool|>")], "tokens": ["<|tool|>"]}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, text],
        "special_tokens": {"<|tool|>": token},
    }
    return json.dumps(described)


def test_a_request_brings_a_template_in_either_language(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        own, answer = await said(parts, chat(HI))
        assert (own.prompt_text, answer) == ("<|user|>Hi<|end|><|assistant|>", "Hi")
        go, answer = await said(parts, chat(Message("system", "s"), HI, HELLO, MORE, template=GO))
        assert go.prompt_text == (
            "<|system|>s<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>More<|end|><|assistant|>"
        )
        assert answer == "More"
        jinja, answer = await said(parts, chat(HI, template=JINJA))
        assert (jinja.prompt_text, answer) == ("<|user|>Hi!<|end|><|assistant|>", "Hi!")
        prefill, _ = await said(parts, chat(HI, HELLO, template=GO))
        assert prefill.prompt_text == "<|user|>Hi<|end|><|assistant|>Hello"
        for broken in ("{{ .Prompt", "{% if %}", "{{ .Prompt }}{% if x %}{% endif %}", "plain"):
            with pytest.raises(InvalidRequest) as caught:
                await parts.inference.generate(chat(HI, template=broken))
            assert caught.value.param == "template"

    installed()
    with_parts(body)


@pytest.mark.parametrize("has_own", [True, False])
def test_a_created_models_template_replaces_its_folders(has_own: bool, installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion, answer = await said(parts, chat(HI))
        assert (completion.prompt_text, answer) == (
            "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>",
            "Hi",
        )
        completion, _ = await said(parts, chat(HI, template=JINJA))
        assert completion.prompt_text == "<|system|>Be brief.!<|end|><|user|>Hi!<|end|><|assistant|>"

    installed(template=GO, system="Be brief.", without=() if has_own else ("chat_template.jinja",))
    with_parts(body)


def test_a_default_is_for_a_model_without_a_template(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion, answer = await said(parts, chat(HI, default_template="{{ .Prompt }}"))
        assert (completion.prompt_text, answer[:3]) == ("Hi", "jkl")
        with pytest.raises(UnsupportedCapability, match="does not support chat"):
            await parts.inference.generate(chat(HI))
        completion, _ = await said(parts, chat(HI, default_template="{{ .Prompt }}", template=GO))
        assert completion.prompt_text == "<|user|>Hi<|end|><|assistant|>"

    installed(without=("chat_template.jinja",))
    with_parts(body)


def test_tools_are_told_by_a_go_template_that_has_a_place_for_them(installed: Any, with_parts: Any) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

    async def body(parts: Parts) -> None:
        tools = ToolUse((Tool("f"),))
        asked = chat(Message("user", call), template=GO_TOOLS, tools=tools)
        async with await parts.inference.generate(asked) as completion:
            assert str(completion.prompt_text).startswith("<|system|>f <tool_call><|end|><|user|>")
            assert [piece.name async for delta in completion for piece in delta.tool_calls if piece.name] == ["f"]
        in_words = await parts.inference.count_tokens(chat(Message("user", call), template=GO, tools=tools))
        assert str(in_words.text).startswith("<|system|>You can call functions.")

    installed()
    with_parts(body)


def test_a_gap_is_written_by_a_template_that_takes_a_suffix(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        own, _ = await said(parts, request(InsertPrompt("a", "b")))
        assert own.prompt_tokens == (*b"a", TOOL, *b"b", ASSISTANT)
        given, _ = await said(
            parts, request(InsertPrompt("a", "b", template="{{ .Suffix }}{{ .Prompt }}<|assistant|>"))
        )
        assert given.prompt_tokens == (*b"ba", ASSISTANT)
        for template in (GO, JINJA):
            with pytest.raises(InvalidRequest, match="no place for the suffix") as caught:
                await parts.inference.generate(request(InsertPrompt("a", "b", template=template)))
            assert caught.value.param == "template"

    installed(template=GAP)
    with_parts(body)


def test_without_such_a_template_or_tokens_no_gap_is_filled(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(UnsupportedCapability):
            await parts.inference.generate(request(InsertPrompt("a", "b")))

    installed(template=GO)
    with_parts(body)


def test_the_bos_token_comes_once(installed: Any, with_parts: Any, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        hi = (USER, *b"Hi", END, ASSISTANT)
        for template, tokens in ((GO, (TOOL, *hi)), (f"<|tool|>{GO}", (TOOL, *hi)), (None, hi)):
            completion, _ = await said(parts, chat(HI, template=template))
            assert completion.prompt_tokens == tokens
        earlier, _ = await said(parts, chat(HI, template=GO, context=(TOOL, USER, END)))
        assert earlier.prompt_tokens == (TOOL, USER, END, *hi)
        gap, _ = await said(parts, request(InsertPrompt("a", "b", template=GAP)))
        assert gap.prompt_tokens == (TOOL, *b"a", TOOL, *b"b", ASSISTANT)

    installed(files={"tokenizer.json": with_bos_token(tmp_path)})
    with_parts(body)
