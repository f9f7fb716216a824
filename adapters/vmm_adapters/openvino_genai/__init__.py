"""Adapter for openvino-genai: models that see, and Intel's NPU."""
