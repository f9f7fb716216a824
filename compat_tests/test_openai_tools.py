"""openai-python: tools and structured output, by its helpers as well."""

import json
from datetime import date
from typing import Literal

import openai
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

SYSTEM: ChatCompletionMessageParam = {"role": "system", "content": "You are a weather service."}
PARIS: list[ChatCompletionMessageParam] = [SYSTEM, {"role": "user", "content": "How is the weather in Paris?"}]
TWO_CITIES: list[ChatCompletionMessageParam] = [
    SYSTEM,
    {"role": "user", "content": "How is the weather in Paris and in Oslo?"},
]
GET_WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, now.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}
GET_TIME: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_time"}}


class GetWeather(BaseModel):
    """The weather at a place."""

    location: str
    unit: Literal["C", "F"]


class Person(BaseModel):
    """Somebody."""

    name: str
    city: str
    year: int


class Event(BaseModel):
    """Nested, with every kind of field that a strict schema has."""

    title: str
    day: date
    kind: Literal["talk", "party"]
    people: list[Person]
    place: str | None


def test_a_tool_loop_from_end_to_end(client: openai.OpenAI, scripted: str) -> None:
    messages = list(PARIS)
    first = client.chat.completions.create(model=scripted, messages=messages, tools=[GET_WEATHER])
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"location": "Paris"}
    messages.append(choice.message)  # type: ignore[arg-type] # the client takes its own answers
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny, 20 °C"})
    second = client.chat.completions.create(model=scripted, messages=messages, tools=[GET_WEATHER])
    assert second.choices[0].message.content == "It is sunny in Paris."
    assert second.choices[0].finish_reason == "stop"


def test_calls_in_parallel_have_ids_of_their_own(client: openai.OpenAI, scripted: str) -> None:
    reply = client.chat.completions.create(model=scripted, messages=TWO_CITIES, tools=[GET_WEATHER])
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"location": "Paris"}, {"location": "Oslo"}]
    assert len({call.id for call in calls}) == 2


def test_parallel_calls_can_be_switched_off(client: openai.OpenAI, scripted: str) -> None:
    reply = client.chat.completions.create(
        model=scripted, messages=TWO_CITIES, tools=[GET_WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert len(calls) == 1


def test_the_stream_helper_gathers_calls(client: openai.OpenAI, scripted: str) -> None:
    with client.chat.completions.stream(model=scripted, messages=TWO_CITIES, tools=[GET_WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert [event.type for event in events if event.type == "tool_calls.function.arguments.done"] == [
        "tool_calls.function.arguments.done"
    ] * 2
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert {event.index for event in deltas} == {0, 1}
    calls = final.choices[0].message.tool_calls
    assert calls
    assert [call.function.arguments for call in calls] == [
        "".join(event.arguments_delta for event in deltas if event.index == index) for index in (0, 1)
    ]
    assert final.choices[0].finish_reason == "tool_calls"


def test_arguments_come_as_they_are_made(client: openai.OpenAI, model: str) -> None:
    """With the real model, which takes its time over each token."""
    with client.chat.completions.stream(
        model=model, messages=PARIS, tools=[GET_WEATHER], tool_choice="required", temperature=0, max_tokens=60
    ) as stream:
        deltas = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 3


def test_the_stream_helper_gathers_text_and_usage(client: openai.OpenAI, scripted: str) -> None:
    with client.chat.completions.stream(
        model=scripted, messages=[{"role": "user", "content": "Say this."}], stream_options={"include_usage": True}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == "Say this."
    assert final.usage
    assert final.usage.completion_tokens == len("Say this.") + 1, "a token a byte, and the end"


def test_parse_gives_objects(client: openai.OpenAI, scripted: str, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where is Ada, and since when?"}]
    reply = client.chat.completions.parse(model=scripted, messages=messages, response_format=Person)
    assert reply.choices[0].message.parsed == Person(name="Ada Lovelace", city="London", year=1843)
    unsure = client.chat.completions.parse(
        model=model, messages=messages, response_format=Person, temperature=0, max_tokens=200
    )
    assert isinstance(unsure.choices[0].message.parsed, Person)


def test_a_small_hot_model_keeps_to_a_nested_schema(client: openai.OpenAI, model: str) -> None:
    try:
        reply = client.chat.completions.parse(
            model=model,
            messages=[{"role": "user", "content": "Plan a birthday party as JSON."}],
            response_format=Event,
            temperature=1.5,
            seed=1,
            max_tokens=300,
        )
    except openai.LengthFinishReasonError:
        return  # said so, as it should be
    assert isinstance(reply.choices[0].message.parsed, Event)


def test_parse_gives_arguments_as_objects(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.parse(
        model=model,
        messages=PARIS,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=200,
    )
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, GetWeather)


def test_the_stream_helper_parses(client: openai.OpenAI, scripted: str) -> None:
    with client.chat.completions.stream(
        model=scripted, messages=[{"role": "user", "content": "Where is Ada?"}], response_format=Person
    ) as stream:
        snapshots = [event.parsed for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert snapshots
    assert final.choices[0].message.parsed == Person(name="Ada Lovelace", city="London", year=1843)


def test_thinking_is_told_apart(client: openai.OpenAI, scripted: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 17 times 3?"}]
    reply = client.chat.completions.create(model=scripted, messages=messages)
    message = reply.choices[0].message
    assert message.content == "17 times 3 is 51."
    assert message.reasoning_content == "Ten times three is 30, seven times three is 21."  # type: ignore[attr-defined]
    assert reply.usage
    assert reply.usage.completion_tokens_details
    assert reply.usage.completion_tokens_details.reasoning_tokens
    quiet = client.chat.completions.create(model=scripted, messages=messages, reasoning_effort="none")
    assert quiet.choices[0].message.content == "17 times 3 is 51."
    assert not getattr(quiet.choices[0].message, "reasoning_content", None)
