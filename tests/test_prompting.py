"""Tools, thinking, forms and gaps through the façade, on a model that says what it was told to say."""

import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from vmm_adapters.echo import CHAT_TEMPLATE, write_echo_model
from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.completion import Completion
from vmm_server.engine.stream import Delta
from vmm_server.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, UnsupportedCapability
from vmm_server.models.loading import load_model
from vmm_server.models.store import InstalledModel
from vmm_server.parts import Parts, build_parts
from vmm_server.requests import (
    ChatPrompt,
    GenerateRequest,
    InsertPrompt,
    JsonSchema,
    Message,
    TextPrompt,
    Tool,
    ToolCall,
    ToolUse,
)

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
TOOL = Tool("f", "Does f.", json.dumps(SCHEMA), param="tools[0].function.parameters")
OTHER = Tool("g")
FORM = JsonSchema(json.dumps(SCHEMA), "response_format")
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
TELLING = {"chat_template.jinja": "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}" + CHAT_TEMPLATE}


def chat(
    text: str = "hello", model: str = "echo", sampling: dict[str, Any] | None = None, **prompt: Any
) -> GenerateRequest:
    constraint = prompt.pop("constraint", None)
    messages = prompt.pop("messages", (Message("user", text),))
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 300, "seed": 5} | (sampling or {}))
    return GenerateRequest(model, ChatPrompt(messages, **prompt), params, constraint=constraint)


def renamed_tokens(names: dict[str, str], folder: Path) -> str:
    """The echo model's tokenizer.json, in which special tokens are called by new names."""
    write_echo_model(folder)
    text = (folder / "tokenizer.json").read_text("utf-8")
    for new, old in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    return text


class Said:
    """An answer, put together."""

    def __init__(self, completion: Completion, deltas: list[Delta]) -> None:
        self.prompt = completion.prompt_text or ""
        self.text = "".join(delta.text for delta in deltas)
        self.reasoning = "".join(delta.reasoning for delta in deltas)
        self.calls: list[list[str]] = []
        for piece in (piece for delta in deltas for piece in delta.tool_calls):
            if piece.name is not None:
                assert piece.id is not None
                self.calls.append([piece.name, ""])
            self.calls[-1][1] += piece.arguments
        self.finish_reason = deltas[-1].finish_reason
        self.deltas = deltas
        assert completion.usage == deltas[-1].usage
        assert completion.usage is not None
        self.usage = completion.usage


async def say(parts: Parts, request: GenerateRequest) -> Said:
    async with await parts.inference.generate(request) as completion:
        return Said(completion, [delta async for delta in completion])


def test_calls_are_told_from_text(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        said = await say(parts, chat(f"Sure. {CALL}", tools=ToolUse((TOOL, OTHER))))
        assert (said.text, said.calls) == ("Sure.", [["f", '{"x": 1}']])
        assert said.finish_reason is FinishReason.TOOL_CALLS
        forbidden = await say(parts, chat(CALL, tools=ToolUse((TOOL, OTHER), allowed=frozenset({"g"}))))
        assert (forbidden.text, forbidden.calls) == (CALL, [])
        free = await say(parts, chat(CALL))
        assert (free.text, free.finish_reason) == (CALL, FinishReason.STOP)

    installed(files=TELLING)
    with_parts(body)


def test_thinking_is_told_from_text_and_counted(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        said = await say(parts, chat("<think>hm</think>\n\nyes"))
        assert (said.reasoning, said.text) == ("hm", "yes")
        assert said.usage.num_reasoning_tokens == len("<think>hm</think>")
        plain = await say(parts, chat("yes"))
        assert (plain.text, plain.usage.num_reasoning_tokens) == ("yes", 0)
        begun = (Message("user", "<think>hm</think>yes"), Message("assistant", "<think>"))
        said = await say(parts, chat(messages=begun))
        assert (said.reasoning, said.text) == ("hm", "yes")

    installed(reasoning_format="think", files=TELLING)
    with_parts(body)


def test_plain_answers_are_not_read(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        for request in (
            chat("<think>hm</think>yes"),
            replace(chat(), prompt=TextPrompt("<|user|><think>hm</think>yes<|end|><|assistant|>"), model="thinker"),
        ):
            assert (await say(parts, request)).text == "<think>hm</think>yes"

    installed()
    installed("thinker:latest", reasoning_format="think")
    with_parts(body)


def test_special_tokens_of_the_formats_are_seen_and_no_others(installed: Any, with_parts: Any, tmp_path: Path) -> None:
    """Markers that are tokens of the model: here those of its chat stand in for them."""
    added = {"<tool_call>": "<|tool|>", "</tool_call>": "<|system|>"}

    async def body(parts: Parts) -> None:
        call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
        said = await say(parts, chat(call, tools=ToolUse((TOOL,))))
        assert said.calls == [["f", '{"x": 1}']]
        required = await say(parts, chat("x", tools=ToolUse((TOOL,), required=True), sampling={"temperature": 1.5}))
        assert required.calls
        hidden = await say(parts, chat(call))
        assert hidden.text == '{"name": "f", "arguments": {"x": 1}}'

    installed(files={**TELLING, "tokenizer.json": renamed_tokens(added, tmp_path)})
    with_parts(body)


def test_required_tools_are_called_after_thinking(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        for seed in range(5):
            use = ToolUse((TOOL, OTHER), required=True, allowed=frozenset({"f"}), parallel=False)
            said = await say(
                parts, chat("<think>hm {</think>no", tools=use, sampling={"temperature": 1.5, "seed": seed})
            )
            assert (said.reasoning, said.text) == ("hm {", "")
            if said.finish_reason is not FinishReason.LENGTH:
                assert said.finish_reason is FinishReason.TOOL_CALLS
                ((name, arguments),) = said.calls
                assert name == "f"
                assert isinstance(json.loads(arguments)["x"], int)

    installed(reasoning_format="think", files=TELLING)
    with_parts(body)


def test_a_form_holds_with_thinking_tools_and_both(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        for tools in (None, ToolUse((OTHER,))):
            for text, thought in (("<think>hm</think>no", "hm"), ("no", "")):
                said = await say(parts, chat(text, tools=tools, constraint=FORM, sampling={"temperature": 1.5}))
                assert said.reasoning == thought
                if said.finish_reason is FinishReason.STOP:
                    jsonschema_rs.validator_for(SCHEMA).validate(json.loads(said.text))
                else:
                    assert said.finish_reason in (FinishReason.TOOL_CALLS, FinishReason.LENGTH)
                    assert not said.text or tools is None

    installed(reasoning_format="think", files=TELLING)
    with_parts(body)


@pytest.mark.parametrize("thinking", [True, "high"])
def test_a_model_that_cannot_think_says_so(installed: Any, with_parts: Any, thinking: bool | str) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(UnsupportedCapability, match='"echo" does not support thinking') as refused:
            await parts.inference.generate(chat(thinking=thinking, thinking_param="think"))
        assert refused.value.param == "think"
        for fine in (None, False):
            assert (await say(parts, chat(thinking=fine))).text == "hello"

    installed()
    with_parts(body)


@pytest.mark.parametrize(
    ("end", "closing"),
    [
        ("", "<think>\n\n</think>\n\n"),  # nothing is said of thinking
        ("<think>", "<think>\n</think>\n\n"),  # it always thinks
        (SWITCH, "<think></think>"),  # it has a switch of its own
    ],
)
def test_thinking_can_be_kept_from_a_model_that_always_does(
    installed: Any, with_parts: Any, end: str, closing: str
) -> None:
    async def body(parts: Parts) -> None:
        said = await say(parts, chat("hm</think>x", thinking=False))
        assert said.prompt.endswith("<|assistant|>" + closing)
        assert said.reasoning == ""
        assert said.usage.num_reasoning_tokens == 0

    installed(reasoning_format="think", files={"chat_template.jinja": CHAT_TEMPLATE + end})
    with_parts(body)


def test_an_answer_that_has_begun_does_not_begin_to_think(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        begun = (Message("user", "a <think>x</think>y"), Message("assistant", "a "))
        assert (await say(parts, chat(messages=begun))).text == "<think>x</think>y"

    installed(reasoning_format="think", files=TELLING)
    with_parts(body)


def test_tools_are_told_in_words_where_the_template_has_no_place(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        history = (
            Message("user", "x"),
            Message("assistant", "", tool_calls=(ToolCall("f", '{"x": 1}', "c"),)),
            Message("tool", "seven", tool_call_id="c"),
        )
        prompted = await parts.inference.count_tokens(chat(messages=history, tools=ToolUse((TOOL,))))
        assert prompted.text is not None
        told, _, rest = prompted.text.partition("<|end|>")
        assert '{"name": "f", "description": "Does f."' in told
        assert CALL in rest
        assert "<|user|><tool_response>\nseven\n</tool_response><|end|><|assistant|>" in rest

    installed(context_length=4096)
    with_parts(body)


@pytest.mark.parametrize(
    ("request_", "error", "named"),
    [
        (chat(tools=ToolUse((TOOL,), required=True), sampling={"ignore_eos": True}), InvalidRequest, "ignore_eos"),
        (
            chat(tools=ToolUse((Tool("h", None, '{"type": "object", "not": {}}', True, "tools[0].function"),))),
            InvalidRequest,
            "tools[0].function",
        ),
        (replace(chat(), prompt=InsertPrompt("a", "b")), UnsupportedCapability, "suffix"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    request_: GenerateRequest, error: type[Exception], named: str, installed: Any, with_parts: Any
) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(error) as raised:
            await parts.inference.generate(request_)
        assert raised.value.param == named  # type: ignore[attr-defined]
        assert all(loaded.num_leases == 0 for loaded in parts.pool.loaded())

    installed(files=TELLING)
    with_parts(body)


def test_a_gap_is_filled_by_the_models_own_tokens(installed: Any, with_parts: Any, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=4)
        async with await parts.inference.generate(
            GenerateRequest("echo", InsertPrompt("ab", "cd"), params)
        ) as completion:
            assert completion.prompt_text is None
            assert completion.prompt_tokens == (256, *b"ab", 257, *b"cd", 259)
            assert "".join([delta.text async for delta in completion]) == "abcd"

    installed(
        files={
            "tokenizer.json": renamed_tokens(
                {"<fim_prefix>": "<|system|>", "<fim_suffix>": "<|user|>", "<fim_middle>": "<|tool|>"},
                tmp_path,
            )
        }
    )
    with_parts(body)


def test_a_prompt_is_counted_as_it_would_be_run(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        request = chat("hello", tools=ToolUse((TOOL,)))
        counted = await parts.inference.count_tokens(request)
        async with await parts.inference.generate(request) as completion:
            assert counted.tokens == completion.prompt_tokens
            assert counted.text == completion.prompt_text == "f<|user|>hello<|end|><|assistant|>"
        assert counted.context_length == 512
        long = await parts.inference.count_tokens(chat("x" * 600))
        assert len(long.tokens) == 603
        with pytest.raises(ContextLengthExceeded):
            await parts.inference.generate(chat("x" * 600))
        assert all(loaded.num_leases == 0 for loaded in parts.pool.loaded())

    installed(files=TELLING)
    with_parts(body)


def test_the_tokeniser_is_there_for_the_asking(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        words = await parts.inference.tokenizer("echo")
        assert words.encode("hé<|end|>") == [*"hé".encode(), 260]
        assert words.decode([104, 0xC3, 0xA9, 260]) == "hé<|end|>"
        assert words.bytes(0xC3) == b"\xc3"
        assert (words.vocab_size, words.context_length) == (261, 512)
        for wrong in (261, -1, 2**40):
            with pytest.raises(InvalidRequest, match=str(wrong)) as refused:
                words.decode([104, wrong])
            assert refused.value.param == "tokens"
        with pytest.raises(ModelNotFound):
            await parts.inference.tokenizer("nobody")
        ear = replace(parts.registry.resolve("echo"), name="ear:latest", aliases=(), capabilities=("transcription",))
        parts.store.install(ear)
        with pytest.raises(UnsupportedCapability, match="ear"):
            await parts.inference.tokenizer("ear")
        assert all(loaded.num_leases == 0 for loaded in parts.pool.loaded())

    installed()
    with_parts(body)


def test_a_call_without_its_result_is_not_gone_on_from(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        called = Message("assistant", "", tool_calls=(ToolCall("f", "{}", "c"),))
        prompted = await parts.inference.count_tokens(chat(messages=(Message("user", "x"), called)))
        assert prompted.text is not None
        assert prompted.text.endswith("</tool_call><|end|><|assistant|>")

    installed()
    with_parts(body)


@pytest.mark.runtime
def test_the_real_model_calls_what_it_was_told_of_in_words(smollm2: InstalledModel, settings: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = ToolUse((Tool("get_weather", "The weather in a city", json.dumps(schema)),), required=True, parallel=False)
    root = next(folder for folder in smollm2.folder.parents if (folder / "manifests").is_dir())
    configured = settings(home=root.parent)

    async def scenario() -> None:
        parts = build_parts(configured, partial(load_model, settings=configured))
        try:
            said = await say(parts, chat("What is the weather in Paris?", smollm2.name, tools=tools))
        finally:
            await parts.pool.aclose()
        assert "get_weather" in said.prompt
        assert said.calls[0][0] == "get_weather"
        assert json.loads(said.calls[0][1]) == {"city": "Paris"}

    asyncio.run(scenario())
