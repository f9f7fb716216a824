"""VMM: a server that runs AI models from one ONNX file on whatever hardware is there."""

__version__ = "0.1.0"
