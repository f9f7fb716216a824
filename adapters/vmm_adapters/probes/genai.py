"""What ONNX Runtime GenAI was built for."""

import onnxruntime_genai

from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import OnnxRuntimeGenAI

_KINDS = ("cuda", "dml", "openvino", "qnn", "webgpu")


def ask() -> OnnxRuntimeGenAI:
    """Older versions have fewer questions."""
    asked = {kind: getattr(onnxruntime_genai, f"is_{kind}_available", None) for kind in _KINDS}
    return OnnxRuntimeGenAI(tuple(kind for kind, is_available in asked.items() if is_available and is_available()))


if __name__ == "__main__":
    answer(ask)
