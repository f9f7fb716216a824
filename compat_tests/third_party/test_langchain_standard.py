"""LangChain's standard integration tests (the package `langchain-tests`), on its clients for the three dialects.

The scripted model chats: it calls the suite's tools and tells its jokes (`../scripted/script.json`). Which tool, and
the form of its arguments and of structured output, is held by the server's grammars all the same.
"""

from typing import Literal

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

MAX_TOKENS = 400
"""Of an answer: the default model, asked by the tests that change the model, may talk without end."""
UsageDetails = dict[Literal["invoke", "stream"], list[str]]


class TestChatOpenAI(ChatModelIntegrationTests):
    """Chat completions."""

    @pytest.fixture(autouse=True)
    def _know(self, base_url: str, scripted: str, default_model: str) -> None:
        self.server, self.model_name, self.other_model = f"{base_url}/v1", scripted, default_model

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": self.model_name,
            "base_url": self.server,
            "api_key": "unused",
            "stream_usage": True,
            "max_tokens": MAX_TOKENS,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.other_model

    @property
    def supported_usage_metadata_details(self) -> UsageDetails:
        return {"invoke": ["reasoning_output", "cache_read_input"], "stream": ["reasoning_output", "cache_read_input"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._ask("What is 17 times 3?", stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        question = "Say this again: " + "la " * 200
        self._ask(question, stream=stream)
        reply = self._ask(question, stream=stream)
        assert reply.usage_metadata
        assert reply.usage_metadata["input_token_details"]["cache_read"] > 0
        return reply

    def _ask(self, question: str, *, stream: bool) -> AIMessage:
        chat = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return chat.invoke(question)
        chunks = list(chat.stream(question))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return whole


class TestChatOpenAIResponses(TestChatOpenAI):
    """The Responses API."""

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {**super().chat_model_params, "use_responses_api": True}


class TestChatAnthropic(TestChatOpenAI):
    """Anthropic's messages."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, object]:
        server = self.server.removesuffix("/v1")
        return {"model": self.model_name, "base_url": server, "api_key": "unused", "max_tokens": MAX_TOKENS}

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> UsageDetails:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestChatOllama(TestChatOpenAI):
    """Ollama's chat."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, object]:
        server = self.server.removesuffix("/v1")
        return {"model": self.model_name, "base_url": server, "reasoning": False, "num_predict": MAX_TOKENS}

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> UsageDetails:
        return {"invoke": [], "stream": []}


class TestOpenAIEmbeddings(EmbeddingsIntegrationTests):
    """As LangChain does it unless told otherwise: texts become token ids of OpenAI's vocabulary, by tiktoken."""

    @pytest.fixture(autouse=True)
    def _know(self, base_url: str, embedding_model: str) -> None:
        self.server, self.model_name = f"{base_url}/v1", embedding_model

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {"model": self.model_name, "base_url": self.server, "api_key": "unused"}

    def test_token_ids_mean_the_text(self, model: Embeddings) -> None:
        plain = OpenAIEmbeddings(**self.embedding_model_params, check_embedding_ctx_length=False)
        assert model.embed_query("A cat sits on the mat.") == pytest.approx(
            plain.embed_query("A cat sits on the mat."), abs=1e-3
        )


class TestOpenAIEmbeddingsOfTexts(EmbeddingsIntegrationTests):
    """With `check_embedding_ctx_length=False`, as servers with another vocabulary want it."""

    @pytest.fixture(autouse=True)
    def _know(self, base_url: str, embedding_model: str) -> None:
        self.server, self.model_name = f"{base_url}/v1", embedding_model

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {
            "model": self.model_name,
            "base_url": self.server,
            "api_key": "unused",
            "check_embedding_ctx_length": False,
        }


class TestOllamaEmbeddings(EmbeddingsIntegrationTests):
    """Ollama's vectors."""

    @pytest.fixture(autouse=True)
    def _know(self, base_url: str, embedding_model: str) -> None:
        self.server, self.model_name = base_url, embedding_model

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {"model": self.model_name, "base_url": self.server}
