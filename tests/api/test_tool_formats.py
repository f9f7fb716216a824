"""A call in every family's own words, through the whole server: the stream says what the plain answer says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from vmm_adapters.echo import CHAT_TEMPLATE, write_echo_model
from vmm_server.models.store import Store
from vmm_server.prompt.formats.detect import TOOL_FORMATS

ANSWERS = {
    "hermes": 'Well.\n<tool_call>\n{"name": "now", "arguments": {"a": "é", "b": [1]}}\n</tool_call>',
    "llama3_json": 'Well.\n{"name": "now", "parameters": {"a": "é", "b": [1]}}',
    "pythonic": "Well.\n[now(a='é', b=[1])]",
    "mistral": 'Well.[TOOL_CALLS]now[ARGS]{"a": "é", "b": [1]}',
    "gemma": "Well.<start_function_call>call:now{a:<escape>é<escape>,b:[1]}<end_function_call>",
    "gemma4": 'Well.<|tool_call>call:now{a:<|"|>é<|"|>,b:[1]}<tool_call|>',
    "phi": 'Well.<|tool_call|>[{"name": "now", "arguments": {"a": "é", "b": [1]}}]<|/tool_call|>',
    "granite": 'Well.<|tool_call|>[{"name": "now", "arguments": {"a": "é", "b": [1]}}]',
    "qwen3_coder": (
        "Well.\n<tool_call>\n<function=now>\n<parameter=a>\né\n</parameter>\n<parameter=b>\n[1]\n</parameter>\n"
        "</function>\n</tool_call>"
    ),
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": SCHEMA}}]
TELLS = "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}<|end|>{% endfor %}"


def install(server: Any, folder: Path, format: str) -> None:
    write_echo_model(folder)
    (folder / "chat_template.jinja").write_text(TELLS + CHAT_TEMPLATE)
    changes: dict[str, Any] = {"name": f"{format}:latest", "aliases": (), "folder": folder, "tool_format": format}
    changes |= {"weights": "", "digest": format.encode().hex().ljust(64, "0"), "capabilities": ("completion", "tools")}
    Store(server.parts.settings.store_dir).install(replace(server.parts.registry.resolve("echo"), **changes))


def streamed(client: httpx.Client, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]], str | None]:
    """(content, calls, finish_reason), put together from chunks as clients do."""
    content, calls, reason = "", list[dict[str, Any]](), None
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            (choice,) = json.loads(line[6:])["choices"]
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                if call["index"] == len(calls):
                    calls.append(call["function"])
                else:
                    calls[call["index"]]["arguments"] += call["function"]["arguments"]
            reason = choice["finish_reason"]
    return content, calls, reason


def test_every_family_is_streamed_as_it_is_answered(start_server: Any, tmp_path: Path) -> None:
    assert ANSWERS.keys() == TOOL_FORMATS.keys()
    server = start_server()
    for format, said in ANSWERS.items():
        install(server, tmp_path / format, format)
        body = {"model": format, "messages": [{"role": "user", "content": said}], "tools": TOOLS, "keep_alive": 0}
        response = server.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert choice["message"]["content"] == "Well."
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("now", {"a": "é", "b": [1]})]
        assert choice["finish_reason"] == "tool_calls"
        assert streamed(server.client, body) == ("Well.", calls, "tool_calls")
