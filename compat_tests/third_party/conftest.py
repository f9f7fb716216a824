"""What the third parties' own tests need."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _stay_at_home() -> None:
    """litellm's price list and tiktoken's cl100k_base come from the package litellm and not from the net."""
    litellm = importlib.util.find_spec("litellm")
    assert litellm
    assert litellm.origin
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
