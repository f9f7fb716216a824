"""OpenAI's Batches, `/v1/batches`: files of requests, computed when nobody else needs the machine."""
