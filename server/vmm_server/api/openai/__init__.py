"""OpenAI's dialect, under `/v1`."""
