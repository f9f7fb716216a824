"""Files and batches over HTTP, as OpenAI's client speaks to them; a server that is killed in the middle of one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.api.conftest import LiveServer, StartServer, install_echo

from vmm_adapters.echo import Gate
from vmm_server.models.store import Store

CHAT = "/v1/chat/completions"
PAGE = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
TIMEOUT_S = 60


def line(name: str, **body: object) -> str:
    said = {"messages": [{"role": "user", "content": f"I am {name}"}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "echo", **said, **body}})


def jsonl(count: int) -> bytes:
    return "\n".join(line(f"line-{index}") for index in range(count)).encode()


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(live_server.url) as made:
        yield made


def begin(client: openai.OpenAI, content: bytes, **options: Any) -> Any:
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", **options)


def ended(client: openai.OpenAI, batch: Any) -> Any:
    until = time.monotonic() + TIMEOUT_S
    while (found := client.batches.retrieve(batch.id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        assert time.monotonic() < until, found
    return found


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()] if file_id else []


def test_a_batch_from_upload_to_download(client: openai.OpenAI) -> None:
    batch = begin(client, jsonl(30), metadata={"run": "nightly"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"run": "nightly"})
    over = ended(client, batch)
    assert (over.status, over.model, over.errors, over.error_file_id) == ("completed", "echo", None, None)
    counts = over.request_counts
    assert (counts.total, counts.completed, counts.failed) == (30, 30, 0)
    assert over.usage.total_tokens == over.usage.input_tokens + over.usage.output_tokens > 0
    output = lines_of(client, over.output_file_id)
    assert [one["custom_id"] for one in output] == [f"line-{index}" for index in range(30)]
    for one in output:
        answer = one["response"]
        assert (answer["status_code"], one["error"]) == (200, None)
        assert answer["body"]["choices"][0]["message"]["content"] == f"I am {one['custom_id']}"
        assert answer["request_id"].startswith("req-")
    assert over.id in [one.id for one in client.batches.list()]
    assert client.files.retrieve(over.output_file_id).purpose == "batch_output"


def test_errors_of_lines_are_those_of_the_route(client: openai.OpenAI) -> None:
    lines = [line("fine"), line("wrong", temperature="hot"), line("nobody", model="nobody"), line("urgent", priority=0)]
    over = ended(client, begin(client, "\n".join(lines).encode()))
    assert [one["custom_id"] for one in lines_of(client, over.output_file_id)] == ["fine"]
    errors = lines_of(client, over.error_file_id)
    said = [
        (one["custom_id"], one["response"]["status_code"], one["response"]["body"]["error"]["param"]) for one in errors
    ]
    assert said == [("wrong", 400, "temperature"), ("nobody", 404, "model"), ("urgent", 400, "priority")]


def test_other_routes_take_batches_too(client: openai.OpenAI) -> None:
    for endpoint, body in {"/v1/completions": {"prompt": "a"}, "/v1/responses": {"input": "a"}}.items():
        asked = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "echo", **body}}
        file = client.files.create(file=("a.jsonl", json.dumps(asked).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[call-overload]
        over = ended(client, batch)
        assert (over.status, over.request_counts.completed) == ("completed", 1)
        assert over.usage.output_tokens > 0


def test_a_wrong_file_fails_with_its_lines(client: openai.OpenAI) -> None:
    over = ended(client, begin(client, f"{line('a')}\nnonsense\n{line('a')}".encode()))
    assert over.status == "failed"
    assert [(one.line, one.code, one.param) for one in over.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
    ]


def test_what_a_batch_is_asked_for_is_checked(client: openai.OpenAI, live_server: LiveServer) -> None:
    file = client.files.create(file=("a.jsonl", jsonl(1)), purpose="user_data")
    asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for change, param, status in [
        ({}, "input_file_id", 400),
        ({"input_file_id": "file-nobody"}, "input_file_id", 404),
        ({"endpoint": "/v1/audio/speech"}, "endpoint", 400),
        ({"completion_window": "1h"}, "completion_window", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds", 400),
    ]:
        reply = live_server.client.post("/v1/batches", json=asked | change)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
    for path in ("/v1/batches/batch_nobody", "/v1/files/file-nobody", "/v1/files/file-nobody/content"):
        assert live_server.client.get(path).status_code == 404
    for path in ("/files", "/batches"):
        assert live_server.client.get(path).json()["object"] == "list"
    assert live_server.client.get("/v1/batches", params={"limit": "101"}).json()["error"]["param"] == "limit"
    assert live_server.client.get("/v1/files", params={"purpose": "x"}).json()["error"]["param"] == "purpose"


def test_files_as_the_client_has_them(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("dir/naïve.txt", b"\x00\xffabc" * 500_000),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.purpose, file.status) == (2_500_000, "naïve.txt", "user_data", "processed")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == b"\x00\xffabc" * 500_000
    assert next(iter(client.files.list(purpose="user_data", limit=1))) == file
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {"file": b"a"}, "purpose"),
        ({"purpose": "fun"}, {"file": b"a"}, "purpose"),
        ({"purpose": "batch"}, {"other": b"a"}, "file"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, {"file": b"a"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            {"file": b"a"},
            "expires_after.seconds",
        ),
    ],
)
def test_a_wrong_form_names_its_field(live_server: LiveServer, fields: Any, files: Any, param: str) -> None:
    reply = live_server.client.post("/v1/files", data=fields, files=files)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_store_that_is_full_is_a_507_and_keeps_nothing(start_server: StartServer) -> None:
    server = start_server({"file_store_size": 10_000})
    with client_of(server.url) as client:
        client.files.create(file=b"x" * 6000, purpose="user_data")
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=b"x" * 6000, purpose="user_data")
        assert caught.value.status_code == 507
        assert "file_store_size" in caught.value.body["hint"]  # type: ignore[index,call-overload]
        assert len(list(client.files.list())) == len(list((server.parts.settings.files_dir).iterdir())) == 1


def test_a_server_that_keeps_no_files_says_so(start_server: StartServer) -> None:
    server = start_server({"file_store_size": 0})
    with client_of(server.url) as client, pytest.raises(openai.BadRequestError, match="file_store_size is 0"):
        client.files.create(file=b"x", purpose="batch")
    assert not server.parts.settings.files_dir.exists()


def test_a_batch_is_cancelled_in_the_middle(start_server: StartServer, gate: Gate) -> None:
    server = start_server({"max_sequences": 4}, gate=gate)
    with client_of(server.url) as client:
        batch = begin(client, jsonl(20))
        gate.wait_entered()
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        gate.open()
        over = ended(client, batch)
        assert over.status == "cancelled"
        errors = lines_of(client, over.error_file_id)
        names = [one["custom_id"] for one in [*lines_of(client, over.output_file_id), *errors]]
        assert sorted(names) == sorted(f"line-{index}" for index in range(20))
        with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
            client.batches.cancel(batch.id)


def test_files_and_batches_belong_to_their_key_and_end_with_it(start_server: StartServer, gate: Gate) -> None:
    server = start_server({"max_sequences": 2}, gate=gate)
    secrets = {name: server.parts.keys.create(name, scopes=["inference"])[1] for name in ("alice", "bob")}
    with client_of(server.url, secrets["alice"]) as alice, client_of(server.url, secrets["bob"]) as bob:
        batch = begin(alice, jsonl(20))
        for ask in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.retrieve(batch.input_file_id),
            lambda: bob.files.content(batch.input_file_id),
            lambda: bob.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert list(bob.batches.list()) == list(bob.files.list()) == []
        gate.wait_entered()
        server.parts.keys.revoke("alice")
        gate.open()
        found = server.run(server.parts.job_store.get(batch.id))
        until = time.monotonic() + TIMEOUT_S
        while found.is_live and time.monotonic() < until:
            found = server.run(server.parts.job_store.get(batch.id))
        assert found.status == "failed"
        assert json.loads(found.errors or b"")[0]["code"] == "invalid_api_key"
        assert found.num_completed < 20


class Process:
    """A `vmm serve` of the echo model in a process of its own."""

    def __init__(self, home: Path) -> None:
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("VMM_", "OLLAMA_"))}
        command = [sys.executable, "-m", "vmm_server", "serve", "--port", "0", "--home", str(home)]
        flags = ["--default-model", "echo", "--calibrate", "off", "--max-sequences", "4"]
        self.process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        found = re.search(r"https?://[^ ,]+", self.process.stdout.readline())
        assert found
        self.url = found.group()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0

    def wait(self) -> int:
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)


def test_a_server_that_goes_down_in_the_middle_answers_every_line_once(tmp_path: Path) -> None:
    count, home = 200, tmp_path / "home"
    install_echo(Store(home / "models"), tmp_path / "echo")
    server = Process(home)
    with client_of(server.url) as client:
        batch = begin(client, jsonl(count))
        done = [0]
        for share, stop in ((4, Process.kill), (2, Process.terminate)):
            while done[-1] < count // share:
                done.append(client.batches.retrieve(batch.id).request_counts.completed)
            stop(server)
            server = Process(home)
            client.base_url = httpx.URL(f"{server.url}/v1/")
        over = ended(client, batch)
        assert max(done) < count
        assert done == sorted(done)
        assert (over.status, over.request_counts.completed, over.error_file_id) == ("completed", count, None)
        output = lines_of(client, over.output_file_id)
        assert [one["custom_id"] for one in output] == [f"line-{index}" for index in range(count)]
        assert len({one["id"] for one in output}) == count
        assert all("I am" in one["response"]["body"]["choices"][0]["message"]["content"] for one in output)
    server.terminate()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_page_runs_as_it_stands(example_server: LiveServer, tmp_path: Path) -> None:
    blocks = FENCED.findall(PAGE)
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "questions.jsonl").write_text(next(code for language, code in blocks if language == "json"))
    example_server.client.post("/api/generate", json={"model": "smollm2:135m"}).raise_for_status()
    ran = [code for language, code in blocks if language in ("bash", "python")]
    assert len(ran) == 2
    for code in ran:
        code = code.replace("localhost:11434", f"127.0.0.1:{example_server.port}").replace("time.sleep(1)", "pass")
        code = code.replace("sleep 1", ":")
        command = [sys.executable, "-c", code] if code.startswith("import") else ["bash", "-euc", code]
        environment = os.environ | {"NO_PROXY": "*", "no_proxy": "*"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]
        assert [one["custom_id"] for one in answers] == ["sky", "sea"]
        assert {one["response"]["status_code"] for one in answers} == {200}
