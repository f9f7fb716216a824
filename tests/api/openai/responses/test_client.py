"""OpenAI's own client, against a real server."""

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import FunctionToolParam, ResponseInputParam
from openai.types.responses import Response as ClientResponse
from pydantic import BaseModel


class Place(BaseModel):
    """Where."""

    city: Literal["Rom", "Oslo"]


TOOL: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": openai.pydantic_function_tool(Place)["function"]["parameters"],
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'


def test_create_and_read_again(client: openai.OpenAI) -> None:
    made = client.responses.create(model="clever", input="<think>hm</think>hello", metadata={"a": "b"})
    assert made.output_text == "hello"
    ClientResponse.model_validate(made.to_dict(), strict=True)
    assert client.responses.retrieve(made.id) == made
    assert client.responses.delete(made.id) is None
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(client.responses.create(model="clever", input="a").id)


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="clever", input="<think>hm</think>hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "hello"
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert snapshots[-1] == "hello"
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(thoughts) == "hm"
    again = client.responses.retrieve(final.id)
    assert again.output_text == final.output_text


def test_parse(client: openai.OpenAI) -> None:
    reply = client.responses.parse(model="clever", input='<think>hm</think>{"city": "Oslo"}', text_format=Place)
    assert reply.output_parsed == Place(city="Oslo")
    with client.responses.stream(model="clever", input='{"city": "Rom"}', text_format=Place) as stream:
        list(stream)
        assert stream.get_final_response().output_parsed == Place(city="Rom")


def test_a_tool_loop_that_keeps_its_own_items(client: openai.OpenAI) -> None:
    items: ResponseInputParam = [{"role": "user", "content": f"<think>hm</think>{CALL}"}]
    first = client.responses.create(model="clever", input=items, tools=[TOOL], store=False)
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    items += [item.to_dict() for item in first.output]  # type: ignore[misc]
    call = first.output[1]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Rom"}
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    items.append({"role": "user", "content": "thanks"})
    assert client.responses.create(model="clever", input=items, tools=[TOOL], store=False).output_text == "thanks"


def test_a_tool_loop_that_the_server_remembers(client: openai.OpenAI) -> None:
    with client.responses.stream(model="clever", input=CALL, tools=[TOOL]) as stream:
        arguments = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    assert arguments[-1] == call.arguments
    second = client.responses.create(
        model="clever",
        previous_response_id=first.id,
        input=[
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": [{"type": "input_text", "text": "hot"}],
            },
            {"role": "user", "content": "thanks"},
        ],
        tools=[TOOL],
    )
    assert second.output_text == "thanks"
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]


def test_logprobs(client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="clever", input="<think>hm</think>ah", include=["message.output_text.logprobs"], top_logprobs=2
    )
    message = reply.output[-1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [entry.token for entry in part.logprobs] == ["a", "h"]
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}


def test_counting(client: openai.OpenAI) -> None:
    asked: Any = {"model": "clever", "input": "hello", "instructions": "be kind", "tools": [TOOL]}
    counted = client.responses.input_tokens.count(**asked)
    usage = client.responses.create(**asked).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


async def _streamed_by_many(url: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:

        async def one(number: int) -> str:
            async with client.responses.stream(model="clever", input=f"answer {number}") as stream:
                return (await stream.get_final_response()).output_text

        return await asyncio.gather(*map(one, range(8)))


def test_many_streams_at_once(server: Any) -> None:
    assert asyncio.run(_streamed_by_many(f"{server.url}/v1")) == [f"answer {number}" for number in range(8)]
