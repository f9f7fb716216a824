"""Text ↔ tokens: `/tokenize`, `/detokenize` and `/apply-template`, with and without `/v1`.

No standard has these. llama-server, vLLM and OVMS have them, with fields of their own; the clients of each find theirs
here. A conversation has OpenAI's form, and becomes the prompt that `/v1/chat/completions` makes of it.
"""
