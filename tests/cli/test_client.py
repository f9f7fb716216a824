import json
from collections.abc import Callable

import httpx
import pytest

from vmm_server.cli.client import Client, server_url
from vmm_server.errors import ModelNotFound, VMMError
from vmm_server.models.pull import PullEvent
from vmm_server.settings import Settings


def client(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://127.0.0.1:11434", transport=httpx.MockTransport(answer))


def lines(*events: object) -> httpx.Response:
    return httpx.Response(200, text="".join(json.dumps(event) + "\n" for event in events))


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (None, "http://127.0.0.1:9999"),  # the settings listen on every address
        ("otherhost", "http://otherhost:11434"),
        ("otherhost:80", "http://otherhost:80"),
        ("https://otherhost", "https://otherhost:443"),
        ("https://otherhost/proxied", "https://otherhost:443/proxied"),
        (":5000", "http://127.0.0.1:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("::", "http://[::1]:11434"),
    ],
)
def test_the_url_follows_flag_then_settings(address: str | None, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert server_url(address, Settings(host="0.0.0.0", port=9999)) == url


def test_https_in_the_variable_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMM_HOST", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "https://example.test")
    assert server_url(None, Settings(host="example.test", port=443)) == "https://example.test:443"


def test_the_path_in_the_variable_is_where_the_routes_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMM_HOST", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "http://example.test/proxied")
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200)

    with Client(server_url(None, Settings()), transport=httpx.MockTransport(answer)) as there:
        assert there.answers()
    assert asked == ["http://example.test/proxied/api/version"]


def test_the_model_that_a_server_misses_is_told_in_its_words() -> None:
    missing = {"error": "model 'x@v9' not found", "hint": "there is x@v1"}
    with client(lambda _: httpx.Response(404, json=missing)) as there, pytest.raises(VMMError) as caught:
        there.release("x", {"v9": 100})
    assert (caught.value.message, caught.value.hint) == ("model 'x@v9' not found", "there is x@v1")


def test_an_unknown_model_is_model_not_found_with_the_mend() -> None:
    with client(lambda _: httpx.Response(404, json={"error": "model 'x' not found"})) as there:
        with pytest.raises(ModelNotFound) as caught:
            there.show("x")
        assert caught.value.hint == "vmm pull x"
        with pytest.raises(ModelNotFound):
            list(there.chat("x", []))


def test_the_servers_own_hint_is_passed_on() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/show":
            return httpx.Response(404, json={"error": "model 'x' not found", "hint": "did you mean y?"})
        return lines({"error": "the disk is full", "hint": "free some space"})

    with client(answer) as there:
        with pytest.raises(ModelNotFound) as not_found:
            there.show("x")
        with pytest.raises(VMMError) as failed:
            list(there.pull("x"))
    assert (not_found.value.hint, failed.value.hint) == ("did you mean y?", "free some space")


def test_other_errors_keep_the_servers_words_and_its_wait() -> None:
    busy = httpx.Response(503, json={"error": "server busy"}, headers={"retry-after": "2"})
    with client(lambda _: busy) as there, pytest.raises(VMMError, match=r"^server busy$") as caught:
        list(there.chat("x", []))
    assert caught.value.hint == "try again in 2 s"


def test_an_answer_that_is_not_ours_names_address_and_status() -> None:
    with client(lambda _: httpx.Response(502, text="<html>")) as there, pytest.raises(VMMError, match=r"/api/ps.*502"):
        there.loaded()


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    there = client(lambda _: lines({"message": {"content": "a"}}, {"error": "out of memory"}))
    with there, pytest.raises(VMMError, match="out of memory"):
        list(there.chat("x", []))


def test_no_server_says_how_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client(refuse) as there:
        assert not there.answers()
        for ask in (there.loaded, lambda: there.unload("x"), lambda: list(there.pull("x"))):
            with pytest.raises(VMMError, match="no server answers at http") as caught:
                ask()
            assert caught.value.hint == "start one with: vmm serve"


def test_a_pull_yields_events() -> None:
    digest = "sha256:" + "a" * 64
    answer = lines({"status": "pulling", "digest": digest, "total": 9, "completed": 3}, {"status": "success"})
    with client(lambda _: answer) as there:
        assert list(there.pull("x")) == [PullEvent("pulling", digest, 9, 3), PullEvent("success")]


def test_chat_sends_what_it_was_given_and_streams() -> None:
    seen: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return lines({"message": {"content": "a"}}, {"message": {"content": ""}, "done": True})

    with client(answer) as there:
        events = list(there.chat("x", [{"role": "user", "content": "q"}], options={"seed": 1}))
    assert [event["message"]["content"] for event in events] == ["a", ""]
    messages = [{"role": "user", "content": "q"}]
    assert seen == [{"model": "x", "messages": messages, "options": {"seed": 1}, "stream": True}]
