"""Models of one call on ONNX Runtime, by whichever of its execution providers are installed."""
