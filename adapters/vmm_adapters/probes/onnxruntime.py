"""The providers that ONNX Runtime was built with."""

import onnxruntime

from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import OnnxRuntime


def ask() -> OnnxRuntime:
    """Best first, as ONNX Runtime has them."""
    return OnnxRuntime(tuple(onnxruntime.get_available_providers()))


if __name__ == "__main__":
    answer(ask)
