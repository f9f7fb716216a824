"""What the third parties' own tests need."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _stay_at_home() -> None:
    """litellm takes its price list from its own package and not from the net."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
