"""Go's template language (its package text/template, and what Ollama adds): parsed, and evaluated within bounds."""
