"""OpenAI's client with files and batches, as its own guide goes: upload, create, poll, download."""

import json
import time

import openai
import pytest

TIMEOUT_S = 120
OVER = ("completed", "failed", "expired", "cancelled")


def line(name: str, url: str, body: dict[str, object]) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def begin(client: openai.OpenAI, content: bytes, endpoint: str) -> openai.types.Batch:
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert client.files.wait_for_processing(file.id).status == "processed"
    return client.batches.create(  # type: ignore[call-overload, no-any-return]
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"test": "compat"}
    )


def ended(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    until = time.monotonic() + TIMEOUT_S
    while (found := client.batches.retrieve(batch.id)).status not in OVER:
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def test_chats_in_a_batch(client: openai.OpenAI, model: str) -> None:
    url = "/v1/chat/completions"
    questions = {f"q{index}": f"What comes after {index}?" for index in range(12)}
    content = b"".join(
        line(name, url, {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8})
        for name, text in questions.items()
    )
    batch = ended(client, begin(client, content, url))
    assert (batch.status, batch.metadata, batch.model) == ("completed", {"test": "compat"}, model)
    assert batch.request_counts == openai.types.BatchRequestCounts(completed=12, failed=0, total=12)
    assert batch.output_file_id is not None
    answers = [json.loads(each) for each in client.files.content(batch.output_file_id).text.splitlines()]
    assert {one["custom_id"] for one in answers} == questions.keys()
    num_tokens = 0
    for one in answers:
        completion = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
        assert completion.choices[0].message.content
        assert completion.usage is not None
        num_tokens += completion.usage.total_tokens
    assert batch.usage is not None
    assert batch.usage.total_tokens == num_tokens
    for file_id in (batch.input_file_id, batch.output_file_id):
        assert client.files.delete(file_id).deleted


def test_embeddings_in_a_batch(client: openai.OpenAI, embedding_model: str) -> None:
    url = "/v1/embeddings"
    content = b"".join(
        line(f"t{index}", url, {"model": embedding_model, "input": f"text {index}"}) for index in range(5)
    )
    batch = ended(client, begin(client, content, url))
    answers = [json.loads(each) for each in client.files.content(batch.output_file_id or "").text.splitlines()]
    assert [len(one["response"]["body"]["data"]) for one in answers] == [1] * 5


def test_a_wrong_line_is_told_by_its_number(client: openai.OpenAI, model: str) -> None:
    url = "/v1/completions"
    content = line("a", url, {"model": model, "prompt": "x"}) + b"oops\n"
    batch = ended(client, begin(client, content, url))
    assert batch.status == "failed"
    assert batch.errors is not None
    (error,) = batch.errors.data or []
    assert (error.line, error.code) == (2, "invalid_json_line")
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)
    assert batch.id in [one.id for one in client.batches.list(limit=3)]
