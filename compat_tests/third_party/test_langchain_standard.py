"""LangChain's standard integration tests (the package `langchain-tests`), on its client for OpenAI.

The scripted model answers: it calls the suite's tools and tells its jokes (`../scripted/script.json`). Which tool, and
the form of its arguments and of structured output, is held by the server's grammars all the same.
"""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    """Chat completions."""

    @pytest.fixture(autouse=True)
    def _know(self, base_url: str, scripted: str) -> None:
        self.base_url, self.model_name = f"{base_url}/v1", scripted

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"model": self.model_name, "base_url": self.base_url, "api_key": "unused", "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True
