"""Ollama's API by curl, in every form of request that its documentation has (docs/api.md of ollama/ollama): `-d` alone.

Which fields an answer has is from there too, and where the two differ from what its server sends.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

COUNTS = {"prompt_eval_count", "eval_count"}
DURATIONS = {"total_duration", "prompt_eval_duration", "eval_duration"}
"""And `load_duration`, which is left out where it is 0."""
ANSWER = {"model", "created_at", "done"}
END = {"done_reason", *COUNTS, *DURATIONS}
GREEDY = {"temperature": 0, "num_predict": 16}
EVERY_OPTION = {
    "num_keep": 5,
    "seed": 42,
    "num_predict": 8,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 0.7,
    "repeat_last_n": 33,
    "temperature": 0.8,
    "repeat_penalty": 1.2,
    "presence_penalty": 1.5,
    "frequency_penalty": 1.0,
    "mirostat": 1,
    "mirostat_tau": 0.8,
    "mirostat_eta": 0.6,
    "penalize_newline": True,
    "stop": ["\n", "user:"],
    "numa": False,
    "num_ctx": 1024,
    "num_batch": 2,
    "num_gpu": 1,
    "main_gpu": 0,
    "low_vram": False,
    "vocab_only": False,
    "use_mmap": True,
    "use_mlock": False,
    "num_thread": 8,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "The location, e.g. San Francisco, CA"}},
            "required": ["location"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["name"],
}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

Ask = Callable[..., tuple[int, list[Any]]]


def curl(*arguments: str) -> tuple[int, str]:
    """Status and body."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture
def ask(base_url: str) -> Ask:
    """`curl http://…/api/chat -d '{…}'`: the status and the lines of the answer."""

    def ask(path: str, body: dict[str, Any] | None = None, *flags: str) -> tuple[int, list[Any]]:
        data = [] if body is None else ["-d", json.dumps(body)]
        status, answer = curl(*flags, f"{base_url}{path}", *data)
        return status, [json.loads(line) for line in answer.splitlines()]

    return ask


def whole(reply: tuple[int, list[Any]]) -> Any:
    """The one object of an answer that is not streamed."""
    status, (answer,) = reply
    assert status == 200, answer
    return answer


def streamed(reply: tuple[int, list[Any]], more: set[str]) -> tuple[str, Any]:
    """The text of an answer's lines, and the last of them; `more` is what each line has beside the usual."""
    status, lines = reply
    assert status == 200, lines
    assert all(set(line) >= ANSWER | more and not line["done"] for line in lines[:-1])
    assert set(lines[-1]) >= ANSWER | more | END
    assert lines[-1]["done"]
    return "".join(line["message"]["content"] if "message" in line else line["response"] for line in lines), lines[-1]


class TestGenerate:
    """POST /api/generate."""

    def test_streaming(self, ask: Ask, scripted: str) -> None:
        text, last = streamed(ask("/api/generate", {"model": scripted, "prompt": "Hello"}), {"response"})
        assert text == "Hello"
        assert all(type(number) is int for number in last["context"])

    def test_no_streaming(self, ask: Ask, scripted: str) -> None:
        answer = whole(ask("/api/generate", {"model": scripted, "prompt": "Hello", "stream": False}))
        assert answer["response"] == "Hello"
        assert set(answer) >= ANSWER | END | {"context"}
        assert answer["total_duration"] >= answer["prompt_eval_duration"] + answer["eval_duration"]

    def test_suffix(self, ask: Ask, scripted: str) -> None:
        body = {"model": scripted, "prompt": "def f():", "suffix": "    return a", "options": GREEDY, "stream": False}
        status, (answer,) = ask("/api/generate", body)
        assert (status, "insert" in answer["error"]) == (400, True), "neither model has fill-in-the-middle tokens"

    def test_structured_outputs(self, ask: Ask, scripted: str) -> None:
        body = {"model": scripted, "prompt": "Where is Ada?", "stream": False, "format": PERSON}
        answer = whole(ask("/api/generate", body, "-X", "POST", "-H", "Content-Type: application/json"))
        assert json.loads(answer["response"])["name"] == "Ada Lovelace"

    def test_structured_outputs_have_the_listed_properties_alone(self, ask: Ask, model: str) -> None:
        listed = {"age": {"type": "integer"}, "available": {"type": "boolean"}}
        schema = {"type": "object", "properties": listed, "required": ["age", "available"]}
        prompt = "Ollama is 22 years old and is busy saving the world. Respond using JSON"
        body = {"model": model, "prompt": prompt, "stream": False, "format": schema, "options": {"temperature": 0}}
        assert json.loads(whole(ask("/api/generate", body))["response"]) == {"age": 22, "available": True}

    def test_json_mode(self, ask: Ask, scripted: str) -> None:
        body = {"model": scripted, "prompt": "Where is Ada?", "format": "json", "stream": False}
        assert isinstance(json.loads(whole(ask("/api/generate", body))["response"]), dict)

    def test_images(self, ask: Ask, model: str) -> None:
        body = {"model": model, "prompt": "What is in this picture?", "stream": False, "images": [PICTURE]}
        status, (answer,) = ask("/api/generate", body)
        assert (status, answer["error"]) == (400, f'"{model}" does not support vision')

    def test_raw_mode(self, ask: Ask, model: str) -> None:
        body = {"model": model, "prompt": "The capital of France is", "raw": True, "stream": False, "options": GREEDY}
        answer = whole(ask("/api/generate", body))
        assert "Paris" in answer["response"]
        assert "context" not in answer

    def test_reproducible_outputs(self, ask: Ask, model: str) -> None:
        body = {"model": model, "prompt": "Why is the sky blue?", "options": {"seed": 123, "num_predict": 16}}
        ask("/api/generate", body)  # what is computed at once moves the last digits of a logit: so with a cached prompt
        texts = {streamed(ask("/api/generate", body), {"response"})[0] for _ in range(2)}
        assert len(texts) == 1

    def test_every_option(self, ask: Ask, model: str) -> None:
        body = {"model": model, "prompt": "Why is the sky blue?", "stream": False, "options": EVERY_OPTION}
        assert whole(ask("/api/generate", body))["eval_count"] <= 8

    def test_load_and_unload(self, ask: Ask, scripted: str) -> None:
        for more, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
            answer = whole(ask("/api/generate", {"model": scripted, **more}))
            assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, reason)


class TestChat:
    """POST /api/chat."""

    def test_streaming(self, ask: Ask, scripted: str) -> None:
        body = {"model": scripted, "messages": [{"role": "user", "content": "Hello"}]}
        text, last = streamed(ask("/api/chat", body), {"message"})
        assert text == "Hello"
        assert last["message"]["role"] == "assistant"
        assert "context" not in last

    def test_no_streaming(self, ask: Ask, scripted: str) -> None:
        body = {"model": scripted, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
        answer = whole(ask("/api/chat", body))
        assert answer["message"] == {"role": "assistant", "content": "Hello"}
        assert set(answer) >= ANSWER | END

    def test_structured_outputs(self, ask: Ask, scripted: str) -> None:
        messages = [{"role": "user", "content": "Where is Ada?"}]
        body = {
            "model": scripted,
            "messages": messages,
            "stream": False,
            "format": PERSON,
            "options": {"temperature": 0},
        }
        answer = whole(ask("/api/chat", body, "-X", "POST", "-H", "Content-Type: application/json"))
        assert json.loads(answer["message"]["content"])["name"] == "Ada Lovelace"

    def test_history(self, ask: Ask, scripted: str) -> None:
        messages = [
            {"role": "user", "content": "why is the sky blue?"},
            {"role": "assistant", "content": "due to rayleigh scattering."},
            {"role": "user", "content": "Hello"},
        ]
        assert streamed(ask("/api/chat", {"model": scripted, "messages": messages}), {"message"})[0] == "Hello"

    def test_images(self, ask: Ask, model: str) -> None:
        messages = [{"role": "user", "content": "what is in this image?", "images": [PICTURE]}]
        status, (answer,) = ask("/api/chat", {"model": model, "messages": messages})
        assert (status, answer["error"]) == (400, f'"{model}" does not support vision')

    def test_reproducible_outputs(self, ask: Ask, model: str) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello!"}],
            "options": {"seed": 101, "temperature": 0, "num_predict": 16},
        }
        assert len({streamed(ask("/api/chat", body), {"message"})[0] for _ in range(2)}) == 1

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools(self, ask: Ask, scripted: str, stream: bool) -> None:
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
        body = {"model": scripted, "messages": messages, "stream": stream, "tools": [WEATHER]}
        status, lines = ask("/api/chat", body)
        assert status == 200
        (call,) = [call for line in lines for call in line["message"].get("tool_calls", ())]
        assert call["function"]["name"] == "get_weather"
        assert call["function"]["arguments"] == {"location": "Paris"}
        assert lines[-1]["done_reason"] == "stop"
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"function": call["function"]}]},
            {"role": "tool", "content": "sunny", "tool_name": "get_weather"},
        ]
        assert whole(ask("/api/chat", body | {"stream": False}))["message"]["content"] == "It is sunny in Paris."

    def test_thinking(self, ask: Ask, scripted: str) -> None:
        messages = [{"role": "user", "content": "What is 17 times 3?"}]
        answer = whole(ask("/api/chat", {"model": scripted, "messages": messages, "think": True, "stream": False}))
        assert "Ten times three" in answer["message"]["thinking"]

    def test_load_and_unload(self, ask: Ask, scripted: str) -> None:
        for more, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
            answer = whole(ask("/api/chat", {"model": scripted, "messages": [], **more}))
            assert answer["message"] == {"role": "assistant", "content": ""}
            assert (answer["done"], answer["done_reason"]) == (True, reason)


class TestEmbed:
    """POST /api/embed and /api/embeddings."""

    @pytest.mark.parametrize(
        ("given", "count"), [("Why is the sky blue?", 1), (["Why is the sky blue?", "Why is the grass green?"], 2)]
    )
    def test_embed(self, ask: Ask, embedding_model: str, given: object, count: int) -> None:
        answer = whole(ask("/api/embed", {"model": embedding_model, "input": given}))
        assert set(answer) >= {"model", "embeddings", "total_duration", "prompt_eval_count"}
        assert [len(vector) for vector in answer["embeddings"]] == [384] * count

    def test_embeddings(self, ask: Ask, embedding_model: str) -> None:
        answer = whole(
            ask("/api/embeddings", {"model": embedding_model, "prompt": "Here is an article about llamas..."})
        )
        assert len(answer["embedding"]) == 384


class TestModels:
    """The routes on models."""

    @pytest.fixture
    def mario(self, ask: Ask, scripted: str) -> Iterator[str]:
        body = {"model": "compat/mario", "from": scripted, "system": "You are Mario from Super Mario Bros."}
        status, lines = ask("/api/create", body)
        assert status == 200, lines
        assert lines[-1] == {"status": "success"}
        yield "compat/mario"
        ask("/api/delete", {"model": "compat/mario"}, "-X", "DELETE")

    def test_version(self, ask: Ask) -> None:
        assert whole(ask("/api/version"))["version"].count(".") == 2

    def test_list(self, ask: Ask) -> None:
        models = whole(ask("/api/tags"))["models"]
        assert models
        for entry in models:
            assert set(entry) >= {"name", "model", "modified_at", "size", "digest", "details"}
            details = {"format", "family", "families", "parameter_size", "quantization_level"}
            assert set(entry["details"]) >= details
            assert len(entry["digest"]) == 64

    def test_show(self, ask: Ask, model: str) -> None:
        answer = whole(ask("/api/show", {"model": model}))
        fields = {"modelfile", "parameters", "template", "details", "model_info", "capabilities", "modified_at"}
        assert set(answer) >= fields
        assert answer["model_info"]["general.architecture"] == "llama"
        assert answer["model_info"]["llama.context_length"] == 8192
        assert whole(ask("/api/show", {"model": model, "verbose": True}))["details"] == answer["details"]

    def test_running(self, ask: Ask, scripted: str) -> None:
        ask("/api/generate", {"model": scripted})
        entry = next(entry for entry in whole(ask("/api/ps"))["models"] if entry["name"].startswith(f"{scripted}:"))
        fields = {"name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"}
        assert set(entry) >= fields

    def test_create_from_a_model(self, ask: Ask, mario: str) -> None:
        assert "You are Mario" in whole(ask("/api/show", {"model": mario}))["modelfile"]

    def test_create_from_a_file(self, ask: Ask, base_url: str, weights: Path) -> None:
        digest = f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
        assert curl("-T", str(weights), "-X", "POST", f"{base_url}/api/blobs/{digest}")[0] in (200, 201)
        assert curl("-I", f"{base_url}/api/blobs/{digest}")[0] == 200
        body = {"model": "compat/my-gguf", "files": {"test.gguf": digest}}
        status, lines = ask("/api/create", body)
        assert (status, lines[-1]) == (200, {"status": "success"})
        assert ask("/api/delete", {"model": "compat/my-gguf"}, "-X", "DELETE")[0] == 200

    def test_quantize_needs_weights_that_are_not(self, ask: Ask, model: str) -> None:
        """Ollama too quantises 16-bit weights alone."""
        body = {"model": "compat/quantized", "from": model, "quantize": "q4_K_M"}
        status, (*_, last) = ask("/api/create", body)
        assert "quantiz" in last["error"].lower()
        assert status in (200, 400)

    def test_blobs(self, base_url: str, tmp_path: Path) -> None:
        absent = "sha256:" + "0" * 64
        assert curl("-I", f"{base_url}/api/blobs/{absent}")[0] == 404
        file = tmp_path / "model.bin"
        file.write_bytes(b"not what was promised")
        status, body = curl("-T", str(file), "-X", "POST", f"{base_url}/api/blobs/{absent}")
        assert (status, "digest" in json.loads(body)["error"]) == (400, True)

    def test_copy_and_delete(self, ask: Ask, mario: str) -> None:
        assert ask("/api/copy", {"source": mario, "destination": "compat/backup"}) == (200, [])
        assert ask("/api/delete", {"model": "compat/backup"}, "-X", "DELETE") == (200, [])
        status, (answer,) = ask("/api/delete", {"model": "compat/backup"}, "-X", "DELETE")
        assert (status, answer["error"]) == (404, "model 'compat/backup' not found")

    @pytest.mark.parametrize("stream", [True, False])
    def test_pull(self, ask: Ask, model: str, stream: bool) -> None:
        status, lines = ask("/api/pull", {"model": model} if stream else {"model": model, "stream": False})
        assert (status, lines[-1]) == (200, {"status": "success"})
        assert lines[0]["status"] == ("pulling manifest" if stream else "success")

    def test_push(self, ask: Ask, base_url: str, mario: str) -> None:
        far = f"{urlsplit(base_url).netloc}/compat/pushed"
        assert ask("/api/copy", {"source": mario, "destination": far})[0] == 200
        status, lines = ask("/api/push", {"model": far, "insecure": True})
        assert (status, lines[0], lines[-1]) == (200, {"status": "retrieving manifest"}, {"status": "success"})
        for name in (far, "compat/pushed"):
            assert ask("/api/delete", {"model": name}, "-X", "DELETE")[0] == 200
