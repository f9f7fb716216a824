"""Simon Willison's `llm` with its plugin llm-ollama, which finds the server by OLLAMA_HOST and nothing else."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel


@pytest.fixture(scope="module")
def environment(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The address, and a folder for what `llm` writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", base_url)
        patch.setenv("LLM_USER_PATH", str(tmp_path_factory.mktemp("llm")))
        yield


@pytest.fixture
def llm(environment: None) -> Any:
    """The library; it reads its folder when it is imported."""
    return importlib.import_module("llm")


@pytest.fixture
def scripted_model(llm: Any, scripted: str) -> Any:
    return llm.get_model(scripted)


def test_the_servers_models_are_found_by_what_they_can(llm: Any, scripted: str, embedding_model: str) -> None:
    text = {name for found in llm.get_models_with_aliases() for name in (found.model.model_id, *found.aliases)}
    assert {f"{scripted}:latest", scripted, "smollm2:135m"} <= text
    assert not any(name.startswith(embedding_model) for name in text), "it has no completion"
    assert llm.get_model(scripted).supports_tools


def test_a_prompt_is_answered(scripted_model: Any) -> None:
    reply = scripted_model.prompt("Say this.", system="Be kind.", stream=False)
    assert reply.text() == "Say this."
    assert reply.usage().output == len("Say this.") + 1


def test_a_stream_comes_in_pieces(scripted_model: Any) -> None:
    pieces = list(scripted_model.prompt("Say this.", stream=True))
    assert "".join(pieces) == "Say this."
    assert len(pieces) > 1


def test_an_asynchronous_model_answers_too(llm: Any, scripted: str) -> None:
    async def ask() -> str:
        return await llm.get_async_model(scripted).prompt("Say this.").text()

    assert asyncio.run(ask()) == "Say this."


def test_a_conversation_carries_what_was_said(scripted_model: Any) -> None:
    conversation = scripted_model.conversation()
    first = conversation.prompt("Say this.")
    first.text()
    second = conversation.prompt("And that.")
    assert second.text() == "And that."
    assert second.usage().input > first.usage().input


def test_a_tool_is_called_and_its_result_answered(scripted_model: Any) -> None:
    asked: list[str] = []

    def get_weather(location: str) -> str:
        """The weather at a place, now."""
        asked.append(location)
        return "sunny"

    assert scripted_model.chain("How is the weather in Paris?", tools=[get_weather]).text() == "It is sunny in Paris."
    assert asked == ["Paris"]


def test_a_schema_is_kept(scripted_model: Any) -> None:
    class Person(BaseModel):
        name: str
        year: int

    reply = scripted_model.prompt("Where is Ada?", schema=Person)
    assert Person.model_validate_json(reply.text()).name == "Ada Lovelace"


def test_options_are_passed_on(llm: Any, model: str) -> None:
    reply = llm.get_model(model).prompt("Why is the sky blue?", num_predict=3, temperature=0, seed=1)
    assert reply.text()
    assert reply.usage().output == 3


def test_texts_become_vectors(llm: Any, embedding_model: str) -> None:
    assert len(llm.get_embedding_model(embedding_model).embed("A cat sits on the mat.")) == 384


def test_the_command_line_answers(environment: None, scripted: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm", "-m", scripted, "Where is Ada?", "--schema", "name, city", "--no-log"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert json.loads(done.stdout).items() >= {"name": "Ada Lovelace", "city": "London"}.items()
