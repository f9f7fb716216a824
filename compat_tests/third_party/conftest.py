"""What the third parties' own tests need."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _stay_at_home() -> None:
    """Nothing is asked of the net: litellm's price list and tiktoken's vocabularies are files of the package litellm."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
