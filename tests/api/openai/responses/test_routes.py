"""`/v1/responses` over a real server: what is kept, what is streamed, what is refused."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import Gate
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch

Ask = Callable[..., httpx.Response]
TOOL = {
    "type": "function",
    "name": "f",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rom", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
SPOKEN_CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Rom"}}\n</tool_call>'


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def refusal(response: httpx.Response) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["param"], error["code"]


def texts(body: Any) -> list[str]:
    return [part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"]]


def test_an_answer_and_who_gave_it(ask: Ask) -> None:
    response = ask("héllo")
    body = response.json()
    assert (response.status_code, body["status"], texts(body)) == (200, "completed", ["héllo"])
    assert body["id"].startswith("resp_")
    assert body["completed_at"] >= body["created_at"]
    assert response.headers["x-vmm-model"] == "clever:latest"
    assert response.headers["x-vmm-backend"] == "echo"
    assert response.headers["x-vmm-cached-tokens"].isdigit()
    assert body["usage"]["input_tokens"] == len("héllo".encode()) + 3


def test_the_prompts_share_blocks_and_usage_says_so(ask: Ask) -> None:
    ask("y" * 100)
    details = ask("y" * 100).json()["usage"]["input_tokens_details"]
    assert details == {"cached_tokens": 96, "cache_write_tokens": 0}


def test_thinking_is_an_item_and_is_counted(ask: Ask) -> None:
    body = ask("<think>hm</think>ah").json()
    assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>hm</think>")
    summarised = ask("<think>hm</think>ah", reasoning={"summary": "auto"}).json()
    assert summarised["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]


def test_a_stream_ends_with_the_answer_that_is_kept(ask: Ask, server: Any) -> None:
    say = f"<think>hm</think>ah\n{SPOKEN_CALL}"
    events = events_of(ask(say, tools=[TOOL], stream=True))
    last = events[-1]
    assert last["type"] == "response.completed"
    assert [item["type"] for item in last["response"]["output"]] == ["reasoning", "message", "function_call"]
    assert last["response"]["store"]
    assert server.client.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]
    whole = ask(say, tools=[TOOL]).json()
    for body in (whole, last["response"]):
        for name in ("id", "created_at", "completed_at", "usage"):
            del body[name]
        for item in body["output"]:
            del item["id"]
            item.pop("call_id", None)
    assert whole == last["response"]


def test_an_answer_that_was_cut_off_is_incomplete_and_kept(ask: Ask, server: Any) -> None:
    events = events_of(ask("hello", max_output_tokens=2, stream=True))
    assert events[-1]["type"] == "response.incomplete"
    body = server.client.get(f"/v1/responses/{events[-1]['response']['id']}").json()
    assert (body["incomplete_details"], texts(body)) == ({"reason": "max_output_tokens"}, ["he"])


def test_a_form_holds_after_thinking(ask: Ask) -> None:
    form = {"format": {"type": "json_schema", "name": "n", "schema": TOOL["parameters"]}}
    body = ask('<think>{</think>{"city": "Rom"}', text=form).json()
    assert json.loads(texts(body)[0]) == {"city": "Rom"}
    (text,) = texts(ask("no JSON", text=form, model="echo").json())
    assert json.loads(text)["city"] in ("Rom", "Oslo")


def test_tool_choice_is_enforced(ask: Ask) -> None:
    body = ask("no call", model="handy", tools=[TOOL], tool_choice="required").json()
    (call,) = body["output"]
    assert (call["type"], call["name"], body["tool_choice"]) == ("function_call", "f", "required")
    assert json.loads(call["arguments"])["city"] in ("Rom", "Oslo")
    assert call["call_id"].startswith("call_")


def test_a_schema_that_cannot_be_enforced_is_not_strict_unless_it_has_to_be(ask: Ask) -> None:
    bad = {"type": "object", "not": {}}
    tools = [TOOL, TOOL | {"name": "g", "parameters": bad}, TOOL | {"name": "h", "strict": True}]

    def strict(*tools: object) -> list[bool]:
        body = ask("<think>hm</think>hi", tools=tools, stream=False).json()
        assert texts(body) == ["hi"]
        return [tool["strict"] for tool in body["tools"]]

    assert strict(*tools) == [True, False, True]
    worse = TOOL | {"name": "i", "parameters": bad}
    assert strict(*tools, worse) == [False, False, True, False]
    events = events_of(ask("<think>hm</think>hi", tools=tools, stream=True))
    assert [tool["strict"] for tool in events[0]["response"]["tools"]] == [True, False, True]
    refused = ask("hi", tools=[*tools, TOOL | {"name": "j", "parameters": bad, "strict": True}])
    assert refusal(refused)[:2] == (400, "tools[3].parameters")


def test_a_conversation_goes_on(ask: Ask, server: Any) -> None:
    first = ask("<think>hm</think>one", instructions="be kind").json()
    second = ask("two", previous_response_id=first["id"]).json()
    third = ask("three", previous_response_id=second["id"], instructions="be brief").json()
    assert third["previous_response_id"] == second["id"]
    listed = server.client.get(f"/v1/responses/{third['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert [item["type"] for item in listed] == ["message", "reasoning", "message", "message", "message", "message"]

    def counted(**fields: object) -> int:
        response = server.client.post("/v1/responses/input_tokens", json={"model": "clever"} | fields)
        assert response.json()["object"] == "response.input_tokens"
        count: int = response.json()["input_tokens"]
        return count

    assert third["usage"]["input_tokens"] == counted(
        previous_response_id=second["id"], input="three", instructions="be brief"
    )
    assert third["usage"]["input_tokens"] == counted(input=[*listed], instructions="be brief")
    assert (
        counted(previous_response_id=second["id"], input="three")
        == third["usage"]["input_tokens"] - len("<|be brief<|") + 2
    )


def test_calls_and_outputs_go_on_by_id(ask: Ask) -> None:
    first = ask(SPOKEN_CALL, tools=[TOOL]).json()
    (call,) = first["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    second = ask([output], previous_response_id=first["id"], tools=[TOOL])
    assert second.status_code == 200
    assert refusal(ask("and?", previous_response_id=first["id"], tools=[TOOL])) == (400, "input", None)
    assert refusal(ask([output], tools=[TOOL])) == (400, "input", None)


def test_an_item_can_be_referred_to(ask: Ask, server: Any) -> None:
    first = ask("one").json()
    (item,) = first["output"]
    second = ask([{"id": item["id"]}, {"role": "user", "content": "two"}]).json()
    listed = server.client.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
    assert listed[1] == item
    missing = ask([{"type": "item_reference", "id": "msg_none"}])
    assert refusal(missing) == (400, "input[0].id", None)


def test_what_is_not_to_be_kept_is_not(ask: Ask, server: Any) -> None:
    body = ask("secret", store=False).json()
    assert not body["store"]
    assert server.client.get(f"/v1/responses/{body['id']}").status_code == 404
    assert refusal(ask("more", previous_response_id=body["id"])) == (
        400,
        "previous_response_id",
        "previous_response_not_found",
    )


def test_a_response_is_forgotten_with_its_items(ask: Ask, server: Any) -> None:
    first = ask("one").json()
    second = ask("two", previous_response_id=first["id"]).json()
    url = f"/v1/responses/{first['id']}"
    assert server.client.delete(url).json() == {"id": first["id"], "object": "response", "deleted": True}
    for response in (server.client.get(url), server.client.delete(url), server.client.get(f"{url}/input_items")):
        assert refusal(response) == (404, "response_id", None)
        assert first["id"] in response.json()["error"]["message"]
    gone_on = ask("three", previous_response_id=second["id"])
    assert refusal(gone_on)[2] == "previous_response_not_found"
    assert first["id"] in gone_on.json()["error"]["message"]


def test_input_items_come_in_pages(ask: Ask, server: Any) -> None:
    body = ask([{"role": "user", "content": str(number), "id": f"msg_{number}"} for number in range(5)]).json()
    url = f"/v1/responses/{body['id']}/input_items"

    def page(**query: object) -> tuple[list[str], bool]:
        found = server.client.get(url, params=query).json()
        assert found["object"] == "list"
        ids = [item["id"] for item in found["data"]]
        assert (found["first_id"], found["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        return [one.removeprefix("msg_") for one in ids], found["has_more"]

    assert page() == (["4", "3", "2", "1", "0"], False)
    assert page(order="asc", limit=2) == (["0", "1"], True)
    assert page(order="asc", limit=2, after="msg_1") == (["2", "3"], True)
    assert page(order="asc", limit=2, after="msg_3") == (["4"], False)
    assert page(limit=5, after="msg_0") == ([], False)
    for query in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"after": "msg_9"}):
        (name,) = query
        assert refusal(server.client.get(url, params=query)) == (400, name, None)


def test_there_is_nothing_to_cancel_and_no_stream_of_the_past(ask: Ask, server: Any) -> None:
    body = ask("one").json()
    url = f"/v1/responses/{body['id']}"
    cancelled = server.client.post(f"{url}/cancel")
    assert refusal(cancelled) == (400, "response_id", None)
    assert "background" in cancelled.json()["error"]["message"]
    assert refusal(server.client.post("/v1/responses/resp_none/cancel"))[0] == 404
    assert refusal(server.client.get(url, params={"stream": "true"})) == (400, "stream", "unsupported_parameter")
    assert server.client.get(url, params={"stream": "false"}).json() == body


def test_responses_survive_a_restart(start_server: Callable[..., Any]) -> None:
    first = start_server()
    made = first.client.post("/v1/responses", json={"model": "echo", "input": "one"}).json()
    first.stop()
    second = start_server()
    assert second.client.get(f"/v1/responses/{made['id']}").json() == made
    more = {"model": "echo", "input": "two", "previous_response_id": made["id"]}
    assert second.client.post("/v1/responses", json=more).status_code == 200


def test_a_server_that_keeps_nothing_says_so(start_server: Callable[..., Any]) -> None:
    server = start_server({"response_store_size": 0})

    def ask(**fields: object) -> httpx.Response:
        response: httpx.Response = server.client.post("/v1/responses", json={"model": "echo", "input": "a"} | fields)
        return response

    body = ask().json()
    assert not body["store"]
    assert ask(store=False).status_code == 200
    assert refusal(ask(store=True)) == (400, "store", "unsupported_parameter")
    assert refusal(ask(previous_response_id=body["id"])) == (400, "previous_response_id", "unsupported_parameter")
    assert "response_store_size" in ask(store=True).json()["error"]["message"]
    assert server.client.get(f"/v1/responses/{body['id']}").status_code == 404
    assert not server.parts.settings.response_store_path.exists()


def test_a_store_that_fails_costs_no_answer(start_server: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    server.parts.settings.response_store_path.mkdir(parents=True)
    body = server.client.post("/v1/responses", json={"model": "echo", "input": "a"}).json()
    assert (texts(body), body["store"]) == (["a"], False)
    assert any("responses.db" in record.getMessage() for record in caplog.records)
    broken = server.client.post("/v1/responses", json={"model": "echo", "input": "a", "previous_response_id": "resp_1"})
    assert refusal(broken)[0] == 507


def test_a_client_that_leaves_keeps_nothing(start_server: Callable[..., Any], gate: Gate) -> None:
    server = start_server(gate=gate)
    gate.release(3)
    asked = {"model": "echo", "input": "hello", "stream": True}
    with server.client.stream("POST", "/v1/responses", json=asked) as response:
        lines = response.iter_lines()
        created = json.loads([next(lines), next(lines)][1].removeprefix("data: "))

    async def left() -> None:
        while server.parts.pool.loaded()[0].num_leases:  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0)

    server.run(asyncio.wait_for(left(), 10))
    gate.open()
    assert server.client.get(f"/v1/responses/{created['response']['id']}").status_code == 404


class FailAfter:
    """Lets a number of steps through, then fails all."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._lock = threading.Lock()

    def __call__(self, batch: Batch) -> None:
        with self._lock:
            self.num_steps -= 1
            if self.num_steps < 0:
                raise RuntimeFailed("the device is gone")


def test_a_late_failure_is_the_last_event(start_server: Callable[..., Any]) -> None:
    server = start_server(gate=FailAfter(3))
    asked = {"model": "echo", "input": "hello", "stream": True}
    events = events_of(server.client.post("/v1/responses", json=asked))
    assert events[0]["type"] == "response.created"
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert not last["response"]["store"]
    assert server.client.get(f"/v1/responses/{last['response']['id']}").status_code == 404


def test_an_early_failure_has_its_own_status(start_server: Callable[..., Any]) -> None:
    server = start_server(gate=FailAfter(0))
    asked = {"model": "echo", "input": "hello", "stream": True}
    assert refusal(server.client.post("/v1/responses", json=asked))[0] == 500


def test_what_does_not_fit_is_refused_before_anything_is_sent(ask: Ask) -> None:
    for stream in (True, False):
        response = ask("x" * 600, stream=stream)
        assert refusal(response) == (400, "input", "context_length_exceeded")


def test_a_conversation_that_is_too_long_loses_its_oldest_exchanges_if_asked_to(ask: Ask, server: Any) -> None:
    old = [{"role": role, "content": "x" * 60} for _ in range(5) for role in ("user", "assistant")]
    items = [{"role": "developer", "content": "be kind"}, *old, {"role": "user", "content": "last"}]
    assert refusal(ask(items))[2] == "context_length_exceeded"
    response = ask(items, truncation="auto", max_output_tokens=150)
    body = response.json()
    assert (texts(body), body["truncation"]) == (["last"], "auto")
    dropped = int(response.headers["x-vmm-dropped-messages"])
    assert dropped in range(2, 10, 2)
    rest = ask([items[0], *items[1 + dropped :]]).json()
    assert body["usage"]["input_tokens"] == rest["usage"]["input_tokens"] <= 512 - 150
    assert len(server.client.get(f"/v1/responses/{body['id']}/input_items").json()["data"]) == len(items)
    streamed = ask(items, truncation="auto", max_output_tokens=150, stream=True)
    assert streamed.headers["x-vmm-dropped-messages"] == str(dropped)
    assert "x-vmm-dropped-messages" not in ask("short", truncation="auto").headers
    assert refusal(ask("x" * 600, truncation="auto"))[2] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"model": "nobody"}, (404, "model", "model_not_found")),
        ({"input": None}, (400, "input", None)),
        ({"input": []}, (400, "input", None)),
        ({"background": True}, (400, "background", "unsupported_parameter")),
        ({"previous_response_id": "resp_none"}, (400, "previous_response_id", "previous_response_not_found")),
        ({"tools": [{"type": "web_search"}]}, (400, "tools[0].type", "unsupported_parameter")),
        ({"tools": [TOOL | {"parameters": {"not": {}}, "strict": True}]}, (400, "tools[0].parameters", None)),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            (400, "text.format.schema", None),
        ),
        ({"model": "echo", "reasoning": {"effort": "high"}}, (400, "reasoning.effort", None)),
    ],
    ids=str,
)
def test_bad_input_is_named(ask: Ask, fields: dict[str, object], answer: tuple[int, str, str | None]) -> None:
    status, param, code = refusal(ask(**fields))
    assert (status, param) == answer[:2]
    assert answer[2] is None or code == answer[2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"conversation": "c"}, "conversation"),
        ({"personality": "friendly"}, "personality"),
    ],
    ids=str,
)
def test_bad_input_to_count_is_named(server: Any, fields: dict[str, object], param: str) -> None:
    asked = {"model": "clever", "input": "a"} | fields
    assert refusal(server.client.post("/v1/responses/input_tokens", json=asked))[:2] == (400, param)
