"""OpenAI's Responses, `/v1/responses`: items in, items out, conversations kept by the server."""
