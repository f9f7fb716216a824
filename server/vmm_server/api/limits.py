"""How much of anything one request may hold: counts, where bytes alone do not bound the work."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from vmm_server.api.body import Integer, one_or_many

MAX_MESSAGES = 10_000
"""Messages, or items of a response's `input`."""
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
"""Of one stop string: as much of an answer may have to be held back."""
MAX_TOKEN_IDS = 10_000
"""Entries of `logit_bias` and of `stop_token_ids`."""
MAX_IMAGES = 64
"""In one message."""

Messages = Field(max_length=MAX_MESSAGES)
"""Of a list."""
Images = Field(max_length=MAX_IMAGES)
"""Of a list."""
StopSequences = Annotated[list[Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]], Field(max_length=MAX_STOPS)]
StopStrings = Annotated[StopSequences, BeforeValidator(one_or_many, json_schema_input_type=str | list[str])]
"""One stop string or an array of them."""
StopTokens = Annotated[list[Integer], Field(max_length=MAX_TOKEN_IDS)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_TOKEN_IDS)]
"""Token id → what is added to its logit."""
