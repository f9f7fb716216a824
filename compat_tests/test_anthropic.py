"""anthropic-python, the official client: `/v1/messages`."""

import json
from collections.abc import Iterator

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

GET_WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather at a place, now.",
    "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
PARIS: MessageParam = {"role": "user", "content": "How is the weather in Paris?"}
SUMS: MessageParam = {"role": "user", "content": "What is 17 times 3?"}


@pytest.fixture
def claude(base_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


def test_create_answers_and_counts(claude: anthropic.Anthropic, model: str) -> None:
    reply = claude.messages.create(
        model=model,
        max_tokens=40,
        system="You are a helpful assistant.",
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        extra_body={"temperature": 0},
    )
    (block,) = reply.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert reply.role == "assistant"
    assert reply.stop_reason == "end_turn"
    assert reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0) > 10
    assert reply.usage.output_tokens > 3


def test_max_tokens_and_stop_sequences_are_said(claude: anthropic.Anthropic, scripted: str) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "One two three"}]
    short = claude.messages.create(model=scripted, max_tokens=3, messages=messages)
    assert short.stop_reason == "max_tokens"
    stopped = claude.messages.create(model=scripted, max_tokens=30, messages=messages, stop_sequences=["two", "x"])
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence == "two"
    assert stopped.content[0].type == "text"
    assert stopped.content[0].text == "One "


def test_a_stream_adds_up(claude: anthropic.Anthropic, scripted: str) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "Say this."}]
    with claude.messages.stream(model=scripted, max_tokens=30, messages=messages) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "Say this."
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(text) + 1
    events = [
        event.type for event in claude.messages.create(model=scripted, max_tokens=30, messages=messages, stream=True)
    ]
    events = [kind for kind in events if kind != "ping"]
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(events[2:-3]) == {"content_block_delta"}


def test_a_tool_loop_from_end_to_end(claude: anthropic.Anthropic, scripted: str) -> None:
    messages = [PARIS]
    first = claude.messages.create(model=scripted, max_tokens=200, messages=messages, tools=[GET_WEATHER])
    assert first.stop_reason == "tool_use"
    (use,) = (block for block in first.content if block.type == "tool_use")
    assert use.name == "get_weather"
    assert use.input == {"location": "Paris"}
    messages.append({"role": "assistant", "content": first.content})
    messages.append(
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 20 °C"}]}
    )
    second = claude.messages.create(model=scripted, max_tokens=200, messages=messages, tools=[GET_WEATHER])
    assert second.stop_reason == "end_turn"
    assert second.content[0].type == "text"
    assert second.content[0].text == "It is sunny in Paris."


def test_a_streamed_call_is_the_same_call(claude: anthropic.Anthropic, scripted: str) -> None:
    with claude.messages.stream(model=scripted, max_tokens=200, messages=[PARIS], tools=[GET_WEATHER]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(pieces)) == {"location": "Paris"}
    (use,) = (block for block in final.content if block.type == "tool_use")
    assert use.input == {"location": "Paris"}
    assert final.stop_reason == "tool_use"


def test_the_tool_runner_runs_tools(claude: anthropic.Anthropic, scripted: str) -> None:
    asked = []

    @anthropic.beta_tool
    def get_weather(location: str) -> str:
        """The weather at a place, now."""
        asked.append(location)
        return "sunny"

    final = claude.beta.messages.tool_runner(
        model=scripted,
        max_tokens=200,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[get_weather],
    ).until_done()
    assert asked == ["Paris"]
    assert final.content[0].type == "text"
    assert final.content[0].text == "It is sunny in Paris."


@pytest.mark.parametrize("choice", ["any", "tool"])
def test_a_tool_can_be_required(claude: anthropic.Anthropic, model: str, choice: str) -> None:
    reply = claude.messages.create(
        model=model,
        max_tokens=200,
        messages=[{"role": "user", "content": "Tell me a story."}],
        tools=[GET_WEATHER],
        tool_choice=(
            {"type": "any", "disable_parallel_tool_use": True}
            if choice == "any"
            else {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
        ),
        extra_body={"temperature": 0},
    )
    assert [block.type for block in reply.content] == ["tool_use"]


def test_thinking_is_a_block_of_its_own(claude: anthropic.Anthropic, scripted: str) -> None:
    reply = claude.messages.create(
        model=scripted, max_tokens=2000, messages=[SUMS], thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert reply.content[1].type == "text"
    assert reply.content[1].text == "17 times 3 is 51."
    again = claude.messages.create(
        model=scripted,
        max_tokens=2000,
        messages=[SUMS, {"role": "assistant", "content": reply.content}, {"role": "user", "content": "Thanks."}],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert again.content
    quiet = claude.messages.create(model=scripted, max_tokens=200, messages=[SUMS], thinking={"type": "disabled"})
    assert [block.type for block in quiet.content] == ["text"]


def test_tokens_are_counted_without_an_answer(claude: anthropic.Anthropic, scripted: str) -> None:
    plain = claude.messages.count_tokens(model=scripted, messages=[PARIS])
    tooled = claude.messages.count_tokens(model=scripted, messages=[PARIS], tools=[GET_WEATHER])
    reply = claude.messages.create(model=scripted, max_tokens=200, messages=[PARIS], tools=[GET_WEATHER])
    assert plain.input_tokens < tooled.input_tokens
    assert tooled.input_tokens == reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0)


def test_failures_have_their_class_and_shape(claude: anthropic.Anthropic, scripted: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="none", max_tokens=5, messages=[PARIS])
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as wrong:
        claude.messages.create(model=scripted, max_tokens=-1, messages=[PARIS])
    assert wrong.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
