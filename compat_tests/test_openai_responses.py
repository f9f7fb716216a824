"""openai-python: the Responses API."""

import json

import openai
import pytest
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel

GET_WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather at a place, now.",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(BaseModel):
    """Somebody."""

    name: str
    city: str
    year: int


def test_create_answers_and_counts(client: openai.OpenAI, model: str) -> None:
    reply = client.responses.create(
        model=model,
        instructions="You are a helpful assistant.",
        input="What is the capital of France? Answer in one sentence.",
        temperature=0,
        max_output_tokens=40,
    )
    assert "Paris" in reply.output_text
    assert reply.status == "completed"
    assert reply.error is None
    assert reply.usage
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.input_tokens_details.cached_tokens >= 0
    assert reply.usage.output_tokens_details.reasoning_tokens == 0


def test_an_answer_cut_off_is_incomplete(client: openai.OpenAI, model: str) -> None:
    reply = client.responses.create(model=model, input="Tell me a long story.", max_output_tokens=3)
    assert reply.status == "incomplete"
    assert reply.incomplete_details
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_events_are_numbered_and_end_with_the_whole(client: openai.OpenAI, scripted: str) -> None:
    events = list(client.responses.create(model=scripted, input="Say this.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    inner = [kind for kind in dict.fromkeys(types) if kind not in (*types[:2], types[-1])]
    assert inner == [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Say this."
    assert last.response.output_text == "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )


def test_the_stream_helper_gathers_the_same(client: openai.OpenAI, scripted: str) -> None:
    with client.responses.stream(model=scripted, input="Say this.") as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text == "Say this."


def test_parse_gives_objects(client: openai.OpenAI, scripted: str) -> None:
    reply = client.responses.parse(model=scripted, input="Where is Ada?", text_format=Person)
    assert reply.output_parsed == Person(name="Ada Lovelace", city="London", year=1843)
    with client.responses.stream(model=scripted, input="Where is Ada?", text_format=Person) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == reply.output_parsed


def test_a_tool_loop_without_memory(client: openai.OpenAI, scripted: str) -> None:
    items: ResponseInputParam = [{"role": "user", "content": "How is the weather in Paris?"}]
    first = client.responses.create(model=scripted, input=items, tools=[GET_WEATHER], store=False)
    (call,) = (item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"location": "Paris"}
    items += [item.model_dump(exclude_none=True) for item in first.output]  # type: ignore[arg-type,misc]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    second = client.responses.create(model=scripted, input=items, tools=[GET_WEATHER], store=False)
    assert second.output_text == "It is sunny in Paris."


def test_a_tool_loop_with_memory(client: openai.OpenAI, scripted: str) -> None:
    first = client.responses.create(model=scripted, input="How is the weather in Paris?", tools=[GET_WEATHER])
    (call,) = (item for item in first.output if item.type == "function_call")
    second = client.responses.create(
        model=scripted,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[GET_WEATHER],
    )
    assert second.output_text == "It is sunny in Paris."
    assert second.previous_response_id == first.id


def test_arguments_are_streamed(client: openai.OpenAI, scripted: str) -> None:
    events = list(
        client.responses.create(
            model=scripted, input="How is the weather in Paris and in Oslo?", tools=[GET_WEATHER], stream=True
        )
    )
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [{"location": "Paris"}, {"location": "Oslo"}]
    for event in done:
        deltas = [
            other.delta
            for other in events
            if other.type == "response.function_call_arguments.delta" and other.item_id == event.item_id
        ]
        assert "".join(deltas) == event.arguments


def test_thinking_is_an_item_of_its_own(client: openai.OpenAI, scripted: str) -> None:
    reply = client.responses.create(model=scripted, input="What is 17 times 3?")
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output_text == "17 times 3 is 51."
    assert reply.usage
    assert reply.usage.output_tokens_details.reasoning_tokens > 10


def test_what_was_stored_can_be_read_and_deleted(client: openai.OpenAI, scripted: str) -> None:
    made = client.responses.create(model=scripted, input="Remember this.")
    found = client.responses.retrieve(made.id)
    assert found.output_text == made.output_text == "Remember this."
    items = list(client.responses.input_items.list(made.id))
    assert len(items) == 1
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_what_was_not_stored_cannot_be_read(client: openai.OpenAI, scripted: str) -> None:
    made = client.responses.create(model=scripted, input="Forget this.", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_tool_that_cannot_be_run_here_is_refused_by_name(client: openai.OpenAI, scripted: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=scripted, input="Search.", tools=[{"type": "web_search"}])
    assert "tools" in (caught.value.param or "")
