"""`TextBackend` on onnxruntime-genai's Engine: `backend.load_backend`."""
