"""HTTP: the only layer that knows it. Two dialects, `openai` and `ollama`, that never meet."""
